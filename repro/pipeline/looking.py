"""A single image of a study: any configuration by its id, in whatever study it is."""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from metrics.files import InputError, nearest
from repro import study as studies
from repro.pipeline import acquire
from repro.pipeline.stages import study_pair
from repro.sampling.batches import sample_images
from repro.sampling.pairs import Pair, load_pair
from repro.sampling.shards import IMAGES
from repro.study import Study


def find(configuration: str) -> Study:
    """The study that has a configuration, the active one first; ids are in one study each."""
    names: list[str] = []
    for study in _all():
        if configuration in study.sampled:
            return study
        names += study.sampled
    raise InputError(f"configuration '{configuration}' is in no study{nearest(configuration, names)}")


def _all() -> Iterator[Study]:
    if studies.PARAMS.exists():
        yield studies.load()
    yield from studies.readable().values()


def image(configuration: str, seed: int, device: torch.device) -> NDArray[np.uint8]:
    """The image uint8 [H, W, C] of a seed under a configuration of a study: what its shard has, pixel by pixel.

    Published networks are fetched where they are not there. Raises InputError where something is missing.
    """
    study = find(configuration)
    ((_, images, _),) = sample_images(_pair(study, configuration, device), [seed])
    found: NDArray[np.uint8] = images[0]
    return found


def _pair(study: Study, key: str, device: torch.device) -> Pair:
    """A configuration, loaded; of one whose settings are looked for as its images were made."""
    if key in study.generate:
        acquire.obtain(study, study.generate[key].guided)
        return study_pair(study, study.generate[key].guided, device)
    for path in sorted((study.out / "samples" / key).glob(f"*{IMAGES.suffix}")):
        with suppress(InputError):
            if manifest := IMAGES.manifest(path):
                return load_pair(manifest.configuration, device, study.models)
    raise InputError(f"{key}: its settings are not found yet; `dvc repro -s tune@{key}` looks for them")
