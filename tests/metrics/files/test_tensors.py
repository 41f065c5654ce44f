"""Weights of every form come back as they were; anything else is named, and nothing in it runs."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from metrics.files import InputError
from metrics.files.tensors import load_state_dict
from tests.metrics.files.hostile import Calls, zipped

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.arange(3, dtype=torch.float16),
    "count": torch.tensor(7),
}


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(TENSORS["a.weight"])
        self.bias = torch.nn.Parameter(TENSORS["a.bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Inner()
        self.register_buffer("count", TENSORS["count"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "torchscript"])
def test_state_dict_of_every_form_comes_back_as_it_was(form: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pt")
    if form == "safetensors":
        save_file(TENSORS, path)
    elif form == "torchscript":
        torch.jit.trace(Outer(), torch.zeros(1, 2)).save(str(path))  # type: ignore[no-untyped-call]
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=form == "zip")

    loaded = load_state_dict(path)

    assert loaded.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)


def _saved(value: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _script(pickled: bytes, **entries: bytes) -> bytes:
    return zipped(
        {"x/data.pkl": pickled, "x/constants.pkl": b"\x80\x02).", **{f"x/{k}": v for k, v in entries.items()}}
    )


def _script_in_itself() -> bytes:
    return _script(b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.")


def _script_storage(count: int) -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK" + bytes([count])
    return _script(b"\x80\x02" + storage + b"tQ.", **{"data/0": bytes(4)})


def _compressed(data: bytes) -> bytes:
    return zipped({"x/data.pkl": data, "x/data/0": bytes(2**27)}, zipfile.ZIP_DEFLATED)


BAD_WEIGHTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("x.pth", lambda: b"", "not a PyTorch state dict"),
    "text": ("x.pth", lambda: b"hello", "not a PyTorch state dict"),
    "truncated": ("x.pth", lambda: _saved(TENSORS)[:-100], "not a PyTorch state dict"),
    "list": ("x.pth", lambda: _saved([torch.zeros(1)]), "expected a dictionary of tensors"),
    "numbers": ("x.pth", lambda: _saved({"a": 1}), "expected a dictionary of tensors"),
    "code": ("x.pth", lambda: _saved({"a": Calls(os.system, "touch ran")}), r"name posix\.system.*nothing was run"),
    "old code": (
        "x.pth",
        lambda: _saved({"a": Calls(os.system, "touch ran")}, legacy=True),
        r"name posix\.system.*nothing was run",
    ),
    "script code": ("x.pt", lambda: _script(pickle.dumps(Calls(os.system, "touch ran"), 2)), r"names posix\.system"),
    "script in itself": ("x.pt", _script_in_itself, "no tensors"),
    "script short storage": ("x.pt", lambda: _script_storage(2), "storage 0 has 4 bytes, expected 2 of torch.float32"),
    "script without storage": ("x.pt", lambda: _script_storage(1).replace(b"data/0", b"data/1"), "not a sound pickle"),
    "script truncated": ("x.pt", lambda: _script(b"\x80\x02}"), "truncated or not a pickle"),
    "bomb": ("x.pt", lambda: _compressed(b"N."), "unpack to"),
    "safetensors": ("x.safetensors", lambda: b"hello", "not a sound safetensors file"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_named_and_nothing_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, make, message = BAD_WEIGHTS[case]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(InputError, match=message) as caught:
        load_state_dict(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_weights_larger_than_allowed_or_missing_are_named(tmp_path: Path) -> None:
    with open(tmp_path / "x.pth", "wb") as file:
        file.truncate(2**33 + 1)
    with pytest.raises(InputError, match="expected a regular file of at most 8589934592"):
        load_state_dict(tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"none\.pth: cannot be read"):
        load_state_dict(tmp_path / "none.pth")


def test_importing_files_needs_no_torch() -> None:
    root = Path(__file__).parents[3]
    code = (
        "import sys, types; metrics = sys.modules['metrics'] = types.ModuleType('metrics')\n"
        "metrics.__path__ = ['metrics']\n"
        "import metrics.files; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
