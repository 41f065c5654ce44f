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
import torch
from scipy.stats import t as student_t
from torch import Tensor

from metrics import detectors as registry
from metrics import distributed, features, images, references
from metrics.detectors import Detector
from metrics.features import FeatureSet, Part
from metrics.files import InputError
from metrics.frechet import (
    Gaussian,
    fd_infinity,
    frechet_distance,
    frechet_with_error,
    paired_difference,
    per_class_distances,
)
from metrics.inception_score import inception_score
from metrics.kernel import kernel_distance
from metrics.neighbours import density_coverage, neighbour_metrics, precision_recall
from metrics.references import Reference
from metrics.report import Measurement, Report, environment
from metrics.statistics import ESSENTIAL, check_tags

FD_NAMES = {"inception": "fid", "dinov2": "fd_dinov2"}
METRICS = ("fd", "fd_infinity", "kid", "precision_recall", "density_coverage", "inception_score", "per_class")
NEEDS_REFERENCE_FEATURES = frozenset({"kid", "precision_recall", "density_coverage", "per_class"})
FID_IMAGES = 50_000


@dataclass(frozen=True)
class Options:
    """What to measure; raises InputError on a name or number that makes no sense."""

    metrics: tuple[str, ...] = ("fd",)
    """Any of METRICS; `fd` is FID with Inception and FD_DINOv2 with DINOv2."""
    num_blocks: int = 1
    """Disjoint runs of the images that are also measured on their own, to show the spread; 1 for none."""
    error_blocks: int = 0
    """Blocks of the jackknife that gives `fd` a standard error; 0 for none."""
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    k: int = 3
    """Nearest neighbours of precision and recall."""
    k_density: int = 5
    """Nearest neighbours of density and coverage."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise InputError(f"unknown metric '{', '.join(unknown)}': choose from {', '.join(METRICS)}")
        for name, least in {"num_blocks": 1, "error_blocks": 0, "kid_subsets": 1, "kid_subset_size": 2}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.error_blocks == 1:
            raise InputError("error_blocks is 1, but a jackknife leaves out one of at least 2 blocks")


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
        paths = [str(source)] if isinstance(source, str | Path) else list(source)
        if len(paths) == 1 and any(key.endswith("/features") for key in references.npz_keys(Path(paths[0]))):
            if num is not None:
                raise InputError(f"{paths[0]}: a subset is chosen when features are extracted, not from a feature file")
            found = references.load(paths[0])
            assert found is not None
            self._require(found.features, paths[0])
            return Measured(found.source, found.digest, {name: found.features[name] for name in self.names})
        opened = images.open_images(paths[0] if len(paths) == 1 else paths, skip_bad=self.skip_bad)
        if num is not None:
            opened = opened.subset(num, seed)
        sets = features.extract(opened, self.detectors, self.cache, self.batch_size, self.num_workers)
        name = ", ".join(paths)
        return Measured(name, opened.digest, {key: x.with_source(name) for key, x in sets.items()}, opened.warnings)

    def reference(self, source: str | Path | Sequence[str]) -> Reference:
        """A reference from a statistics file, a registered name, a feature file, or images."""
        single = source if isinstance(source, str | Path) else source[0] if len(source) == 1 else None
        found = None if single is None else references.load(single)
        if found is None:
            measured = self.read(source)
            found = Reference.of(measured.source, measured.digest, measured.sets, measured.warnings)
        for name in self.names:
            found.require(name)
        return found

    def _require(self, sets: Mapping[str, FeatureSet], path: str) -> None:
        for name in self.names:
            if name not in sets:
                raise InputError(
                    f"{path}: has no features of detector '{name}', only of {sorted(sets)}; "
                    "choose one of those or extract again with `metrics features`"
                )


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
    _check_reference(target, extractor.names, options)
    measured = extractor.read(source, num, seed)
    found: list[Measurement] = []
    warnings = [*target.warnings, *measured.warnings]
    for name in extractor.names:
        warnings += _warnings(name, measured.sets[name], target)
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
    a, b = extractor.read(first), extractor.read(second)
    found: list[Measurement] = []
    warnings = [*target.warnings, *a.warnings, *b.warnings]
    for name in extractor.names:
        gaussian, metric = Gaussian.of(target.require(name)), fd_name(name)
        for label, measured in (("A", a), ("B", b)):
            warnings += [f"{label}: {text}" for text in _warnings(name, measured.sets[name], target)]
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


def measure(
    name: str, sample: FeatureSet, reference: Reference, options: Options, detector: Detector | None = None
) -> list[Measurement]:
    """Every metric of the options on features of detector `name`; empty but in the first process.

    `detector` is needed for the Inception score only, whose logits it makes from the features.
    """
    stats = reference.require(name)
    check_tags(sample.tags, stats.tags)
    count = sample.num_images
    edges = [round(i * count / options.num_blocks) for i in range(options.num_blocks + 1)]
    ranges = {"all": (0, count)}
    if options.num_blocks > 1:
        ranges |= {f"block {i + 1}/{options.num_blocks}": (edges[i], edges[i + 1]) for i in range(options.num_blocks)}
    # Collective: every process takes part in sums and gathering, the first one measures.
    moments = {label: sample.statistics(*rows) for label, rows in ranges.items()} if "fd" in options.metrics else {}
    gathered = sample.gather() if set(options.metrics) - {"fd"} or options.error_blocks else None
    wants_real = bool(NEEDS_REFERENCE_FEATURES & set(options.metrics))
    real = reference.features[name].gather() if wants_real else None
    if distributed.rank() != 0:
        return []
    gaussian = Gaussian.of(stats)
    found = []
    for label, (start, stop) in ranges.items():
        if label in moments:
            error = None
            if options.error_blocks and gathered is not None:
                error = frechet_with_error(gathered[start:stop], gaussian, options.error_blocks).standard_error
            value = frechet_distance(moments[label], gaussian)
            found.append(Measurement(fd_name(name), name, label, stop - start, value, error, "jackknife"))
        if gathered is not None:
            block = gathered[start:stop]
            found += _from_features(name, label, block, real, gaussian, options)
            if "inception_score" in options.metrics:
                found += _inception_score(name, label, block, detector)
    if "per_class" in options.metrics and gathered is not None and real is not None:
        found += _per_class(name, sample, gathered, reference.features[name], real)
    return found


def fd_name(detector: str) -> str:
    """What the Fréchet distance in a detector's features is called."""
    return FD_NAMES.get(detector, f"fd_{detector}")


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
        _check_reference(self.reference, self.extractor.names, self.options)
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


def _from_features(
    name: str, label: str, block: np.ndarray, real: np.ndarray | None, gaussian: Gaussian, options: Options
) -> list[Measurement]:
    count, wanted, found = len(block), set(options.metrics), []
    if "fd_infinity" in wanted:
        estimate = fd_infinity(block, gaussian)
        metric = f"{fd_name(name)}_infinity"
        found.append(Measurement(metric, name, label, count, estimate.value, estimate.standard_error, "jackknife"))
    if real is None:
        return found
    if "kid" in wanted:
        kid = kernel_distance(real, block, options.kid_subsets, options.kid_subset_size)
        found.append(Measurement("kid", name, label, count, kid.value, kid.spread, "deviation over subsets"))
    if {"precision_recall", "density_coverage"} <= wanted:
        values = neighbour_metrics(real, block, options.k, options.k_density)
    elif "precision_recall" in wanted:
        values = precision_recall(real, block, options.k)
    elif "density_coverage" in wanted:
        values = density_coverage(real, block, options.k_density)
    else:
        values = {}
    return found + [Measurement(metric, name, label, count, value) for metric, value in values.items()]


def _inception_score(name: str, label: str, block: np.ndarray, detector: Detector | None) -> list[Measurement]:
    classify = getattr(detector, "logits", None)
    if classify is None:
        raise InputError(
            f"the weights of {name} lack the final layer, so there are no logits for the Inception score; "
            "use weights that hold it, such as pt_inception-2015-12-05"
        )
    score = inception_score(classify(torch.from_numpy(block)))
    return [Measurement("inception_score", name, label, len(block), score.value, score.spread, "deviation over splits")]


def _per_class(
    name: str, sample: FeatureSet, gathered: np.ndarray, reference: FeatureSet, real: np.ndarray
) -> list[Measurement]:
    for side, labels in (("images", sample.labels), ("reference", reference.labels)):
        if labels is None:
            raise InputError(
                f"{(sample if side == 'images' else reference).tags.get('source', side)}: per-class distances need "
                "labels; add a dataset.json"
            )
    assert sample.labels is not None
    assert reference.labels is not None
    distances = per_class_distances(gathered, sample.labels, real, reference.labels)
    counts = {label: int((sample.labels == label).sum()) for label in distances}
    return [Measurement(fd_name(name), name, f"class {k}", counts[k], value) for k, value in distances.items()]


def _check_reference(reference: Reference, names: Sequence[str], options: Options) -> None:
    wanted = sorted(NEEDS_REFERENCE_FEATURES & set(options.metrics))
    for name in names:
        reference.require(name)
        if wanted and name not in reference.features:
            raise InputError(
                f"{reference.source}: holds statistics only, and {', '.join(wanted)} need features; give the "
                "reference's images or a file of `metrics features`"
            )
    if "inception_score" in options.metrics and list(names) != ["inception"]:
        raise InputError("the Inception score is defined by Inception's logits; choose the detector inception alone")


def _warnings(name: str, sample: FeatureSet, reference: Reference) -> list[str]:
    found = []
    if name == "inception" and sample.num_images != FID_IMAGES:
        found.append(
            f"FID of {sample.num_images} images: published values use {FID_IMAGES}, and FID falls as the number grows"
        )
    if sample.num_images <= sample.dim:
        found.append(
            f"{sample.num_images} images for {sample.dim} features of {name}: the covariance is singular and the "
            "distance mostly bias"
        )
    tags = reference.require(name).tags
    unchecked = [tag for tag in ESSENTIAL if tag not in tags]
    if unchecked:
        found.append(f"{reference.source}: does not say {', '.join(unchecked)} of {name}, so agreement is unchecked")
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
