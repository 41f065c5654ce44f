"""Files from anywhere: atomic writing, folder locks, and reading that never runs code nor allocates unbounded.

Pickles are read by an unpickler that knows a handful of names and refuses every other by name.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import socket
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

GIB = 2**30


class InputError(ValueError):
    """Something a user gave is wrong; the message is one line that names it and the remedy."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, indented, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


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
        who = holder.read_text().strip() if holder.exists() else "another process"
        if not wait:
            raise InputError(f"{folder} is in use by {who}; wait for it or stop it") from None
        print(f"waiting for {folder}, in use by {who}", flush=True)
        lock.acquire()
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


# --- Pickles ---------------------------------------------------------------------------------------------------


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves the names in `allowed` only; `source` is what error messages call the file."""

    def __init__(self, data: bytes, allowed: Mapping[tuple[str, str], Any], source: str) -> None:
        super().__init__(io.BytesIO(data))
        self.allowed = allowed
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise InputError(
                f"{self.source}: names {module}.{name}, which has no place in this kind of file; nothing was run. "
                "Get the file from its publisher again"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise InputError(f"{self.source}: holds a persistent id, which has no place in this kind of file")


def load_pickle(path: str | Path, allowed: Mapping[tuple[str, str], Any], max_bytes: int = 8 * GIB) -> Any:
    """Unpickle a file with the restricted unpickler.

    Args:
        path: the file.
        allowed: (module, name) -> what stands in for it.
        max_bytes: largest file that is read.

    Raises:
        InputError: missing, too large, truncated or malformed file, or a name outside `allowed`.
    """
    return unpickle(read_bounded(path, max_bytes), allowed, str(path))


def unpickle(data: bytes, allowed: Mapping[tuple[str, str], Any], source: str) -> Any:
    """`load_pickle` of bytes in memory."""
    check_opcodes(data, source)
    try:
        return RestrictedUnpickler(data, allowed, source).load()
    except InputError:
        raise
    except Exception as err:
        raise InputError(f"{source}: not a sound pickle ({type(err).__name__}: {_line(err)})") from err


def check_opcodes(data: bytes, source: str, start: int = 0) -> int:
    """Walk the opcodes of one pickle without running it; returns the offset behind it.

    Refuses memo indices that no honest pickle needs: the unpickler allocates a table of that size.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            count += 1
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise InputError(f"{source}: memo index {argument} after {count} opcodes; the file is malformed")
    except InputError:
        raise
    except Exception as err:
        raise InputError(f"{source}: truncated or not a pickle ({_line(err)})") from err
    return stream.tell()


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """A file's bytes.

    Raises:
        InputError: it does not exist, cannot be read, or is larger than `max_bytes`.
    """
    try:
        size = os.path.getsize(path)
        if size > max_bytes:
            raise InputError(f"{path}: {size} bytes, expected at most {max_bytes}")
        return Path(path).read_bytes()
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err


def _reconstruct_array(subtype: Any, shape: tuple[int, ...], typecode: Any) -> np.ndarray:
    if subtype is not _NDARRAY or tuple(shape) != (0,):
        raise ValueError("an array that is not built empty first")
    return np.empty((0,), dtype=np.int8)


def _array_scalar(dtype: np.dtype, data: bytes) -> Any:
    if dtype.hasobject or len(data) != dtype.itemsize:
        raise ValueError("a scalar of objects or of the wrong size")
    return np.frombuffer(data, dtype=dtype)[0]


_NDARRAY = "numpy.ndarray"  # named in pickles as an argument only; a string cannot be called
NUMPY_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): _NDARRAY,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct_array), ("scalar", _array_scalar))
    },
}
"""What pickles of NumPy arrays and numbers name, under NumPy 1 and NumPy 2."""


def load_nested_tensors(data: bytes, source: str) -> Any:
    """Stand-in for `torch.storage._load_from_bytes`: a nested file of tensors, read with `weights_only`.

    Raises:
        InputError: a foreign global inside, or sizes that do not fit the bytes at hand.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise InputError(f"{source}: nested tensors unpack to more than their own size")
    else:
        _check_legacy_sizes(data, source)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as err:
        found = re.search(r"GLOBAL\s+(\S+)", str(err))
        name = f"names {found[1]}, which has no place there; nothing was run" if found else _line(err)
        raise InputError(f"{source}: nested tensors: {name}") from err


def _check_legacy_sizes(data: bytes, source: str) -> None:
    """A legacy torch file is four pickles (magic, protocol, system, object) and more; the object states sizes."""
    offset = 0
    for _ in range(3):
        offset = check_opcodes(data, f"{source}: nested tensors", offset)
    for opcode, argument, position in pickletools.genops(io.BytesIO(data[offset:])):
        if isinstance(argument, int) and opcode.name.startswith(("BININT", "LONG", "INT")) and argument > len(data):
            raise InputError(f"{source}: nested tensors state {argument} elements in {len(data)} bytes ({position})")


def rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor_v2` that cannot reach beyond the storage."""
    flat = torch.empty(0, dtype=storage.dtype).set_(storage) if not isinstance(storage, Tensor) else storage
    return torch.as_strided(flat, tuple(size), tuple(stride), int(offset)).clone()


# --- Tensors and arrays ----------------------------------------------------------------------------------------


def load_npz(path: str | Path, max_bytes: int = 8 * GIB) -> dict[str, np.ndarray]:
    """All arrays of an npz; sizes are checked from the headers before anything is allocated.

    Raises:
        InputError: missing or broken file, object arrays, more than `max_bytes` in all, or an entry that holds
            less or more than its header says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total > max_bytes:
                raise InputError(f"{path}: unpacks to {total} bytes, expected at most {max_bytes}")
            return {entry.filename.removesuffix(".npy"): _read_npy(archive, entry, path) for entry in entries}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as err:
        raise InputError(f"{path}: not a sound npz file ({_line(err)})") from err


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str | Path) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise InputError(f"{path}: {entry.filename} is an array of Python objects, expected numbers")
        needed = math.prod(shape) * dtype.itemsize
        if needed != entry.file_size - file.tell():
            raise InputError(f"{path}: {entry.filename} states {shape} {dtype}, which is not what the file holds")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def load_state_dict(path: str | Path, max_bytes: int = 8 * GIB) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file, a PyTorch state dict, or a TorchScript archive (read, never run).

    Raises:
        InputError: missing or broken file, or anything in it besides tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > max_bytes:
        raise InputError(f"{path}: {path.stat().st_size} bytes, expected at most {max_bytes}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as err:
            raise InputError(f"{path}: not a sound safetensors file ({_line(err)})") from err
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise InputError(f"{path}: unpacks to more than its own size; not a PyTorch file")
            if any(name.endswith("constants.pkl") for name in names):
                return _read_torchscript(archive, path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        found = re.search(r"GLOBAL\s+(\S+)", str(err))
        name = f"names {found[1]}; nothing was run" if found else _line(err)
        raise InputError(f"{path}: not a PyTorch state dict ({name})") from err
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path}: expected a dictionary of tensors")
    return dict(loaded)


class _Module(dict[str, Any]):
    """Inert stand-in for any module of a TorchScript archive: its attributes and nothing else."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


class _TorchScriptUnpickler(RestrictedUnpickler):
    """Reads data.pkl of a TorchScript archive: modules become dictionaries, storages come from the zip."""

    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str, source: str) -> None:
        super().__init__(data, _TORCHSCRIPT_GLOBALS, source)
        self.archive = archive
        self.root = root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, numel = pid
        data = self.archive.read(f"{self.root}data/{key}")
        if len(data) != numel * dtype.itemsize:
            raise InputError(f"{self.source}: storage {key} has {len(data)} bytes, expected {numel * dtype.itemsize}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _first(value: Any, *_: Any) -> Any:
    return value


_TORCHSCRIPT_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    ("collections", "OrderedDict"): dict,
    **{
        ("torch", f"{name}Storage"): dtype
        for name, dtype in (
            ("Float", torch.float32),
            ("Double", torch.float64),
            ("Half", torch.float16),
            ("Long", torch.int64),
            ("Int", torch.int32),
            ("Byte", torch.uint8),
            ("Bool", torch.bool),
        )
    },
}


def _read_torchscript(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    main = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if main is None:
        raise InputError(f"{path}: a TorchScript archive without data.pkl")
    data = archive.read(main)
    check_opcodes(data, str(path))
    try:
        tree = _TorchScriptUnpickler(data, archive, main.removesuffix("data.pkl"), str(path)).load()
    except InputError:
        raise
    except Exception as err:
        raise InputError(f"{path}: not a sound TorchScript archive ({_line(err)})") from err
    return dict(_tensors(tree, ""))


def _tensors(tree: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}.")


def _line(err: BaseException) -> str:
    """An exception's message on one line, shortened."""
    return " ".join(str(err).split())[:200] or type(err).__name__
