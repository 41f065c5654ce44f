"""Arrays: they come back as they were; broken and hostile files are named, and nothing large is allocated."""

import io
import os
import re
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metrics.files import InputError, load_npz
from tests.metrics.files.hostile import Calls, zipped


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


def _object_array() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([Calls(os.system, "touch ran")], dtype=object), allow_pickle=True)
    return file.getvalue()


def _flipped() -> bytes:
    data = bytearray(zipped({"a.npy": _npy("(4,)", content=bytes(32))}))
    data[170] ^= 1
    return bytes(data)


def _twice() -> bytes:
    data = zipped({"a.npy": _npy("(0,)"), "b.npy": _npy("(0,)")})
    return data.replace(b"b.npy", b"a.npy")


BAD_NPZ: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a sound npz file"),
    "text": (lambda: b"hello", "not a sound npz file"),
    "truncated": (lambda: zipped({"a.npy": _npy("(4,)", content=bytes(32))})[:-30], "not a sound npz file"),
    "altered": (_flipped, "not a sound npz file .*CRC"),
    "objects": (_object_array, r"a\.npy is an array of Python objects"),
    "other entry": (lambda: zipped({"readme.txt": b"hello"}), "not a sound npz file"),
    "states 10^15 numbers": (lambda: zipped({"a.npy": _npy("(1000000000000000,)")}), r"a\.npy states"),
    "states less": (lambda: zipped({"a.npy": _npy("(1,)", content=bytes(32))}), r"a\.npy states \(1,\)"),
    "negative shape": (lambda: zipped({"a.npy": _npy("(-2, -2)", content=bytes(32))}), "not a sound npz file"),
    "code for header": (lambda: zipped({"a.npy": _npy("__import__('os')")}), "not a sound npz file"),
    "bomb": (lambda: zipped({"a.npy": bytes(2**27)}, zipfile.ZIP_DEFLATED), "unpack to 134217728"),
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
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_npz_larger_than_allowed_or_missing_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped({f"{i}.npy": _npy("(0,)") for i in range(3)}))
    for record in re.finditer(b"PK\1\2", bytes(content)):
        content[record.start() + 20 : record.start() + 28] = (2**32 - 2).to_bytes(4, "little") * 2
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match="unpack to 12884901882, expected at most 8589934592"):
        load_npz(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"none\.npz: no such file"):
        load_npz(tmp_path / "none.npz")
