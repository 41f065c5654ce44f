"""Data sets of image files: what networks train on, and the reference that samples are measured against."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from metrics import distributed
from metrics.detectors import load
from metrics.features import extract
from metrics.files import Downloads, InputError
from metrics.images import open_images
from repro.data.datasets import ImageDataset
from repro.data.kinds import Kind, write_reference

CACHE = "cache"  # chunks of an unfinished extraction


@dataclass(frozen=True)
class ImageKind(Kind):
    """A kind whose data are image files: a subclass says where in `images`, and makes them in `prepare` if need be."""

    use_labels = True

    def images(self, folder: Path) -> Path:
        """Zip or folder of square images, given what `prepare` left in `folder`: see `repro.data.ImageDataset`."""
        raise NotImplementedError

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """The images' digest; raises InputError where there are none."""
        return self.training(folder).digest

    def training(self, folder: Path) -> ImageDataset:
        path = self.images(folder)
        dataset = ImageDataset(path, use_labels=self.use_labels)
        if dataset.dtype != np.uint8:
            raise InputError(f"{path}: holds {dataset.dtype} arrays, expected images; latents need `repro train`")
        return dataset

    def measure(self, folder: Path, target: Path, detectors: list[str], settings: object, downloads: Downloads) -> None:
        """Measure all images.

        The features are in a random order, always the same, so that any number of the first ones is a fair sample of
        images that are sorted by class. An interrupted extraction goes on where it stopped.
        """
        images = open_images(self.images(folder))
        loaded = {name: load(name, device=distributed.device()) for name in detectors}
        order = np.random.default_rng(0).permutation(len(images))
        extraction = partial(extract, images, loaded, target / CACHE)
        write_reference(target, loaded, images.digest, images.labels, extraction, order)
        if distributed.rank() == 0:
            shutil.rmtree(target / CACHE, ignore_errors=True)


@dataclass(frozen=True)
class ImageFiles(ImageKind):
    """Settings of a data set of kind `images`: the user's own."""

    #: Zip or folder of square PNGs with labels in dataset.json: `repro.data.ImageDataset`.
    path: str
    #: Whether conditional networks see the labels.
    use_labels: bool = True

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("path is empty, expected a zip or folder of images")

    def images(self, folder: Path) -> Path:
        return Path(self.path)
