"""Where images lie: folders, zips, tars and npz arrays, listed and read entry by entry.

A source knows its entries after construction and reads them by number, in any process: it can be pickled or forked.
Nothing is ever extracted, and names that point outside are refused.
"""

import bz2
import gzip
import lzma
import math
import os
import stat
import tarfile
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metrics.files import InputError, explained
from metrics.files.reading import MAX_RATIO, npy_layout, open_archive, read_entry, read_npy

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".npy")
OTHER_IMAGE_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".jp2", ".ppm")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COMPRESSIONS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
LABELS = "dataset.json"
MAX_FILE_BYTES = 256 * 2**20  # of an image, or of labels
MAX_SPOOL_BYTES = 256 * 2**30  # that a compressed tar or npz may unpack to on the disk


class Source:
    """Entries in one place, given as {POSIX path inside it: bytes}.

    Attributes:
        path: the folder or file.
        names: sorted paths of the images.
        ignored: the other files beside them, labels and hidden ones apart.
        others: how many of these are images of formats that are not read.
    """

    #: Whether there is nothing to read or decode.
    in_memory = False
    #: The bytes of a file, by its path inside.
    _content: Callable[[str], bytes]

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        self.path, self._has_labels = path, LABELS in sizes
        shown = sorted(name for name in sizes if name != LABELS and not any(map(_is_hidden, name.split("/"))))
        self.names = [name for name in shown if name.lower().endswith(IMAGE_SUFFIXES)]
        self.ignored = [name for name in shown if not name.lower().endswith(IMAGE_SUFFIXES)]
        self.others = sum(name.lower().endswith(OTHER_IMAGE_SUFFIXES) for name in self.ignored)
        read = [*self.names, LABELS] if self._has_labels else self.names
        if large := [f"{name} has {sizes[name]}" for name in read if sizes[name] > MAX_FILE_BYTES]:
            raise InputError(f"{path}: {large[0]} bytes, expected at most {MAX_FILE_BYTES}; remove it")

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Content of an entry: the bytes of a file, or pixels [H, W, C]."""
        return self._content(self.names[index])

    def read_labels(self) -> bytes | NDArray[np.int64] | None:
        """Content of `dataset.json`, or class numbers [N], or None where there are none."""
        return self._content(LABELS) if self._has_labels else None


def open_sources(path: Path) -> list[Source]:
    """The sources at one path, several where a folder holds archives; InputError if missing, broken or hostile."""
    with explained(f"{path}: cannot be read", "copy or make it again"):
        if not path.is_dir():
            return [_open_file(path)]
        folder = FolderSource(path)
        archives = [name for name in folder.ignored if name.lower().endswith(ARCHIVE_SUFFIXES)]
        if archives and folder.names:
            both = f"images ({folder.names[0]}) and archives ({archives[0]})"
            raise InputError(f"{path}: holds {both}; name the ones to measure")
        return [_open_file(path / name) for name in archives] or [folder]


def _open_file(path: Path) -> Source:
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder, or a pipe or device; check the path")
    with open(path, "rb") as file:
        magic = file.read(8)
    if path.suffix == ".npz":
        return ArraySource(path)
    if magic.startswith(b"PK"):
        return ZipSource(path)
    for start, decompress in COMPRESSIONS.items():
        if magic.startswith(start):
            return TarSource(path, Spool(path, decompress, ".tar"))
    if path.name.lower().endswith(".tar") or tarfile.is_tarfile(path):
        return TarSource(path)
    raise InputError(f"{path}: not a folder, zip, tar or npz of images; put single images into a folder")


def _walk(root: Path) -> Iterator[str]:
    """POSIX paths of the files below `root`, hidden folders apart; links to folders are followed, loops are not."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        real, below = os.path.realpath(folder), os.path.relpath(folder, root).replace(os.sep, "/")
        folders[:] = [name for name in folders if real not in seen and not _is_hidden(name)]
        if real not in seen:
            yield from (name if below == "." else f"{below}/{name}" for name in files)
        seen.add(real)


def _raise(err: OSError) -> None:
    raise err


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _check_name(path: Path, name: str) -> None:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name[:1] in ("/", "\\") or "".join(parts[:1]).endswith(":") or ".." in parts or "\0" in name:
        raise InputError(f"{path}: entry '{name}' points outside the archive; make the archive again")


class FolderSource(Source):
    """Image files below a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, dict.fromkeys(_walk(path), 0))  # sizes are checked when the files are read

    def _content(self, name: str) -> bytes:
        status = os.stat(self.path / name)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(f"has more than {MAX_FILE_BYTES} bytes")
        with open(self.path / name, "rb") as file:
            return file.read(MAX_FILE_BYTES)


class ZipSource(Source):
    """Images in a zip, which each process opens once."""

    def __init__(self, path: Path) -> None:
        self._archives: dict[int, zipfile.ZipFile] = {}
        with open_archive(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if sum(entry.compress_size for entry in entries) > path.stat().st_size:
            raise InputError(f"{path}: its entries overlap; make the archive again")
        for entry in entries:
            _check_name(path, entry.filename)
            if entry.flag_bits & 1:
                raise InputError(f"{path}: {entry.filename} is encrypted; make the archive without a password")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise InputError(f"{path}: {entry.filename} is a link; make the archive with the files themselves")
        super().__init__(path, {entry.filename: entry.file_size for entry in entries})

    def _content(self, name: str) -> bytes:
        if os.getpid() not in self._archives:
            self._archives = {os.getpid(): zipfile.ZipFile(self.path)}
        return read_entry(self._archives[os.getpid()], name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archives": {}}


class TarSource(Source):
    """Images in an uncompressed tar, read at their offsets; `spool` is what a compressed one was unpacked to."""

    def __init__(self, path: Path, spool: "Spool | None" = None) -> None:
        self._spool, self._file = spool, spool.path if spool else path
        self._members: dict[str, tuple[int, int]] = {}
        end = self._file.stat().st_size
        with tarfile.open(self._file, "r:") as archive:
            for member in archive:
                _check_name(path, member.name)
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise InputError(f"{path}: {name} is a link or no regular file; make the archive with plain files")
                if member.offset_data + member.size > end:
                    raise InputError(f"{path}: ends within {name}, so it is truncated; copy or make it again")
                if name in self._members:
                    raise InputError(f"{path}: names {name} twice; make the archive again")
                self._members[name] = member.offset_data, member.size
        super().__init__(path, {name: size for name, (_, size) in self._members.items()})

    def _content(self, name: str) -> bytes:
        offset, size = self._members[name]
        with open(self._file, "rb") as file:
            file.seek(offset)
            return file.read(size)


class ArraySource(Source):
    """Images in the array `arr_0` [N, H, W, C] uint8 of an npz as ADM's evaluator reads it; labels in `arr_1` [N].

    The array is read image by image; a compressed one is unpacked on the disk first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, {})
        self._spool, self._file = None, path
        with open_archive(path) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if "arr_0" not in entries:
                raise InputError(f"{path}: no array 'arr_0' of images, found {sorted(entries)[:9]}; save it as 'arr_0'")
            entry = entries["arr_0"]
            shape, fortran, dtype, self._start = npy_layout(archive, entry, path)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3, 4) or fortran:
                found = f"{dtype} {shape}{' in Fortran order' if fortran else ''}"
                raise InputError(f"{path}: 'arr_0' is {found}, expected uint8 [N, H, W, 3]; convert and save it again")
            self._shape, self._labels = shape[1:], None
            if entry.compress_type == zipfile.ZIP_STORED:
                with open(path, "rb") as file:  # behind the local header, sound if it was opened, its name and extra
                    file.seek(entry.header_offset + 26)
                    self._start += sum(int.from_bytes(file.read(2), "little") for _ in range(2)) + file.tell()
            else:
                self._spool = Spool(path, lambda _: archive.open(entry), ".npy")
                self._file = self._spool.path
            if self._start + math.prod(shape) > self._file.stat().st_size:
                raise InputError(f"{path}: 'arr_0' states {shape}, which is more than the file holds; make it again")
            if "arr_1" in entries and entries["arr_1"].file_size <= 16 * shape[0] + 1024:
                labels = read_npy(archive, entries["arr_1"], path)
                if labels.shape == shape[:1] and labels.dtype.kind in "iu":
                    self._labels = labels.astype(np.int64)
        self.names = [f"{index:0{len(str(shape[0] - 1))}d}" for index in range(shape[0])]

    def read(self, index: int) -> NDArray[np.uint8]:
        size = math.prod(self._shape)
        return np.fromfile(self._file, np.uint8, size, offset=self._start + index * size).reshape(self._shape)

    def read_labels(self) -> NDArray[np.int64] | None:
        return self._labels


class Spool:
    """A temporary file with what a compressed file, which cannot be read at random, unpacks to; bounded against bombs.

    It is removed with this object, or when the process that made it ends, unless that is killed.
    """

    def __init__(self, path: Path, decompress: Callable[[Path], Any], suffix: str) -> None:
        descriptor, name = tempfile.mkstemp(suffix=suffix, prefix="images-")
        self.path = Path(name)
        weakref.finalize(self, _remove, self.path, os.getpid())
        limit = min(MAX_SPOOL_BYTES, MAX_RATIO * path.stat().st_size + 64 * 2**20)
        unpacking = explained(f"{path}: cannot be unpacked into {self.path.parent}", "make it again or set TMPDIR")
        with unpacking, os.fdopen(descriptor, "wb") as file, decompress(path) as packed:
            while piece := packed.read(2**20):
                if file.tell() + len(piece) > limit:
                    raise InputError(f"{path}: unpacks to more than {limit} bytes; unpack it to a folder and name that")
                file.write(piece)


def _remove(path: Path, maker: int) -> None:
    if maker == os.getpid():  # not a worker that was forked from it
        path.unlink(missing_ok=True)
