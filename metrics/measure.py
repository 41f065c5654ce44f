"""Every metric of one image set's features against a reference, and what may and should be measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metrics import distributed
from metrics.detectors import Detector
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.frechet import Gaussian, fd_infinity, frechet_distance, frechet_with_error, per_class_distances
from metrics.inception_score import inception_score
from metrics.kernel import kernel_distance
from metrics.neighbours import density_coverage, neighbour_metrics, precision_recall
from metrics.references import Reference
from metrics.results import Measurement
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


def check_reference(reference: Reference, names: Sequence[str], options: Options) -> None:
    """Raise InputError when the reference cannot give what the options ask of the detectors `names`."""
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


def cautions(name: str, sample: FeatureSet, reference: Reference) -> list[str]:
    """What a reader of the values of detector `name` should know."""
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
