"""What samples are measured against, with what, and the rows of measured values."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics import detectors, features, references
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.frechet import frechet_distance, leave_one_out
from metrics.measure import check_reference, measure
from metrics.names import qualified, space
from metrics.statistics import Moments, as_tensor, from_features
from repro.data.kinds import FEATURES, REFERENCE
from repro.guidance import Guided
from repro.numerics import numerics
from repro.rows import REAL, WHOLE, Replicate, Row, provenance, settings
from repro.sampling.shards import Manifest
from repro.strict import digest, facts
from repro.study import Evaluate

GROUPS = 16  # of seeds, each left out once by the jackknife


def load_detectors(names: list[str], folder: Path, device: torch.device) -> dict[str, detectors.Detector]:
    """Detectors by name; weights that the reference in `folder` has brought along come from there.

    Raises InputError where no detector is asked for, or one's weights are missing.
    """
    if not names:
        raise InputError("evaluate.detectors is empty, so that nothing can be measured; name at least one")
    brought = {name: path for name in names if (path := folder / f"{name}.safetensors").exists()}
    return {name: detectors.load(name, weights=brought.get(name), device=str(device)) for name in names}


def load_reference(folder: Path, evaluate: Evaluate) -> references.Reference:
    """The reference in `folder` as the stage `reference` left it, its features only where a metric needs them.

    Raises InputError where it is missing or broken, or lacks a detector.
    """
    reference = references.load(folder / REFERENCE)
    assert reference is not None  # a statistics file is no image set
    if evaluate.options.needs_reference_features:
        first = slice(evaluate.num_real)
        kept = features.load(folder / FEATURES) if (folder / FEATURES).exists() else {}
        sets = {name: x.subset(first) for name, x in kept.items() if name in evaluate.plain}
        reference = replace(reference, features=sets)
    check_reference(reference, evaluate.plain, evaluate.options)
    return reference


def replicates(
    key: str,
    kept: Callable[[Sequence[int]], Mapping[str, FeatureSet]],
    seeds: Sequence[int],
    reference: references.Reference,
    evaluate: Evaluate,
    networks: Mapping[str, detectors.Detector],
) -> Iterator[Replicate]:
    """Values of all images of configuration `key`, and of all but a group, of the features that `kept` has of seeds.

    The groups are `GROUPS` runs of `seeds`, ascending, as equal as they can be; too few seeds have none. Distances
    come extrapolated to infinitely many images too, and, where features of real images are at hand, beside the
    distance of one half of these from the other.
    """
    if len(seeds) < 2 * GROUPS:
        return
    groups = np.array_split(np.array(seeds), GROUPS)
    labels = [WHOLE, *(f"{group[0]}-{group[-1]}" for group in groups)]
    counts = [len(seeds), *(len(seeds) - len(group) for group in groups)]
    if "fd" in evaluate.metrics:  # a group at a time: of more images than dimensions the moments are enough
        by_group: dict[str, list[Any]] = {}
        for group in groups:
            for name, sample in kept(group.tolist()).items():
                x, few = as_tensor(sample.gather()), len(seeds) <= sample.dim
                by_group.setdefault(name, []).append(x if few else Moments(sample.dim).update(x))
        for name, blocks in by_group.items():
            distance, target = space(name).distance, reference.require(name)
            found = leave_one_out(blocks, target)
            for label, count, (value, limit) in zip(labels, counts, found, strict=True):
                yield Replicate(key, distance, label, count, value)
                yield Replicate(key, qualified("fd_infinity", name), label, count, limit)
            if name in reference.features:
                halves = np.array_split(reference.features[name].gather(), 2)
                value = frechet_distance(*(from_features(half, target.tags) for half in halves))
                yield Replicate(key, distance, REAL, len(halves[0]), value)
    if others := tuple(name for name in evaluate.metrics if name != "fd"):
        options = replace(evaluate.options, metrics=others)
        for name, sample in kept(seeds).items():
            for label, group in zip(labels, [np.array([], int), *groups], strict=True):
                rest = ~np.isin(seeds, group)
                for m in measure(name, sample.subset(rest), reference, options, networks.get(name)):
                    yield Replicate(key, qualified(m.metric, name), label, int(rest.sum()), m.value)


def point_digest(
    pair: str, seeds: str, reference: references.Reference, evaluate: Evaluate, origin: dict[str, Any]
) -> str:
    """sha256 of all that decides what is measured of `seeds` of a pair (its digest) by detectors of `origin`."""
    return digest(pair, seeds, origin, evaluate.options, evaluate.num_real, reference.digest, numerics("metrics"))


def measured_rows(
    manifest: Manifest,
    sets: Mapping[str, FeatureSet],
    reference: references.Reference,
    evaluate: Evaluate,
    networks: Mapping[str, detectors.Detector],
    common: dict[str, Any],
) -> list[Row]:
    """One row per value of one seed block, of images made as `manifest` says, with features `sets` by detector.

    `networks` are the detectors, for metrics that ask them; `common` are columns that the study settles.
    """
    decides = facts(replace(manifest.configuration, guided=Guided("")))
    made = settings(manifest.configuration.guided) | provenance(torch.device(manifest.device_type)) | common
    return [
        Row(
            **made,
            metric=qualified(m.metric, name),
            value=m.value,
            num_images=m.num_images,
            num_steps=manifest.configuration.solver.num_steps,
            solver=json.dumps({name: value for name, value in decides.items() if name != "guided"}, sort_keys=True),
            main_sha256=manifest.main_sha256,
            guide_sha256=manifest.guide_sha256 or "",
            detector=name,
            detector_sha256=str(sample.tags.get("weights_sha256", "")),
            reference_sha256=reference.digest,
        )
        for name, sample in sets.items()
        for m in measure(name, sample, reference, evaluate.options, networks.get(name))
    ]
