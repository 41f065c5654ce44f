"""Seven small images and the containers that hold them."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from metrics.images import ImageSet

COUNT = 7


def pixels(index: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray, form: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form, **options)
    return stream.getvalue()


FILES = {f"{i % 2}/{i}.png": encoded(pixels(i)) for i in range(COUNT)}
GOOD = FILES["0/0.png"]
ORDER = sorted(range(COUNT), key=lambda i: f"{i % 2}/{i}.png")


def folder(path: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, content in (FILES if files is None else files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zipped(path: Path, files: dict[str, bytes] | None = None, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in reversed((FILES if files is None else files).items()):
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes] | None = None, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in reversed((FILES if files is None else files).items()):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shards(path: Path) -> Path:
    path.mkdir()
    for half in ("0", "1"):
        zipped(path / f"part-{half}.zip", {k: v for k, v in FILES.items() if k.startswith(half)})
    return path


def arrays(path: Path, save: Callable[..., None] = np.savez, **extra: np.ndarray) -> Path:
    save(path, arr_0=np.stack([pixels(i) for i in ORDER]), **extra)
    return path


def decoded(found: ImageSet, size: int = 3, workers: int = 0) -> list[np.ndarray]:
    members = range(len(found))
    batches = [members[i : i + size] for i in range(0, len(found), size)]
    return [image for batch in found.batches(batches, workers) for image in batch]


CONTAINERS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda t: folder(t / "images"),
    "zip": lambda t: zipped(t / "images.zip"),
    "tar": lambda t: tarred(t / "images.tar"),
    "tar.gz": lambda t: tarred(t / "images.tar.gz", mode="w:gz"),
    "tar.xz": lambda t: tarred(t / "images.tar.xz", mode="w:xz"),
    "folder of zips": lambda t: shards(t / "shards"),
}


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()
