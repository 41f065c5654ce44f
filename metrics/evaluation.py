"""From images or features to measured values: what the command line, pipelines and training loops call.

report = evaluate(Extractor(["inception"]), "samples/", "img512")     # files
evaluator = Evaluator("img512")                                       # inside a training loop
evaluator.add(batch)                                                  # uint8 [N, 3, H, W], any number of times
values = {m.metric: m.value for m in evaluator.result()}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t
from torch import Tensor

from metrics import detectors as registry
from metrics import distributed, features, images, references
from metrics.detectors import Detector
from metrics.features import FeatureSet, Part
from metrics.files import InputError, sha256_file
from metrics.frechet import Gaussian, frechet_distance, paired_difference
from metrics.measure import Options, cautions, check_reference, fd_name, measure
from metrics.references import Reference
from metrics.results import Measurement, Report, environment
from metrics.statistics import ESSENTIAL, check_tags


@dataclass(frozen=True)
class Measured:
    """An image set as its features under each detector."""

    source: str
    digest: str
    sets: Mapping[str, FeatureSet]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Extractor:
    """How images become features: detectors by name, and the settings of reading and caching.

    Detectors are loaded when the first image set needs them; feature files need none.
    """

    names: Sequence[str] = ("inception",)
    weights: Mapping[str, Path] = field(default_factory=dict)
    device: str | None = None
    cache: Path | None = None
    batch_size: int = 64
    num_workers: int | None = None
    skip_bad: bool = False
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of single detectors, such as {"dinov2": {"resize": "pil"}}."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1")
        stray = sorted(set(self.weights) - set(self.names))
        if stray:
            raise InputError(f"weights given for '{stray[0]}', which is not among the detectors {list(self.names)}")

    @cached_property
    def detectors(self) -> dict[str, Detector]:
        device = self.device or str(distributed.device())
        return {
            name: registry.load(name, self.weights.get(name), device, **self.settings.get(name, {}))
            for name in self.names
        }

    def read(self, source: str | Path | Sequence[str], num: int | None = None, seed: int | None = None) -> Measured:
        """Features of an image set (anything `open_images` reads, or a list of such) or of a feature file.

        num, seed: take `num` images, at random when a seed is given, else the first in sorted order.
        """
        paths = _paths(source)
        if _is_feature_file(paths):
            if num is not None:
                raise InputError(f"{paths[0]}: a subset is chosen when features are extracted, not from a feature file")
            sets = features.load(paths[0])
            self._require(sets, paths[0])
            return Measured(paths[0], sha256_file(paths[0]), {name: sets[name] for name in self.names})
        opened = images.open_images(paths[0] if len(paths) == 1 else paths, skip_bad=self.skip_bad)
        if num is not None:
            opened = opened.subset(num, seed)
        sets = features.extract(opened, self.detectors, self.cache, self.batch_size, self.num_workers)
        name = ", ".join(paths)
        return Measured(name, opened.digest, {key: x.with_source(name) for key, x in sets.items()}, opened.warnings)

    def reference(self, source: str | Path | Sequence[str]) -> Reference:
        """A reference from a statistics file, a registered name, a feature file, or images."""
        paths = _paths(source)
        found = references.load(paths[0]) if len(paths) == 1 else None
        if found is None:
            measured = self.read(source)
            found = Reference.of(measured.source, measured.digest, measured.sets, measured.warnings)
        for name in self.names:
            found.require(name)
        return found

    def check_settings(self, source: str | Path | Sequence[str], reference: Reference) -> None:
        """Refuse a reference made otherwise than these detectors work, before images are read."""
        if not _is_feature_file(_paths(source)):
            for name, detector in self.detectors.items():
                check_tags({**detector.tags, "source": "the images"}, reference.require(name).tags)

    def _require(self, sets: Mapping[str, FeatureSet], path: str) -> None:
        for name in self.names:
            if name not in sets:
                raise InputError(
                    f"{path}: has no features of detector '{name}', only of {sorted(sets)}; "
                    "choose one of those or extract again with `metrics features`"
                )


def _paths(source: str | Path | Sequence[str]) -> list[str]:
    return [str(source)] if isinstance(source, str | Path) else list(source)


def _is_feature_file(paths: Sequence[str]) -> bool:
    return len(paths) == 1 and any(key.endswith("/features") for key in references.npz_keys(Path(paths[0])))


def evaluate(
    extractor: Extractor,
    source: str | Path | Sequence[str],
    reference: str | Path | Sequence[str] | Reference,
    options: Options | None = None,
    num: int | None = None,
    seed: int | None = None,
) -> Report:
    """Measure one image set; the reference is read first, so that a wrong one costs no time.

    In several processes every one must call this; the first gets the values, the others an empty report.
    """
    options = options or Options()
    target = reference if isinstance(reference, Reference) else extractor.reference(reference)
    check_reference(target, extractor.names, options)
    extractor.check_settings(source, target)
    measured = extractor.read(source, num, seed)
    found: list[Measurement] = []
    warnings = [*target.warnings, *measured.warnings]
    for name in extractor.names:
        warnings += cautions(name, measured.sets[name], target)
        detector = extractor.detectors[name] if "inception_score" in options.metrics else None
        found += measure(name, measured.sets[name], target, options, detector)
    return _report(extractor, {"images": measured}, target, found, warnings)


def compare(
    extractor: Extractor,
    first: str | Path | Sequence[str],
    second: str | Path | Sequence[str],
    reference: str | Path | Sequence[str] | Reference,
    num_blocks: int = 10,
) -> Report:
    """Whether image set A or B is nearer to the reference, where image i of both has the same seed.

    The error of the difference is the jackknife's over blocks of seeds; `chance` is that of A being nearer,
    by Student's t with num_blocks - 1 degrees of freedom.
    """
    if num_blocks < 2:
        raise InputError(f"the jackknife needs at least 2 blocks, found {num_blocks}")
    target = reference if isinstance(reference, Reference) else extractor.reference(reference)
    for source in (first, second):
        extractor.check_settings(source, target)
    a, b = extractor.read(first), extractor.read(second)
    found: list[Measurement] = []
    warnings = [*target.warnings, *a.warnings, *b.warnings]
    for name in extractor.names:
        gaussian, metric = Gaussian.of(target.require(name)), fd_name(name)
        for label, measured in (("A", a), ("B", b)):
            warnings += [f"{label}: {text}" for text in cautions(name, measured.sets[name], target)]
            distance = frechet_distance(measured.sets[name].statistics(), gaussian)
            found.append(Measurement(metric, name, label, measured.sets[name].num_images, distance))
        difference = paired_difference(a.sets[name].gather(), b.sets[name].gather(), gaussian, num_blocks)
        count = a.sets[name].num_images
        found.append(
            Measurement(metric, name, "A - B", count, difference.value, difference.standard_error, "jackknife")
        )
        score = -difference.value / max(difference.standard_error, np.finfo(float).tiny)
        chance = float(student_t.cdf(score, num_blocks - 1))
        found.append(Measurement(f"chance of A nearer by {metric}", name, "A - B", count, chance))
    return _report(extractor, {"A": a, "B": b}, target, found, warnings)


class Evaluator:
    """Metrics of images that are fed batch by batch, for training loops; one process or several alike."""

    def __init__(
        self,
        reference: str | Path | Reference,
        extractor: Extractor | None = None,
        options: Options | None = None,
    ) -> None:
        self.extractor, self.options = extractor or Extractor(), options or Options()
        self.reference = reference if isinstance(reference, Reference) else self.extractor.reference(reference)
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
            detector = self.extractor.detectors[name]
            counts = np.zeros(distributed.world_size())
            counts[distributed.rank()] = sum(len(part) for part in parts)
            counts = distributed.all_reduce_sum(counts)
            start = int(counts[: distributed.rank()].sum())
            held = []
            for part in parts:
                held.append(Part(start, len(part), part))
                start += len(part)
            sample = FeatureSet(int(counts.sum()), detector.dim, held, dict(detector.tags))
            found += measure(name, sample, self.reference, self.options, detector)
        return found


def _report(
    extractor: Extractor,
    sources: Mapping[str, Measured],
    reference: Reference,
    found: Sequence[Measurement],
    warnings: Sequence[str],
) -> Report:
    facts: dict[str, str] = {}
    for label, measured in sources.items():
        facts |= {label: measured.source, f"{label}_digest": measured.digest}
    facts |= {"reference": reference.source, "reference_digest": reference.digest}
    first = next(iter(sources.values()))
    tags = {name: {k: v for k, v in first.sets[name].tags.items() if k in ESSENTIAL} for name in extractor.names}
    return Report(found, list(dict.fromkeys(warnings)), facts | environment(extractor.device), tags)
