"""Files from anywhere: atomic writing, folder locks, and reading that never runs code nor allocates unbounded.

Pickles are read by an unpickler that knows a handful of names and refuses every other by name.
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import shutil
import socket
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from torch import Tensor

GIB = 2**30
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
MAX_RATIO = 200  # deflate reaches 1032 on zeros; photographs and float arrays stay under 20


class InputError(ValueError):
    """Something a user gave is wrong; the message is one line that names it and the remedy."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on error it is removed.

    What processes that are no more have left beside `path` is removed too. The temporary name ends in `.tmp`:
    writers that choose the format by suffix need to be told the format.

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    prefix = f".{path.name}.{socket.gethostname()}-"
    temporary = path.with_name(f"{prefix}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
            pid = stale.name.removeprefix(prefix).removesuffix(".tmp")
            if not pid.isdigit() or not _is_alive(int(pid)):
                stale.unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as err:
        if disk_full(err):
            raise InputError(f"{path}: no space left on the disk; free some and run again") from err
        number, place = getattr(err, "errno", None), getattr(err, "filename", None)
        if number in NOT_WRITABLE and place and Path(place) in (temporary, path, *path.parents):
            raise InputError(f"{path}: cannot be written ({os.strerror(number)})") from err
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def disk_full(err: Exception) -> bool:
    """Whether an error says that the disk or the quota is full; safetensors says it in words only."""
    return getattr(err, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(err)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, indented, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically; a copy where the file system has no links."""
    with atomic_write(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def folder_lock(folder: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold `folder` against other processes through an OS lock on `<folder>.lock`, released even by kill -9.

    Raises:
        InputError: another process holds it and `wait` is False; the message says who.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(f"{folder}.lock"), Path(f"{folder}.holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with contextlib.suppress(OSError):
            who = holder.read_text().strip() or who
        if not wait:
            raise InputError(f"{folder} is in use by {who}; wait for it or stop it") from None
        print(f"waiting for {folder}, in use by {who}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


# --- Pickles ---------------------------------------------------------------------------------------------------


class _SealedType(type):
    """Metaclass of classes that a pickle's BUILD instruction cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"{cls.__name__} cannot be changed")


class _SealedFunction:
    """A function that a pickle can call, but whose attributes its BUILD instruction cannot change."""

    __slots__ = ("_function",)
    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("a stand-in cannot be changed")


class Inert(metaclass=_SealedType):
    """Stand-in for an object of a class that is not to run: keeps the pickled state and does nothing."""

    __slots__ = ("state",)
    state: Any

    def __new__(cls, *_: Any) -> "Inert":
        inert = super().__new__(cls)
        inert.state = None
        return inert

    def __setstate__(self, state: Any) -> None:
        self.state = state


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves the names in `allowed` only; `source` is what error messages call the file.

    Stand-ins are functions, built-in classes without state of their own, or subclasses of `Inert`.
    """

    def __init__(self, stream: BinaryIO, allowed: Mapping[tuple[str, str], Any], source: str) -> None:
        super().__init__(stream)
        self.allowed = allowed
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        try:
            found = self.allowed[module, name]
        except KeyError:
            raise InputError(
                f"{self.source}: names {module}.{name}, which has no place in this kind of file; nothing was run. "
                "Get the file from its publisher again"
            ) from None
        return _SealedFunction(found) if callable(found) and not isinstance(found, type) else found

    def persistent_load(self, pid: Any) -> Any:
        raise InputError(f"{self.source}: holds a persistent id, which has no place in this kind of file")


def load_pickle(path: str | Path, allowed: Mapping[tuple[str, str], Any], max_bytes: int = 8 * GIB) -> Any:
    """Unpickle a file with the restricted unpickler.

    Args:
        path: the file.
        allowed: (module, name) -> what stands in for it, see `RestrictedUnpickler`.
        max_bytes: largest file that is read.

    Raises:
        InputError: missing, too large, truncated or malformed file, or a name outside `allowed`.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise InputError(f"{path}: {size} bytes, expected at most {max_bytes}")
            check_opcodes(file, str(path))
            file.seek(0)
            return run_unpickler(RestrictedUnpickler(file, allowed, str(path)))
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err


def unpickle(data: bytes, allowed: Mapping[tuple[str, str], Any], source: str) -> Any:
    """`load_pickle` of bytes in memory."""
    check_opcodes(io.BytesIO(data), source)
    return run_unpickler(RestrictedUnpickler(io.BytesIO(data), allowed, source))


def run_unpickler(unpickler: RestrictedUnpickler) -> Any:
    """The unpickled object; whatever goes wrong is an InputError."""
    try:
        return unpickler.load()
    except InputError:
        raise
    except Exception as err:
        raise InputError(f"{unpickler.source}: not a sound pickle ({type(err).__name__}: {one_line(err)})") from err


def check_opcodes(stream: BinaryIO, source: str) -> None:
    """Walk the opcodes of one pickle without running it; leaves `stream` behind it.

    Refuses memo indices that no honest pickle needs, since the unpickler fills a table of that size, and the
    extension registry, whose cache bypasses `find_class`.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise InputError(f"{source}: memo index {argument} after {count} opcodes; the file is malformed")
            if opcode.name.startswith("EXT"):
                raise InputError(f"{source}: uses pickle extension {argument}, which has no place in this kind of file")
    except InputError:
        raise
    except Exception as err:
        raise InputError(f"{source}: truncated or not a pickle ({one_line(err)})") from err


class _Dtype(metaclass=_SealedType):
    """Stand-in for numpy.dtype: plain numbers only. Arrays of objects can crash NumPy's own unpickling."""

    __slots__ = ("dtype",)
    dtype: np.dtype

    def __new__(cls, code: str, *_: Any) -> "_Dtype":
        if not re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)", code):
            raise ValueError(f"an array of dtype '{code}', expected numbers")
        found = super().__new__(cls)
        found.dtype = np.dtype(code)
        return found

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):  # version, byte order, fields of structured types
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray, metaclass=_SealedType):
    """An array under construction: NumPy's own check of the state is too lenient."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        _check_size(shape, dtype, data)
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _check_size(shape: Any, dtype: Any, data: Any) -> None:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise ValueError("an array that is not made of shape, dtype and bytes")
    if any(not isinstance(n, int) or n < 0 for n in shape) or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise ValueError(f"an array of {len(data)} bytes with shape {shape} and dtype {dtype.dtype}")


def _reconstruct(subtype: Any, shape: Any, *_: Any) -> np.ndarray:
    if subtype is not _NDARRAY or shape != (0,):
        raise ValueError("an array that is not built empty first")
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    _check_size(shape, dtype, data)
    return np.frombuffer(bytearray(data), dtype=dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    _check_size((), dtype, data)
    return np.frombuffer(data, dtype=dtype.dtype)[0]


_NDARRAY = "numpy.ndarray"  # named in pickles as an argument only; a string cannot be called
NUMPY_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _NDARRAY,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""What pickles of NumPy arrays and numbers name, under NumPy 1 and NumPy 2."""


# --- Arrays and tensors ----------------------------------------------------------------------------------------


def load_npz(path: str | Path, max_bytes: int = 8 * GIB) -> dict[str, np.ndarray]:
    """All arrays of an npz; sizes are checked from the headers before anything is allocated.

    Raises:
        InputError: missing or broken file, object arrays, more than `max_bytes` in all, or an entry that holds
            less or more than its header says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path, max_bytes)
            return {e.filename.removesuffix(".npy"): _read_npy(archive, e, path) for e in archive.infolist()}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as err:
        raise InputError(f"{path}: not a sound npz file ({one_line(err)})") from err


def check_archive(archive: zipfile.ZipFile, path: str | Path, max_bytes: int) -> None:
    """Refuse a zip that unpacks to more than `max_bytes`, swells as no honest data does, or repeats a name."""
    entries = archive.infolist()
    total, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if total > max_bytes or total > MAX_RATIO * packed + 64 * 2**20:
        raise InputError(f"{path}: {packed} bytes that unpack to {total}, expected at most {max_bytes}; not read")
    if len({e.filename for e in entries}) < len(entries):
        raise InputError(f"{path}: names an entry twice; write the file again")


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str | Path) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise InputError(f"{path}: {entry.filename} is an array of Python objects, expected numbers")
        if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise InputError(f"{path}: {entry.filename} states {shape} {dtype}, which is not what the file holds")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def load_state_dict(path: str | Path, max_bytes: int = 8 * GIB) -> "dict[str, Tensor]":
    """Named tensors of a .safetensors file, a PyTorch state dict, or a TorchScript archive (read, never run).

    Raises:
        InputError: missing or broken file, or anything in it besides tensors.
    """
    from metrics.files import tensors

    try:
        size = os.stat(path).st_size
        if size > max_bytes:
            raise InputError(f"{path}: {size} bytes, expected at most {max_bytes}")
        return tensors.read(Path(path), max_bytes)
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err


def one_line(err: BaseException) -> str:
    """An exception's message on one line, shortened."""
    return " ".join(str(err).split())[:200] or type(err).__name__
