"""Files from anywhere: what is written is whole, what is locked is held, what is read is bounded and never runs."""

import errno
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metrics.files import (
    NUMPY_GLOBALS,
    InputError,
    atomic_write,
    folder_lock,
    load_npz,
    load_pickle,
    load_state_dict,
    sha256_file,
    unpickle,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- Writing -----------------------------------------------------------------------------------------------------


def test_written_file_replaces_the_old_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    write_text(path, "μ and σ")
    write_json(tmp_path / "new" / "b.json", {"μ": [1, 2.5, None]})
    assert path.read_text(encoding="utf-8") == "μ and σ"
    assert json.loads((tmp_path / "new" / "b.json").read_text(encoding="utf-8")) == {"μ": [1, 2.5, None]}
    assert names(tmp_path / "new") == ["a.txt", "b.json"]


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def fail_half_way(path: Path, error: Exception) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise error


def test_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(path, RuntimeError("half way"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk_is_an_error_for_people_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(InputError, match=r"a\.txt: no space left on the disk"):
        fail_half_way(path, OSError(errno.ENOSPC, "No space left on device"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "x")


def test_error_of_another_file_is_not_blamed_on_the_written_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "other").read_bytes()


WRITE_FOREVER = """
import sys, time
from metrics.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_killed_writer_leaves_the_old_file_and_its_rest_is_swept_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    write_text(path, "old")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    (tmp_path / ".other.txt.host-1.tmp").write_text("another's")
    write_text(path, "while the other still writes")
    assert len(names(tmp_path)) == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_text() == "while the other still writes"

    write_text(path, "new")

    assert path.read_text() == "new"
    assert names(tmp_path) == [".other.txt.host-1.tmp", "a[1].txt"]


# --- Locks -------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from metrics.files import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_says_who_holds_it_and_ends_with_its_holder_even_by_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "stage"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"out/stage is in use by process {process.pid} on .* since "):
        folder_lock(folder, wait=False).__enter__()

    waited = threading.Event()

    def wait() -> None:
        with folder_lock(folder):
            waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    assert not waited.is_set()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    thread.join(timeout=20)
    assert waited.is_set()
    assert f"in use by process {process.pid}" in capsys.readouterr().err


def test_lock_is_beside_the_folder_and_free_again_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    seen = []

    def fail_inside() -> None:
        with folder_lock(folder):
            seen.extend([names(tmp_path), names(folder)])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert seen == [["stage", "stage.holder", "stage.lock"], []]
    with folder_lock(folder, wait=False):
        pass
    assert "stage.holder" not in names(tmp_path)


# --- Pickles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(3, 6))
@pytest.mark.parametrize("core", ["core", "_core"])
def test_statistics_pickles_of_both_numpy_generations_load(core: str, protocol: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    content = {
        "num_images": 50000,
        "fid": {"mu": generator.normal(size=5), "sigma": np.asfortranarray(generator.normal(size=(5, 5)))},
        "count": np.int64(7),
        "mean": np.float32(0.5),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 4)),
    }
    data = pickle.dumps(content, protocol)
    if core == "core":
        data = _with_numpy_1_names(data)
    (tmp_path / "ref.pkl").write_bytes(data)

    loaded = load_pickle(tmp_path / "ref.pkl", NUMPY_GLOBALS)

    assert loaded["num_images"] == 50000
    np.testing.assert_array_equal(loaded["fid"]["mu"], content["fid"]["mu"])
    np.testing.assert_array_equal(loaded["fid"]["sigma"], content["fid"]["sigma"])
    assert (loaded["count"], loaded["mean"]) == (7, 0.5)
    np.testing.assert_array_equal(loaded["big"], [0, 1, 2])
    assert loaded["empty"].shape == (0, 4)


def _with_numpy_1_names(data: bytes) -> bytes:
    """NumPy 1 said numpy.core; a pickle of protocol 4 holds each name behind its length, in frames of stated size."""
    import pickletools

    operations = list(pickletools.genops(data))
    ends = [position for _, _, position in operations[1:]] + [len(data)]
    kept = [data[s:e] for (op, _, s), e in zip(operations, ends, strict=True) if op.name != "FRAME"]  # type: ignore[operator]
    for module in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        new = module.replace(b"_core", b"core")
        kept = [piece.replace(bytes([len(module)]) + module, bytes([len(new)]) + new) for piece in kept]
        kept = [piece.replace(b"c" + module + b"\n", b"c" + new + b"\n") for piece in kept]
    joined = b"".join(kept)
    assert b"_core" not in joined
    assert b"numpy.core" in joined
    return joined


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def test_foreign_name_is_refused_by_name_and_nothing_runs(tmp_path: Path) -> None:
    data = pickle.dumps({"mu": Calls(os.system, f"touch {tmp_path / 'ran'}")})
    with pytest.raises(InputError, match=r"^ref: names posix\.system, which has no place.*nothing was run"):
        unpickle(data, NUMPY_GLOBALS, "ref")
    assert not (tmp_path / "ran").exists()


def test_pickle_larger_than_allowed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "ref.pkl").write_bytes(pickle.dumps(list(range(1000))))
    with pytest.raises(InputError, match=r"ref\.pkl: \d+ bytes, expected at most 100"):
        load_pickle(tmp_path / "ref.pkl", {}, max_bytes=100)


def test_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pkl: cannot be read \(No such file"):
        load_pickle(tmp_path / "none.pkl", {})
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        load_pickle(tmp_path, {})


@pytest.mark.parametrize("code", ["O8", "V8", "U4", "M8", "f999999999", "(10,)f8"])
def test_arrays_of_other_things_than_numbers_are_refused(code: str) -> None:
    data = pickle.dumps(Calls(np.dtype, code, False, True))
    with pytest.raises(InputError, match="expected numbers"):
        unpickle(data, NUMPY_GLOBALS, "ref")


# --- npz ---------------------------------------------------------------------------------------------------------


def test_npz_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.asarray("text"), "c": np.zeros((0, 3), np.uint8)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
        loaded = load_npz(tmp_path / "x.npz")
        assert loaded.keys() == arrays.keys()
        for key in arrays:
            np.testing.assert_array_equal(loaded[key], arrays[key])
            assert loaded[key].dtype == arrays[key].dtype


def _npy(shape: str, dtype: str = "<f8", content: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (118 - len(header) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def _zip(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _object_array() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([Calls(os.system, "touch ran")], dtype=object), allow_pickle=True)
    return file.getvalue()


def _flipped() -> bytes:
    data = bytearray(_zip({"a.npy": _npy("(4,)", content=bytes(32))}))
    data[170] ^= 1
    return bytes(data)


def _twice() -> bytes:
    data = _zip({"a.npy": _npy("(0,)"), "b.npy": _npy("(0,)")})
    return data.replace(b"b.npy", b"a.npy")


BAD_NPZ: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a sound npz file"),
    "text": (lambda: b"hello", "not a sound npz file"),
    "truncated": (lambda: _zip({"a.npy": _npy("(4,)", content=bytes(32))})[:-30], "not a sound npz file"),
    "altered": (_flipped, "not a sound npz file .*CRC"),
    "objects": (_object_array, r"a\.npy is an array of Python objects"),
    "other entry": (lambda: _zip({"readme.txt": b"hello"}), "not a sound npz file"),
    "states 10^15 numbers": (lambda: _zip({"a.npy": _npy("(1000000000000000,)")}), r"a\.npy states"),
    "states less": (lambda: _zip({"a.npy": _npy("(1,)", content=bytes(32))}), r"a\.npy states \(1,\)"),
    "negative shape": (lambda: _zip({"a.npy": _npy("(-2, -2)", content=bytes(32))}), "not a sound npz file"),
    "code for header": (lambda: _zip({"a.npy": _npy("__import__('os')")}), "not a sound npz file"),
    "bomb": (lambda: _zip({"a.npy": bytes(2**27)}, zipfile.ZIP_DEFLATED), "unpack to 134217728"),
    "name twice": (_twice, "names an entry twice"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz_is_named_and_nothing_large_is_allocated(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD_NPZ[case]
    (tmp_path / "x.npz").write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as caught:
        load_npz(tmp_path / "x.npz")
    assert str(caught.value).startswith(str(tmp_path / "x.npz"))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["x.npz"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_npz_larger_than_allowed_or_missing_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(1000))
    with pytest.raises(InputError, match="expected at most 1000"):
        load_npz(tmp_path / "x.npz", max_bytes=1000)
    with pytest.raises(InputError, match=r"none\.npz: no such file"):
        load_npz(tmp_path / "none.npz")


# --- State dicts -------------------------------------------------------------------------------------------------

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
    return _zip({"x/data.pkl": pickled, "x/constants.pkl": b"\x80\x02).", **{f"x/{k}": v for k, v in entries.items()}})


def _script_in_itself() -> bytes:
    return _script(b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.")


def _script_storage(count: int) -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK" + bytes([count])
    return _script(b"\x80\x02" + storage + b"tQ.", **{"data/0": bytes(4)})


def _compressed(data: bytes) -> bytes:
    return _zip({"x/data.pkl": data, "x/data/0": bytes(2**27)}, zipfile.ZIP_DEFLATED)


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
    assert names(tmp_path) == [name]


def test_weights_larger_than_allowed_or_missing_are_named(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pth")
    with pytest.raises(InputError, match="expected at most 10"):
        load_state_dict(tmp_path / "x.pth", max_bytes=10)
    with pytest.raises(InputError, match=r"none\.pth: cannot be read"):
        load_state_dict(tmp_path / "none.pth")


def test_importing_files_needs_no_torch() -> None:
    code = "import sys, metrics.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0
