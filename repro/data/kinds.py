"""Kinds of data sets: a frozen dataclass of settings with what can be done with them, registered by name."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metrics import distributed, features, references
from metrics.detectors import Detector
from metrics.features import FeatureFile, FeatureSet
from metrics.files import Downloads, InputError
from metrics.registry import Registry

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
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True)
class Kind:
    """What every kind is: its fields are the settings of `data.ID.settings`, which decide what the data are.

    `measured` is the dataclass of `data.ID.reference`: what only decides the reference, so that no network is trained
    again for it.
    """

    measured: ClassVar[type] = NoSettings

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """Have what the other methods need in `folder`, made or downloaded where it is missing; the data's digest."""
        raise NotImplementedError

    def training(self, folder: Path) -> TrainingData:
        """What networks are trained on; `folder` as `prepare` left it. Raises InputError where there is nothing."""
        raise InputError("published statistics are no images to train on; expected another kind of data")

    def measure(self, folder: Path, target: Path, detectors: list[str], settings: object, downloads: Downloads) -> None:
        """Leave the reference in `target`: `reference.npz` (statistics of every detector), where there are images also
        `features.npz`, and DETECTOR.safetensors of detectors whose weights are made here. What stands is kept."""
        raise NotImplementedError


KINDS: Registry[type[Kind]] = Registry("kind of data")


def write_reference(
    target: Path,
    detectors: Mapping[str, Detector],
    source_digest: str,
    labels: NDArray[np.int64] | None,
    extract: Callable[[], Mapping[str, FeatureSet]],
    order: NDArray[np.int64] | slice = slice(None),
) -> None:
    """Leave statistics and features of images under every detector in `target`, unless just these stand there.

    `source_digest` tells the images from any others; `labels` are their classes [N], where known. Every process of
    torchrun calls `extract` for their features under every detector, which are kept in `order`, as are the labels.
    """
    tags = {name: {**detector.tags, "source_digest": source_digest} for name, detector in detectors.items()}
    classes = None if labels is None else labels[order]
    with suppress(InputError):  # of what is missing or damaged
        kept = features.read(target / FEATURES)
        same = kept.tags == tags and np.array_equal(np.asarray(kept.labels), np.asarray(classes))  # or both are None
        if same and references.load(target / REFERENCE):
            return
    sets = {name: replace(found, tags=tags[name]) for name, found in extract().items()}
    statistics = {name: found.statistics() for name, found in sets.items()}
    arrays = {name: found.gather()[order] for name, found in sets.items()}
    if distributed.rank() == 0:
        features.write(target / FEATURES, FeatureFile(arrays, tags, classes))
        references.save(statistics, target / REFERENCE)  # last: it tells that all is there
