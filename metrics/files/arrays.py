"""Arrays in files: sizes are checked from the headers before anything is allocated, nothing is run."""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from metrics.errors import InputError, explained

GIB = 2**30
MAX_BYTES = 8 * GIB  # of files, and of what arrays unpack to, that are read into memory
MAX_RATIO = 200  # deflate reaches 1032 on zeros; photographs and float arrays stay under 20


def check_file(path: str | Path) -> None:
    """Raise InputError if a file is missing or larger than any that is read into memory."""
    with explained(f"{path}: cannot be read", errors=(OSError,)):
        size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{path}: {size} bytes, expected at most {MAX_BYTES}")


def load_npz(path: str | Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz; InputError if it is missing, broken, above `MAX_BYTES`, or not what its headers say."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file")
    with explained(f"{path}: not a sound npz file"), zipfile.ZipFile(path) as archive:
        check_archive(archive, path)
        return {e.filename.removesuffix(".npy"): read_npy(archive, e, path) for e in archive.infolist()}


def check_archive(archive: zipfile.ZipFile, path: str | Path, max_bytes: int = MAX_BYTES) -> None:
    """Refuse a zip that unpacks to more than `max_bytes`, swells as no honest data does, or repeats a name."""
    entries = archive.infolist()
    total, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if total > max_bytes or total > MAX_RATIO * packed + 64 * 2**20:
        raise InputError(f"{path}: {packed} bytes that unpack to {total}, expected at most {max_bytes}; not read")
    if len({e.filename for e in entries}) < len(entries):
        raise InputError(f"{path}: names an entry twice; write the file again")


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype of an npy file, left where its data begin; ValueError if unsound."""
    first = np.lib.format.read_magic(file) == (1, 0)
    return (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(file)


def npy_layout(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str | Path
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """What `read_npy_header` says of an entry of an npz, and where its data begin; checked against its size."""
    with archive.open(entry) as file:
        shape, fortran, dtype = read_npy_header(file)
        start = file.tell()
    if dtype.hasobject:
        raise InputError(f"{path}: {entry.filename} is an array of Python objects, expected numbers")
    if math.prod(shape) * dtype.itemsize != entry.file_size - start:
        raise InputError(f"{path}: {entry.filename} states {shape} {dtype}, which is not what the file holds")
    return shape, fortran, dtype, start


def read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str | Path) -> NDArray[Any]:
    """The array in an entry of an npz."""
    npy_layout(archive, entry, path)
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
