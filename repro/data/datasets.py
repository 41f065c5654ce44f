"""Image files to train on: pixels, or latents of the VAE, in the layout of the EDM2 tools."""

import hashlib
import io
import json
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metrics.files import InputError, explained
from metrics.images import LABELS, ZipSource, open_sources, own_labels
from repro.encoders import Encoder, RGBEncoder
from repro.pixels import decode_png

CACHE_BYTES = 1 << 30


class ImageDataset:
    """A folder or archive of images, or of VAE latents as npy, with labels in `dataset.json`: the EDM2 layout.

    `dataset.json` is {"labels": [["00000/img00000000.png", 3], ...]}; without it, or with null labels, the data are
    unlabelled. Pixels are those that `metrics.images` measures, but 8-bit grey PNGs keep their one channel. All items
    have the shape of the first; a data set of up to 1 GiB is kept in memory once decoded.

    `path` is anything that `metrics.images.open_sources` finds one source in, `encoder` what makes latents of the items
    (None: RGB); without `use_labels` the data count as unlabelled. Raises InputError where nothing is there, an item is
    missing, broken or of another shape, or labels do not fit.
    """

    def __init__(self, path: str | Path, encoder: Encoder | None = None, use_labels: bool = True) -> None:
        self.path, self.encoder = Path(path), encoder or RGBEncoder()
        self._source, *others = open_sources(self.path)
        self.names = self._source.names
        if others:
            raise InputError(f"{path}: holds {1 + len(others)} archives, expected images; name one of the archives")
        if not self.names:
            raise InputError(f"{path}: holds no images or latents; see `repro data convert`")
        self._lock, self._pool = threading.Lock(), ThreadPoolExecutor()
        labels = own_labels(self._source) if use_labels else None
        self.labels = None if labels is None else np.asarray(labels, np.int64)  # class of each item [items], or None
        if self.labels is not None and self.labels.min() < 0:
            raise InputError(f"{self.path}: {LABELS} has negative classes")
        self.label_dim = 0 if self.labels is None else int(self.labels.max()) + 1
        first = self._decode(0)
        self.shape, self.dtype = first.shape, first.dtype
        if first.ndim != 3 or self.shape[1] != self.shape[2]:
            raise InputError(f"{self.path}: {self.names[0]} is {list(self.shape)}, expected a square [C, size, size]")
        self.img_resolution = self.shape[1]
        self.img_channels = self.shape[0] if self.encoder.kind == "rgb" else self.shape[0] // 2
        self._kept = lru_cache(len(self) if len(self) * first.nbytes <= CACHE_BYTES else 0)(self._decode)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over name, size and CRC-32 of every item, and over the labels, whatever contains them."""
        if isinstance(self._source, ZipSource):  # which states them, so that terabytes need not be read
            with zipfile.ZipFile(self._source.path) as archive:
                found = [(entry.filename, entry.file_size, entry.CRC) for entry in map(archive.getinfo, self.names)]
        else:
            contents = (bytes(self._source.read(item)) for item in range(len(self)))
            found = [(name, len(data), zlib.crc32(data)) for name, data in zip(self.names, contents, strict=True)]
        labels = None if self.labels is None else self.labels.tolist()
        return hashlib.sha256(json.dumps([found, labels]).encode()).hexdigest()

    def image(self, item: int) -> NDArray[Any]:
        """Item `item`: uint8 [C, H, W], or float32 for stored latents."""
        image = self._kept(int(item))
        if image.shape != self.shape or image.dtype != self.dtype:
            found = f"{image.dtype} {list(image.shape)}, expected {self.dtype} {list(self.shape)}"
            raise InputError(f"{self.path}: {self.names[item]} is {found} as in {self.names[0]}")
        return image

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] and one-hot labels [N, label_dim] at `positions` of the stream shuffled by `seed`."""
        items = shuffled(seed, positions, len(self))
        images = torch.from_numpy(np.stack(list(self._pool.map(self.image, items))))
        if self.labels is None:
            return images, torch.zeros(len(items), 0)
        return images, F.one_hot(torch.from_numpy(self.labels[items]), self.label_dim).float()

    def _decode(self, item: int) -> NDArray[Any]:
        try:
            with explained("cannot be read"):
                with self._lock:
                    data = self._source.read(item)
                if isinstance(data, bytes) and self.names[item].endswith(".npy"):
                    return np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32, copy=False)
                return np.ascontiguousarray(decode_png(data).transpose(2, 0, 1))
        except InputError as err:
            raise InputError(f"{self.path}: {self.names[item]} {err}; see `repro data check`") from err


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(length)


def shuffled(seed: int, positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Item at each position of an endless stream that shuffles `length` items anew in every pass over them."""
    return np.array([_epoch_order(seed, p // length, length)[p % length] for p in positions.tolist()], np.int64)
