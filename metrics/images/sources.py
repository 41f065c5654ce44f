"""Where images lie: folders, zips, tars and npz arrays, listed and read entry by entry.

A source knows its entries after construction and reads them by number, in any process: it can be pickled or forked,
and each process opens the file for itself. Nothing is ever extracted, and names that point outside are refused.
"""

import bz2
import contextlib
import gzip
import lzma
import math
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metrics.files import GIB, MAX_RATIO, InputError, check_archive, one_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".npy")
OTHER_IMAGE_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".jp2", ".ppm")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LABELS = "dataset.json"
MAX_FILE_BYTES = 256 * 2**20
"""Largest single image file that is read."""
MAX_ARCHIVE_BYTES = 16 * 1024 * GIB
MAX_SPOOL_BYTES = 256 * GIB
"""Most that a compressed tar or npz may unpack to on the disk."""


Handle = TypeVar("Handle")


class Source:
    """Entries in one place; an open file belongs to the process that opened it.

    Attributes:
        path: the folder or file.
        names: sorted POSIX paths of the images inside it.
        ignored: the other files beside them, labels and hidden ones apart.
    """

    path: Path
    names: list[str]
    ignored: Sequence[str] = ()
    _handle: Any = None
    _pid: int = 0

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Content of an entry: the bytes of a file, or pixels [H, W, C]."""
        raise NotImplementedError

    def read_labels(self) -> bytes | NDArray[np.int64] | None:
        """Content of `dataset.json`, or class numbers [N], or None where there are none."""
        return None

    @property
    def others(self) -> int:
        """How many images of formats that are not read lie beside the images."""
        return sum(name.lower().endswith(OTHER_IMAGE_SUFFIXES) for name in self.ignored)

    def _opened(self, opener: Callable[[], Handle]) -> Handle:
        if self._pid != os.getpid():
            self._handle, self._pid = opener(), os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_handle", "_pid")}


def open_sources(path: Path) -> list[Source]:
    """The sources at one path; several where a folder holds archives.

    Raises:
        InputError: nothing there, not a kind that is read, broken, or names that escape.
    """
    try:
        if path.is_dir():
            return _open_folder(path)
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
        return [_open_file(path)]
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError) as err:
        raise InputError(f"{path}: cannot be read ({one_line(err)}); copy or make it again") from err


def _open_folder(path: Path) -> list[Source]:
    found = sorted(_walk(path))
    archives = [name for name in found if name.lower().endswith(ARCHIVE_SUFFIXES)]
    folder = FolderSource(path, found)
    if archives and folder.names:
        raise InputError(
            f"{path}: holds images ({folder.names[0]}) and archives ({archives[0]}); name the ones to measure"
        )
    return [_open_file(path / name) for name in archives] if archives else [folder]


def _open_file(path: Path) -> Source:
    with open(path, "rb") as file:
        magic = file.read(8)
    if path.suffix == ".npz":
        return ArraySource(path)
    if magic.startswith(b"PK"):
        return ZipSource(path)
    for start, decompress in COMPRESSIONS.items():
        if magic.startswith(start):
            return TarSource(path, _spool(path, decompress, ".tar"))
    if path.name.lower().endswith(".tar") or tarfile.is_tarfile(path):
        return TarSource(path)
    raise InputError(f"{path}: not a folder, zip, tar or npz of images; put single images into a folder")


def _walk(root: Path) -> Iterator[str]:
    """POSIX paths below `root` of all files but hidden ones; links to folders are followed, loops are not."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        below = os.path.relpath(folder, root)
        for name in files:
            if not _is_hidden(name):
                yield name if below == "." else f"{below}/{name}".replace(os.sep, "/")


def _raise(err: OSError) -> None:
    raise err


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _images(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Sorted names of images that are not hidden, and those of the other files."""
    shown = sorted(name for name in names if name != LABELS and not any(map(_is_hidden, name.split("/"))))
    images = [name for name in shown if name.lower().endswith(IMAGE_SUFFIXES)]
    return images, [name for name in shown if not name.lower().endswith(IMAGE_SUFFIXES)]


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    drive = any(part.endswith(":") for part in parts.parts[:1])
    if drive or parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise InputError(f"{path}: entry '{name}' points outside the archive; make the archive again")


def _check_entry_size(path: Path, name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: {name} has {size} bytes, expected at most {MAX_FILE_BYTES} for an image; remove it")


class FolderSource(Source):
    """Image files below a folder."""

    def __init__(self, path: Path, found: Iterable[str]) -> None:
        self.path = path
        self.names, self.ignored = _images(found)

    def read(self, index: int) -> bytes:
        path = self.path / self.names[index]
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError("is no regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"has more than {MAX_FILE_BYTES} bytes")
        return data

    def read_labels(self) -> bytes | None:
        file = self.path / LABELS
        return file.read_bytes() if file.is_file() else None


class ZipSource(Source):
    """Images in a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path, MAX_ARCHIVE_BYTES)
            entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        if sum(entry.compress_size for entry in entries.values()) > path.stat().st_size:
            raise InputError(f"{path}: its entries overlap; make the archive again")
        for name, entry in entries.items():
            _check_name(path, name)
            if entry.flag_bits & 1:
                raise InputError(f"{path}: {name} is encrypted; make the archive without a password")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise InputError(f"{path}: {name} is a link; make the archive with the files themselves")
        self.names, self.ignored = _images(entries)
        for name in self.names:
            _check_entry_size(path, name, entries[name].file_size)
        self._has_labels = LABELS in entries

    def read(self, index: int) -> bytes:
        return self._opened(lambda: zipfile.ZipFile(self.path)).read(self.names[index])

    def read_labels(self) -> bytes | None:
        return self._opened(lambda: zipfile.ZipFile(self.path)).read(LABELS) if self._has_labels else None


class TarSource(Source):
    """Images in an uncompressed tar, read at their offsets; `spooled` is where a compressed one was unpacked to."""

    def __init__(self, path: Path, spooled: "Spool | None" = None) -> None:
        self.path = path
        self._spool = spooled
        self._file = spooled.path if spooled else path
        places: dict[str, tuple[int, int]] = {}
        size = self._file.stat().st_size
        with tarfile.open(self._file, "r:") as archive:
            for member in archive:
                _check_name(path, member.name)
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise InputError(f"{path}: {name} is a link or no regular file; make the archive with plain files")
                if member.offset_data + member.size > size:
                    raise InputError(f"{path}: ends within {name}, so it is truncated; copy or make it again")
                if name in places:
                    raise InputError(f"{path}: names {name} twice; make the archive again")
                places[name] = (member.offset_data, member.size)
        self.names, self.ignored = _images(places)
        for name in self.names:
            _check_entry_size(path, name, places[name][1])
        self._places = [places[name] for name in self.names]
        self._labels = places.get(LABELS)

    def read(self, index: int) -> bytes:
        return self._read(*self._places[index])

    def _read(self, offset: int, size: int) -> bytes:
        file = self._opened(lambda: open(self._file, "rb"))  # noqa: SIM115 (stays open for the next read)
        file.seek(offset)
        return file.read(size)

    def read_labels(self) -> bytes | None:
        return self._read(*self._labels) if self._labels else None


class ArraySource(Source):
    """Images in the array `arr_0` [N, H, W, C] uint8 of an npz as ADM's evaluator reads it; labels in `arr_1` [N].

    The array is mapped into memory, not loaded; a compressed one is unpacked on the disk first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if "arr_0" not in entries:
                raise InputError(f"{path}: no array 'arr_0' of images, found {sorted(entries)[:9]}; save it as 'arr_0'")
            entry = entries["arr_0"]
            with archive.open(entry) as file:
                self._shape, self._start = _read_header(path, file, entry.file_size)
            self._labels = _read_classes(path, archive, entries, self._shape[0])
            if entry.compress_type == zipfile.ZIP_STORED:
                self._spool, self._file = None, path
                self._start += _data_offset(path, entry)
            else:
                check_archive(archive, path, MAX_SPOOL_BYTES)
                self._spool = _spool(path, lambda _: archive.open(entry), ".npy")
                self._file = self._spool.path
        if self._start + math.prod(self._shape) > self._file.stat().st_size:
            raise InputError(f"{path}: 'arr_0' states {self._shape}, which is more than the file holds; make it again")
        digits = len(str(max(self._shape[0] - 1, 0)))
        self.names = [f"{index:0{digits}d}" for index in range(self._shape[0])]

    def read(self, index: int) -> NDArray[np.uint8]:
        array = self._opened(lambda: np.memmap(self._file, np.uint8, "r", self._start, self._shape))
        return np.array(array[index])

    def read_labels(self) -> NDArray[np.int64] | None:
        return self._labels


def _read_header(path: Path, file: IO[bytes], size: int) -> tuple[tuple[int, ...], int]:
    """Shape of an npy entry of images, and where in the entry its data begin."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as err:
        raise InputError(f"{path}: 'arr_0' is not a sound array ({one_line(err)}); save it again") from err
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3, 4) or fortran:
        raise InputError(
            f"{path}: 'arr_0' is {dtype} {shape}{' in Fortran order' if fortran else ''}, expected uint8 [N, H, W, 3]; "
            "convert and save it again"
        )
    if file.tell() + math.prod(shape) != size:
        raise InputError(f"{path}: 'arr_0' states {shape}, which is not what the file holds; save it again")
    return shape, file.tell()


def _read_classes(
    path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], count: int
) -> NDArray[np.int64] | None:
    if "arr_1" not in entries or entries["arr_1"].file_size > 16 * count + 1024:
        return None
    with archive.open(entries["arr_1"]) as file:
        try:
            labels = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as err:
            raise InputError(f"{path}: 'arr_1' is not a sound array ({one_line(err)}); save it again") from err
    return labels.astype(np.int64) if labels.shape == (count,) and labels.dtype.kind in "iu" else None


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a stored entry's bytes begin in the zip: behind its local header, whose extra field may differ."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    if header[:4] != b"PK\3\4" or len(header) < 30:
        raise InputError(f"{path}: '{entry.filename}' has no sound header; make the file again")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return entry.header_offset + 30 + name_length + extra_length


class Spool:
    """A temporary file with what a compressed file unpacks to; removed with this object, in its own process."""

    def __init__(self, suffix: str) -> None:
        descriptor, name = tempfile.mkstemp(suffix=suffix, prefix="images-")
        self.path, self._pid = Path(name), os.getpid()
        self.file = os.fdopen(descriptor, "wb")

    def __del__(self) -> None:
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):
                self.path.unlink()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_pid": 0}  # a copy in another process never removes the file


COMPRESSIONS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def _spool(path: Path, decompress: Callable[[Path], Any], suffix: str) -> Spool:
    """Unpack to the disk, since compressed data cannot be read at random; bounded against bombs."""
    limit = min(MAX_SPOOL_BYTES, MAX_RATIO * path.stat().st_size + 64 * 2**20)
    spool = Spool(suffix)
    written = 0
    try:
        with decompress(path) as packed, spool.file as file:
            while piece := packed.read(2**20):
                written += len(piece)
                if written > limit:
                    raise InputError(f"{path}: unpacks to more than {limit} bytes; unpack it to a folder and name that")
                file.write(piece)
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as err:
        raise InputError(
            f"{path}: cannot be unpacked into {spool.path.parent} ({one_line(err)}); make it again or set TMPDIR"
        ) from err
    return spool
