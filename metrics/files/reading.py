"""Reading: arrays and pickles from anywhere, of sizes that are checked before anything is allocated.

Pickles are read by an unpickler that knows a handful of names and refuses every other by name: nothing is run.
"""

import math
import os
import pickle
import pickletools
import re
import stat
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from metrics.errors import InputError, explained

MAX_BYTES = 8 * 2**30  # of files, and of what arrays unpack to, that are read into memory
MAX_ARCHIVE_BYTES = 16 * 2**40  # that an archive unpacks to which is read entry by entry
#: Of a pickle: opcodes, bytes and objects that occur again, containers in containers.
MAX_OPCODES, MAX_REPEATED, MAX_DEPTH = 300_000, 2**26, 500
GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # opcodes that change an object
MAX_RATIO = 200  # deflate reaches 1032 on zeros; photographs and float arrays stay under 20


def check_file(path: str | Path) -> None:
    """Raise InputError unless a path is a regular file, or a link to one, that can be read into memory."""
    with explained(f"{path}: cannot be read", errors=(OSError, ValueError)):
        found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
        raise InputError(f"{path}: {found.st_size} bytes, expected a regular file of at most {MAX_BYTES}")


def files_below(folder: str | Path) -> Iterator[os.stat_result]:
    """What is known of every regular file below a folder, those apart that go meanwhile."""
    for path in Path(folder).rglob("*"):
        with suppress(OSError):
            if stat.S_ISREG((found := path.lstat()).st_mode):
                yield found


def load_npz(path: str | Path, leave_out: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """All arrays of an npz but those to `leave_out`, which may be too large to hold.

    InputError if it is missing, broken, above `MAX_BYTES`, or not what its headers say.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: no such file")
    check_file(path)
    with explained(f"{path}: not a sound npz file"), zipfile.ZipFile(path) as archive:
        check_archive(archive, path)
        entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
        return {name: read_npy(archive, e, path) for name, e in entries.items() if name not in leave_out}


def check_archive(archive: zipfile.ZipFile, path: str | Path, max_bytes: int = MAX_BYTES) -> None:
    """Refuse a zip that unpacks to more than `max_bytes`, swells as no honest data does, or repeats a name.

    Also one that is packed by bzip2 or LZMA, which zipfile unpacks whole, whatever size is asked for.
    """
    entries = archive.infolist()
    if other := [e.filename for e in entries if e.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]:
        raise InputError(f"{path}: {other[0]} is packed in another way than by deflate; make the archive again")
    total, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if total > max_bytes or total > MAX_RATIO * packed + 64 * 2**20:
        raise InputError(f"{path}: {packed} bytes that unpack to {total}, expected at most {max_bytes}; not read")
    if len({e.filename for e in entries}) < len(entries):
        raise InputError(f"{path}: names an entry twice; write the file again")


def open_archive(path: str | Path) -> zipfile.ZipFile:
    """A zip that is sound by `check_archive`, to be read entry by entry."""
    archive = zipfile.ZipFile(path)
    check_archive(archive, path, MAX_ARCHIVE_BYTES)
    return archive


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Content of an entry, and nothing beyond the size that it states."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


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


class _SealedType(type):
    """Metaclass of classes that a pickle's BUILD instruction cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError("a stand-in cannot be changed")


def _sealed(function: Callable[..., Any]) -> type:
    """A class whose call is the function's, since the attributes of a function could be changed."""
    return _SealedType(function.__name__, (), {"__new__": lambda _, *arguments: function(*arguments)})


class Inert(metaclass=_SealedType):
    """Stand-in for an object of a class that is not to run: keeps the pickled state and does nothing."""

    state: Any = None

    def __new__(cls, *_: Any) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves the names in `allowed` only; `source` is what error messages call the file.

    Stand-ins are functions, built-in classes without state of their own, or subclasses of `Inert`.
    """

    def __init__(self, stream: BinaryIO, allowed: Mapping[tuple[str, str], Any], source: str) -> None:
        super().__init__(stream)
        self.stream, self.source = stream, source
        self.allowed = {k: _sealed(x) if callable(x) and not isinstance(x, type) else x for k, x in allowed.items()}

    def unpickle(self) -> Any:
        """The object in the stream, of which nothing is built before all opcodes are checked."""
        for _ in checked_opcodes(self.stream, self.source):
            pass
        self.stream.seek(0)
        with explained(f"{self.source}: not a sound pickle"):
            return self.load()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            found = f"names {module}.{name}, which has no place in this kind of file; nothing was run"
            raise InputError(f"{self.source}: {found}. Get the file from its publisher again")
        return self.allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise InputError(f"{self.source}: holds a persistent id, which has no place in this kind of file")


def load_pickle(path: str | Path, allowed: Mapping[tuple[str, str], Any]) -> Any:
    """Unpickle a file; `allowed` maps (module, name) to what stands in for it, see `RestrictedUnpickler`.

    InputError: missing, too large, truncated or malformed file, or a name outside `allowed`.
    """
    check_file(path)
    with explained(f"{path}: cannot be read", errors=(OSError,)), open(path, "rb") as file:
        return RestrictedUnpickler(file, allowed, str(path)).unpickle()


def checked_opcodes(stream: BinaryIO, source: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, argument) of the opcodes of one pickle without running it; leaves `stream` behind it.

    Refuses what no honest pickle needs: memo indices, which the unpickler's table grows to, far above the number of
    opcodes; the extension registry, whose cache bypasses `find_class`; and objects that grow by repetition or by
    nesting, which a few bytes can make too large or too deep to build, hash or print.
    """
    stack, memo, repeated = list[list[int] | None](), dict[int, list[int]](), 0
    with explained(f"{source}: truncated or not a pickle"):
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise InputError(f"{source}: memo index {argument} after {count} opcodes; the file is malformed")
            if opcode.name.startswith("EXT"):
                raise InputError(f"{source}: uses pickle extension {argument}, which has no place in this kind of file")
            repeated += _follow(opcode, argument, stack, memo)
            depth = stack[-1][1] if stack and stack[-1] else 0
            if count > MAX_OPCODES or repeated > MAX_REPEATED + 4 * stream.tell() or depth > MAX_DEPTH:
                found = f"{count} opcodes, {repeated} bytes and objects by repetition and depth {depth}"
                limits = f"{MAX_OPCODES}, {MAX_REPEATED} and {MAX_DEPTH}"
                raise InputError(f"{source}: {found}, expected at most {limits}; not read")
            yield opcode.name, argument


def _follow(opcode: Any, argument: Any, stack: list[list[int] | None], memo: dict[int, list[int]]) -> int:
    """Do to `stack` and `memo` what an opcode does, where objects are [bytes and members, depth] and None is a mark.

    Returns the size of what it uses once more.
    """
    name, before = opcode.name, opcode.stack_before
    if name == "MEMOIZE" or "PUT" in name:
        memo[len(memo) if argument is None else int(argument)] = stack[-1] or [1, 1]
        return 0
    if name == "DUP" or "GET" in name:
        stack.append(stack[-1] if argument is None else memo[int(argument)])
        return (stack[-1] or [0])[0]
    taken, marked = list[list[int]](), pickletools.markobject in before
    while marked and (top := stack.pop()) is not None:
        taken.append(top)
    for _ in before[: before.index(pickletools.markobject)] if marked else before:
        taken.append(stack.pop() or [0, 0])
    made = taken.pop() if name in GROWING else [1 + len(argument) if isinstance(argument, bytes | str) else 1, 1]
    made[0] += sum(size for size, _ in taken)
    made[1] = max([made[1], *(depth + 1 for _, depth in taken)])
    stack += [None if kind is pickletools.markobject else made for kind in opcode.stack_after]
    return 0


class _Dtype(Inert):
    """Stand-in for numpy.dtype: plain numbers only. Arrays of objects can crash NumPy's own unpickling."""

    dtype: np.dtype

    def __new__(cls, code: str, *_: Any) -> Self:
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
    return _from_buffer(data, dtype, (), "C")[()]


_NDARRAY = "numpy.ndarray"  # named in pickles as an argument only; a string cannot be called
#: What pickles of NumPy arrays and numbers name, under NumPy 1 and NumPy 2.
NUMPY_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _NDARRAY,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
