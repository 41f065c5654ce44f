"""Training images: what the trainer asks of a data set, deterministic order, cropping, folders and zips."""

import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.files import InputError
from repro.encoders import Encoder, RGBEncoder


class TrainingData(Protocol):
    """An endless stream of labelled images, each a function of (seed, position) alone.

    `batch(seed, positions)` returns what the encoder takes (uint8 pixels or stored latents, [N, C, H, W]) and one-hot
    labels [N, label_dim] float32; it is called from a background thread. `img_resolution` and `img_channels` are those
    of the encoded latents, `digest` tells this data from any other.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    encoder: Any
    digest: str

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]: ...


def mix(*keys: int | NDArray[Any]) -> NDArray[np.uint64]:
    """Hash integers into 64 well-mixed bits (the finaliser of SplitMix64 over each in turn); arrays broadcast.

    A counter-based random source: what is drawn for one image does not depend on who drew what before it.
    """
    state = np.zeros([], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = state ^ np.asarray(key).astype(np.uint64)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: int | NDArray[Any]) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on the integers `keys` alone; arrays broadcast."""
    return (mix(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(length)


def shuffled(seed: int, positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Item at each position of an endless stream that shuffles `length` items anew in every pass over them."""
    epochs = positions // length
    items = np.empty_like(positions)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        items[inside] = _epoch_order(seed, int(epoch), length)[positions[inside] % length]
    return items


def center_crop_dhariwal(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre crop to `size` x `size` as ADM prepares ImageNet: uint8 [H, W, C] -> uint8 [size, size, C].

    Halved by box filter while the shorter side is at least twice the size, then bicubic to the size (Dhariwal and
    Nichol 2021, whose resampling the published reference statistics are bound to).
    """
    picture = PIL.Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), PIL.Image.Resampling.BICUBIC
    )
    pixels = np.asarray(picture)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def one_hot(labels: Sequence[int] | NDArray[Any], label_dim: int) -> NDArray[np.float32]:
    """Class numbers [N] -> [N, label_dim] float32."""
    return np.eye(label_dim, dtype=np.float32)[np.asarray(labels, dtype=np.int64)]


LABELS = "dataset.json"
SUFFIXES = (".png", ".npy")
CACHE_BYTES = 1 << 30


class ImageDataset:
    """A folder or zip of PNGs, or of VAE latents as npy, with labels in `dataset.json`: the EDM2 layout.

    `dataset.json` is {"labels": [["00000/img00000000.png", 3], ...]}; without it, or with null labels, the data are
    unlabelled. All items have the shape of the first; a data set of up to 1 GiB is kept in memory once decoded.

    Args:
        path: the folder or zip.
        encoder: pixels or stored latents -> latents; None: RGB.
        use_labels: False: the data count as unlabelled, whatever `dataset.json` says.

    Raises:
        InputError: nothing there, an item that is missing, broken or of another shape, or labels that do not fit.
    """

    def __init__(self, path: str | Path, encoder: Encoder | None = None, use_labels: bool = True) -> None:
        self.path = Path(path)
        self.encoder = encoder or RGBEncoder()
        self._zip = zipfile.ZipFile(self.path) if _is_zip(self.path) else None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
        sizes = self._list()
        self.names = sorted(name for name in sizes if name.endswith(SUFFIXES))
        if not self.names:
            raise InputError(f"{self.path}: no {' or '.join(SUFFIXES)} files inside; see `repro data convert`")
        described = json.dumps([(name, sizes[name]) for name in self.names])
        labels_json = self._read(LABELS) if use_labels and LABELS in sizes else b""
        self.digest = hashlib.sha256(described.encode() + labels_json).hexdigest()
        self.labels = self._labels(labels_json)  # class of each item [items], or None
        self.label_dim = 0 if self.labels is None else int(self.labels.max()) + 1

        first = self._decode(0)
        self.shape, self.dtype = first.shape, first.dtype
        channels, height, width = self.shape
        if height != width:
            raise InputError(f"{self.path}: {self.names[0]} is {width}x{height}, expected a square image")
        self.img_resolution = height
        self.img_channels = channels if self.encoder.kind == "rgb" else channels // 2
        cached = len(self.names) * first.nbytes <= CACHE_BYTES
        self._cache = np.empty([len(self.names), *self.shape], self.dtype) if cached else None
        self._is_cached = np.zeros(len(self.names), dtype=bool)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, item: int) -> NDArray[Any]:
        """Item `item`: uint8 [C, H, W], or float32 for stored latents."""
        if self._cache is not None and self._is_cached[item]:
            return self._cache[item]
        image = self._decode(item)
        if image.shape != self.shape or image.dtype != self.dtype:
            raise InputError(
                f"{self.path}: {self.names[item]} is {image.dtype} {list(image.shape)}, expected {self.dtype} "
                f"{list(self.shape)} as in {self.names[0]}"
            )
        if self._cache is not None:
            self._cache[item] = image
            self._is_cached[item] = True
        return image

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] and one-hot labels [N, label_dim] at `positions` of the stream shuffled by `seed`."""
        items = shuffled(seed, positions, len(self))
        images = torch.from_numpy(np.stack(list(self._pool.map(self.image, items))))
        labels = np.zeros([len(items), 0], np.float32)
        if self.labels is not None:
            labels = one_hot(self.labels[items], self.label_dim)
        return images, torch.from_numpy(labels)

    def _list(self) -> dict[str, int]:
        """Size of every file inside, by its name relative to the data set."""
        if self._zip is not None:
            return {info.filename: info.file_size for info in self._zip.infolist() if not info.is_dir()}
        if not self.path.is_dir():
            raise InputError(f"{self.path}: expected a folder or zip of images")
        files = (path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}

    def _read(self, name: str) -> bytes:
        if self._zip is None:
            return (self.path / name).read_bytes()
        try:
            with self._lock:
                return self._zip.read(name)
        except zipfile.BadZipFile as err:
            raise InputError(f"{self.path}: {name} is damaged ({err}); make the archive again") from err

    def _decode(self, item: int) -> NDArray[Any]:
        name = self.names[item]
        data = io.BytesIO(self._read(name))
        try:
            if name.endswith(".npy"):
                return np.load(data, allow_pickle=False).astype(np.float32, copy=False)
            pixels = np.asarray(PIL.Image.open(data))
        except (OSError, ValueError, SyntaxError) as err:
            raise InputError(f"{self.path}: {name} cannot be read ({err}); see `repro data check`") from err
        if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise InputError(f"{self.path}: {name} is neither RGB nor 8-bit grey; see `repro data convert`")
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _labels(self, text: bytes) -> NDArray[np.int64] | None:
        if not text:
            return None
        try:
            pairs = json.loads(text)["labels"]
            if pairs is None:
                return None
            by_name = {str(name): int(label) for name, label in pairs}
        except (ValueError, KeyError, TypeError) as err:
            raise InputError(f'{self.path}: {LABELS} is not {{"labels": [[name, class], ...]}}: {err!r}') from err
        missing = [name for name in self.names if name not in by_name]
        if missing:
            raise InputError(f"{self.path}: {LABELS} gives no label to {missing[0]} and {len(missing) - 1} others")
        labels = np.array([by_name[name] for name in self.names], dtype=np.int64)
        if labels.min() < 0:
            raise InputError(f"{self.path}: {LABELS} has negative classes")
        return labels


def _is_zip(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)
