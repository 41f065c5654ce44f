"""From images or features to measured values: what the command line, pipelines and training loops call.

results = evaluate("samples/", "img512")                              # files
evaluator = Evaluator("img512")                                       # inside a training loop
evaluator.add(batch)                                                  # uint8 [N, 3, H, W], any number of times
values = {m.metric: m.value for m in evaluator.result()}
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics import distributed, features, images, references
from metrics.detectors import Detector, load
from metrics.features import FeatureSet
from metrics.files import InputError, sha256_file
from metrics.frechet import frechet_distance, paired_difference
from metrics.measure import Options, cautions, check_reference, measure
from metrics.names import space
from metrics.references import Reference
from metrics.results import Measurement, Results, environment
from metrics.statistics import ESSENTIAL, check_tags

#: What holds one image set.
Paths = str | Path | Sequence[str]


@dataclass(frozen=True)
class Extractor:
    """How images become features: detectors by name, loaded when first needed, and how to read and cache."""

    names: Sequence[str] = ("inception",)
    weights: Mapping[str, Path] = field(default_factory=dict)
    device: str | None = None
    cache: Path | None = None
    batch_size: int = 64
    num_workers: int | None = None
    skip_bad: bool = False
    #: Options of single detectors, such as {"dinov2": {"resize": "pil"}}.
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1")
        if stray := sorted(set(self.weights) - set(self.names)):
            raise InputError(f"weights given for '{stray[0]}', which is not among the detectors {list(self.names)}")

    @cached_property
    def detectors(self) -> dict[str, Detector]:
        device = self.device or str(distributed.device())
        return {x: load(x, self.weights.get(x), device, **self.settings.get(x, {})) for x in self.names}

    def read(self, source: Paths, num: int | None = None, seed: int | None = None) -> Reference:
        """Features of an image set (anything `open_images` reads, or a list of such) or of a feature file.

        Takes `num` images, at random when a seed is given, else the first in sorted order.
        """
        paths = _listed(source)
        name = ", ".join(paths)
        if _feature_file(source):
            if num is not None:
                raise InputError(f"{name}: a subset is chosen when features are extracted, not from a feature file")
            return Reference(name, sha256_file(name), features=features.load(name))
        opened = images.open_images(paths[0] if len(paths) == 1 else paths, skip_bad=self.skip_bad)
        if num is not None:
            opened = opened.subset(num, seed)
        found = features.extract(opened, self.detectors, self.cache, self.batch_size, self.num_workers)
        tagged = {key: replace(x, tags={**x.tags, "source": name}) for key, x in found.items()}
        return Reference(name, opened.digest, features=tagged, warnings=opened.warnings)

    def reference(self, source: Paths | Reference) -> Reference:
        """A reference from a statistics file, a registered name, a feature file, or images; one at hand as it is."""
        if isinstance(source, Reference):
            return source
        paths = _listed(source)
        return (references.load(paths[0]) if len(paths) == 1 else None) or self.read(source)

    def check_settings(self, source: Paths, reference: Reference) -> None:
        """Refuse a reference that lacks a detector or was made otherwise than these work, before images are read."""
        reference.check(self.names)
        if not _feature_file(source):
            for name, detector in self.detectors.items():
                check_tags({**detector.tags, "source": "the images"}, reference.require(name).tags)


def _listed(source: Paths) -> list[str]:
    return [str(source)] if isinstance(source, str | Path) else list(source)


def _feature_file(source: Paths) -> bool:
    paths = _listed(source)
    return len(paths) == 1 and references.holds_features(Path(paths[0]))


def evaluate(
    images: Paths,
    reference: Paths | Reference,
    detectors: Sequence[str] = ("inception",),
    metrics: Sequence[str] = ("fd",),
    *,
    num: int | None = None,
    seed: int | None = None,
    extractor: Extractor | None = None,
    options: Options | None = None,
) -> Results:
    """Measure one image set; the reference is read first, so that a wrong one costs no time.

    Every process must call this; the first gets the values, the others empty results.

    Args:
        images: folder, zip, tar, npz, or a file of features; or a list of such.
        reference: the same, a statistics file, or a registered name such as img512.
        detectors: names of `metrics.detectors.DETECTORS`; or an `extractor` of them with weights, device, cache.
        metrics: names of `metrics.measure.METRICS`; or `options` of them with their settings.
        num, seed: take `num` images, at random when a seed is given, else the first.

    Raises InputError when something cannot be read, found or measured.
    """
    extractor, options = extractor or Extractor(tuple(detectors)), options or Options(tuple(metrics))
    target = extractor.reference(reference)
    check_reference(target, extractor.names, options)
    extractor.check_settings(images, target)
    measured = extractor.read(images, num, seed)
    measured.check(extractor.names)
    found: list[Measurement] = []
    warnings = [*target.warnings, *measured.warnings]
    for name in extractor.names:
        sample, network = measured.features[name], extractor.detectors[name] if options.needs_network else None
        warnings += cautions(name, sample, target)
        found += measure(name, sample, target, options, network)
    return _results(extractor, {"images": measured}, target, found, warnings)


def compare(
    extractor: Extractor, first: Paths, second: Paths, reference: Paths | Reference, num_blocks: int = 10
) -> Results:
    """Whether image set A or B is nearer to the reference, where image i of both has the same seed.

    The error of the difference is the jackknife's over blocks of seeds; the chance of A being nearer is by Student's t.
    """
    from scipy.special import stdtr  # slow to import

    if num_blocks < 2:
        raise InputError(f"the jackknife needs at least 2 blocks, found {num_blocks}")
    target = extractor.reference(reference)
    for source in (first, second):
        extractor.check_settings(source, target)
    sides = {"A": extractor.read(first), "B": extractor.read(second)}
    found: list[Measurement] = []
    warnings = [*target.warnings, *(text for side in sides.values() for text in side.warnings)]
    for name in extractor.names:
        metric = space(name).distance
        for label, side in sides.items():
            distance = frechet_distance(side.require(name), target.require(name))
            found.append(Measurement(metric, name, label, side.features[name].num_images, distance))
            warnings += [f"{label}: {text}" for text in cautions(name, side.features[name], target)]
        a, b = (side.features[name].gather() for side in sides.values())
        difference = paired_difference(a, b, target.require(name), num_blocks)
        value, error = difference.value, difference.standard_error
        chance = float(stdtr(num_blocks - 1, -value / max(error, np.finfo(float).tiny)))
        found.append(Measurement(metric, name, "A - B", len(a), value, error, "jackknife"))
        found.append(Measurement(f"chance of A nearer by {metric}", name, "A - B", len(a), chance))
    return _results(extractor, sides, target, found, warnings)


class Evaluator:
    """Metrics of images that are fed batch by batch, for training loops; one process or several alike."""

    def __init__(
        self, reference: Paths | Reference, extractor: Extractor | None = None, options: Options | None = None
    ) -> None:
        self.extractor, self.options = extractor or Extractor(), options or Options()
        self.reference = self.extractor.reference(reference)
        check_reference(self.reference, self.extractor.names, self.options)
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in self.extractor.names}

    def add(self, batch: Tensor) -> None:
        """Add uint8 images [N, 3, H, W]."""
        for name, detector in self.extractor.detectors.items():
            self.parts[name].append(detector(batch).cpu().numpy())

    def result(self) -> list[Measurement]:
        """Metrics of everything added since the start, in all processes together; empty but in the first."""
        found: list[Measurement] = []
        for name, parts in self.parts.items():
            detector, rank = self.extractor.detectors[name], distributed.rank()
            counts = np.zeros(distributed.world_size())
            counts[rank] = sum(len(part) for part in parts)
            counts = distributed.all_reduce_sum(counts)
            edges = itertools.accumulate((len(part) for part in parts), initial=int(counts[:rank].sum()))
            held = {range(*rows): part for rows, part in zip(itertools.pairwise(edges), parts, strict=True)}
            sample = FeatureSet(int(counts.sum()), detector.dim, held, dict(detector.tags), shared=True)
            found += measure(name, sample, self.reference, self.options, detector)
        return found


def _results(
    extractor: Extractor, sides: dict[str, Reference], target: Reference, found: list[Measurement], warnings: list[str]
) -> Results:
    facts: dict[str, str] = {}
    for label, side in (sides | {"reference": target}).items():
        facts |= {label: side.source, f"{label}_digest": side.digest}
    facts |= environment(torch.device(extractor.device) if extractor.device else distributed.device())
    own = next((package.version for package in distributions(name="autoguidance-repro")), "source tree")
    facts["versions"] = f"autoguidance-repro {own}, {facts['versions']}"
    facts |= {"processes": str(distributed.world_size()), "tf32": "off"}  # every detector sees to the latter
    features = next(iter(sides.values())).features
    tags = {name: {k: v for k, v in features[name].tags.items() if k in ESSENTIAL} for name in extractor.names}
    return Results(found, list(dict.fromkeys(warnings)), facts, tags)
