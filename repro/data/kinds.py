"""Kinds of data sets: a frozen dataclass of settings with what can be done with them, registered by name.

Here is what all have in common, what those of image files do, and the user's own files.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metrics import distributed, features, references
from metrics.detectors import Detector, load
from metrics.files import Downloads, InputError
from metrics.images import open_images
from metrics.registry import Registry
from repro.data.archives import ImageDataset
from repro.numerics import numerics
from repro.strict import within

REFERENCE, FEATURES = "reference.npz", "features.npz"


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

    @property
    def digest(self) -> str: ...

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Kind(ABC):
    """What every kind is: its fields are the settings of `data.ID.settings`, which decide what the data are.

    `measured` is the dataclass of `data.ID.reference`: what only decides the reference, so that no network is trained
    again for it.
    """

    measured: ClassVar[type] = make_dataclass("NoSettings", [], frozen=True)

    @abstractmethod
    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """Have what the other methods need in `folder`, made or downloaded where it is missing; the data's digest."""

    def data_shape(self) -> tuple[int, int, int] | None:
        """Resolution, channels and classes of what networks are trained on; None where only the data would tell."""
        return None

    def training(self, folder: Path) -> TrainingData:
        """What networks are trained on; `folder` as `prepare` left it. Raises InputError where there is nothing."""
        raise InputError("published statistics are no images to train on; expected another kind of data")

    def at_most(self, settings: Any, number: int) -> Any:
        """Settings of a reference of at most so many images; the same where their number is not ours to choose."""
        return settings

    @abstractmethod
    def measure(self, folder: Path, target: Path, detectors: list[str], settings: Any, downloads: Downloads) -> None:
        """Leave the reference in `target`: `reference.npz` (statistics of every detector), where there are images also
        `features.npz`, and DETECTOR.safetensors of detectors whose weights are made here. What stands is kept."""


@dataclass(frozen=True)
class ImageReference:
    """Settings of the reference of image files."""

    #: How many of the images it comes from, drawn at random, always the same ones; None: all.
    num_images: int | None = None

    def __post_init__(self) -> None:
        within(self, 2, 2**63 - 1, "num_images")


@dataclass(frozen=True)
class ImageKind(Kind):
    """A kind whose data are image files: a subclass says where in `images`, and makes them in `prepare` if need be."""

    measured, use_labels = ImageReference, True

    @abstractmethod
    def images(self, folder: Path) -> Path:
        """Zip or folder of square images, given what `prepare` left in `folder`: see `repro.data.ImageDataset`."""

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """The images' digest; raises InputError where there are none."""
        return self.training(folder).digest

    def training(self, folder: Path) -> ImageDataset:
        dataset = ImageDataset(self.images(folder), use_labels=self.use_labels)
        if dataset.dtype != np.uint8:
            raise InputError(
                f"{dataset.path}: holds {dataset.dtype} arrays, expected images; latents need `repro train`"
            )
        return dataset

    def measure(self, folder: Path, target: Path, detectors: list[str], settings: Any, downloads: Downloads) -> None:
        """Measure all images, or as many as `settings` (an `ImageReference`) say.

        The features are in a random order, always the same, so that any number of the first ones is a fair sample of
        images that are sorted by class. An interrupted extraction goes on where it stopped.
        """
        images = open_images(self.images(folder))
        if settings.num_images is not None:
            if settings.num_images > len(images):
                found = f"{self.images(folder)}: holds {len(images)} images"
                raise InputError(f"{found}, expected the {settings.num_images} of reference.num_images or more")
            images = images.subset(settings.num_images, seed=0)
        loaded = {name: load(name, device=distributed.device()) for name in detectors}
        order = np.random.default_rng(0).permutation(len(images))
        cache = target / "cache"  # chunks of an unfinished extraction, those of other numerics apart
        chunks = cache.joinpath(*map(str, numerics("features").values()))
        write_reference(
            target, loaded, images.digest, images.labels, lambda: features.extract(images, loaded, chunks), order
        )
        if distributed.rank() == 0:
            shutil.rmtree(cache, ignore_errors=True)


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

    def data_shape(self) -> tuple[int, int, int] | None:
        return _shape_of_files(self)


@cache  # a listing of a million images takes seconds
def _shape_of_files(files: ImageFiles) -> tuple[int, int, int] | None:
    with suppress(InputError):  # which is said where the data are needed
        data = files.training(Path())
        return data.img_resolution, data.img_channels, data.label_dim
    return None


KINDS: Registry[type[Kind]] = Registry("kind of data")


def write_reference(
    target: Path,
    detectors: Mapping[str, Detector],
    source_digest: str,
    labels: NDArray[np.int64] | None,
    extract: Callable[[], Mapping[str, features.FeatureSet]],
    order: NDArray[np.int64] | slice = slice(None),
) -> None:
    """Leave statistics and features of images under every detector in `target`, unless just these stand there.

    `source_digest` tells the images from any others; `labels` are their classes [N], where known. Every process of
    torchrun calls `extract` for their features under every detector, which are kept in `order`, as are the labels.
    """
    source = " ".join([source_digest, *(f"numerics={number}" for number in numerics("features").values())])
    tags = {name: {**detector.tags, "source_digest": source} for name, detector in detectors.items()}
    classes = None if labels is None else labels[order]
    with suppress(InputError):  # of what is missing or damaged
        kept = features.read(target / FEATURES)
        if (
            kept.tags == tags
            and np.array_equal(np.asarray(kept.labels), np.asarray(classes))  # or both are None
            and references.load(target / REFERENCE)
        ):
            return
    sets = {name: replace(found, tags=tags[name]) for name, found in extract().items()}
    statistics = {name: found.statistics() for name, found in sets.items()}
    arrays = {name: found.gather()[order] for name, found in sets.items()}
    if distributed.rank() == 0:
        features.write(target / FEATURES, features.FeatureFile(arrays, tags, classes))
        references.save(statistics, target / REFERENCE)  # last: it tells that all is there
