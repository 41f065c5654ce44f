"""Features of sampled images as shards: extracted from shards of images, or kept in their place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metrics import distributed
from metrics.detectors import Detector
from metrics.features import FeatureFile, FeatureSet, detect, read, write
from metrics.files import InputError
from metrics.images.sets import read_ahead
from metrics.progress import progress
from repro.numerics import numerics
from repro.sampling.dealing import Wanted, plan
from repro.sampling.pairs import Pair
from repro.sampling.shards import IMAGES, Form, Manifest, ShardImages, sound_manifest
from repro.strict import facts

BATCH = 100  # images that a detector takes at once, which fit a small GPU
#: Detector -> [N, D].
Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FeatureShards(Form):
    """Features under `detectors`."""

    detectors: Mapping[str, Detector]
    suffix = ".npz"

    @property
    def origin(self) -> dict[str, Any]:
        """What tells features apart, besides the images, in JSON's types."""
        return facts({name: detector.tags for name, detector in self.detectors.items()} | numerics("features"))

    def manifest(self, path: Path) -> Manifest | None:
        try:
            content = read(path)
        except InputError:
            return None  # missing, torn or altered: to be made
        return Manifest.read(content.facts.get("manifest"), path)

    def is_sound(self, path: Path, manifest: Manifest, trust: bool = False) -> bool:
        try:
            return read(path).facts == self._facts(manifest)
        except InputError:
            return False

    def encode(self, images: NDArray[np.uint8]) -> Features:
        return detect(map(list, _pieces(images)), self.detectors)

    def keep(self, path: Path, manifest: Manifest, parts: list[Features]) -> None:
        tags = {name: detector.tags for name, detector in self.detectors.items()}
        labels = np.array(manifest.labels, np.int64) if manifest.labels else None
        write(path, FeatureFile(concatenate(parts), tags, labels, self._facts(manifest)))

    def bytes_per_image(self, pair: Pair) -> float:
        return 4.0 * sum(detector.dim for detector in self.detectors.values())

    def content(self, path: Path) -> tuple[Manifest, Features]:
        found = read(path)
        return Manifest.read(found.facts.get("manifest"), path), dict(found.features)

    def extract(self, shards: Sequence[Path], folder: Path, description: str = "") -> list[Path]:
        """Features of shards of images, a file for each in `folder`, decoded ahead of the detectors by other processes.

        Under torchrun the ranks share the batches.

        What stands there is kept if it was made from the same images by the same detectors.
        """
        targets = [folder / f"{shard.stem}{self.suffix}" for shard in shards]
        there = np.zeros(len(shards))
        for i in range(distributed.rank(), len(shards), distributed.world_size()):
            made = IMAGES.manifest(shards[i])
            there[i] = made is not None and self.is_sound(targets[i], made)
        there = distributed.all_reduce_sum(there)
        sources = {target: shard for target, shard, found in zip(targets, shards, there, strict=True) if not found}
        made_of = {target: sound_manifest(shard) for target, shard in sources.items()}

        def seeds_of(wanted: Wanted, part: Path) -> list[int] | None:
            seeds = self.content(part)[0].seeds
            known = {*seeds} <= {*made_of[wanted.path].seeds}
            return seeds if known and self.is_sound(part, made_of[wanted.path].of(seeds)) else None

        work = plan([Wanted(x, [*map(list, _pieces(made_of[x].seeds))]) for x in sources], seeds_of)
        batches = [[(sources[job.wanted.path], seed) for seed in x] for job in work.mine for x in _pieces(job.seeds)]
        decoded = read_ahead(ShardImages(), batches)
        for job in progress(description, work.mine, unit="shard", hidden=distributed.rank() > 0):
            images = (_whole(next(decoded)) for _ in _pieces(job.seeds))
            found = detect(images, self.detectors, str(sources[job.wanted.path]))
            self.keep(job.path, made_of[job.wanted.path].of(job.seeds), [found])
        work.join(self.join)
        return targets

    def _facts(self, manifest: Manifest) -> dict[str, Any]:
        return {"manifest": manifest.facts(), "origin": self.origin}


def block_features(paths: Sequence[Path], seeds: Sequence[int]) -> tuple[Manifest, dict[str, FeatureSet]]:
    """Manifest of the first of the feature shards `paths`, and the features of `seeds` in all of them by detector.

    Raises InputError where a shard is missing or broken, or seeds are missing.
    """
    contents = [read(path) for path in paths]
    manifests = [Manifest.read(x.facts.get("manifest"), path) for x, path in zip(contents, paths, strict=True)]
    keep = np.isin([seed for manifest in manifests for seed in manifest.seeds], seeds)
    if keep.sum() != len(seeds):
        raise InputError(f"features of {keep.sum()} of the {len(seeds)} seeds {seeds[0]}-{seeds[-1]}; run again")
    classes = np.array([label for manifest in manifests for label in manifest.labels], np.int64)
    labels = classes[keep] if len(classes) == len(keep) else None
    features, tags = concatenate([content.features for content in contents]), contents[0].tags
    return manifests[0], {name: FeatureSet.of(x[keep], tags[name], labels) for name, x in features.items()}


def concatenate(parts: Sequence[Mapping[str, NDArray[np.float32]]]) -> Features:
    """Parts one behind the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pieces(of: Any) -> list[Any]:
    """Seeds or images in the batches that a detector takes."""
    return [of[i : i + BATCH] for i in range(0, len(of), BATCH)]


def _whole(images: list[Any]) -> list[Any]:
    """Images that could all be read; raises InputError for the first that could not."""
    for image in images:
        if isinstance(image, str):
            raise InputError(image)
    return images
