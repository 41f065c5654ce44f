"""The one engine: every metric of one image set's features against a reference, and what may and should be measured.

A metric is an entry of `METRICS`: a function of a `Sample` that gives values, see `Sample.value`. Whoever adds one
registers it here and its values' names in `metrics.names`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from metrics import distributed, frechet, inception_score, kernel, neighbours
from metrics.detectors import Detector
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.names import qualified
from metrics.references import Reference
from metrics.registry import Registry
from metrics.results import Measurement
from metrics.statistics import ESSENTIAL, Statistics, check_tags

FID_IMAGES, MOST = 50_000, 1_000_000


@dataclass(frozen=True)
class Options:
    """What to measure; raises InputError on a name or number that makes no sense."""

    #: Names of METRICS; `fd` is FID with Inception and FD_DINOv2 with DINOv2.
    metrics: tuple[str, ...] = ("fd",)
    #: Disjoint runs of the images that are also measured on their own, to show the spread; 1 for none.
    num_blocks: int = 1
    #: Blocks of the jackknife that gives `fd` a standard error; 0 for none.
    error_blocks: int = 0
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    k: int = 3
    #: Nearest neighbours of density and coverage, as `k` of precision and recall.
    k_density: int = 5

    def __post_init__(self) -> None:
        if not self.metrics:
            raise InputError(f"no metric is asked for; choose from {', '.join(METRICS)}")
        for name in self.metrics:
            METRICS[name]
        least = {"num_blocks": 1, "error_blocks": 0, "kid_subsets": 1, "kid_subset_size": 2, "k": 1, "k_density": 1}
        for name, bound in least.items():
            if not bound <= getattr(self, name) <= MOST:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {bound}, and at most {MOST}")
        if self.error_blocks == 1:
            raise InputError("error_blocks is 1, but a jackknife leaves out one of at least 2 blocks")

    @property
    def needs_reference_features(self) -> list[str]:
        """Those of the metrics that statistics of the reference are not enough for."""
        return sorted(name for name in self.metrics if METRICS[name].needs_reference_features)

    @property
    def needs_network(self) -> bool:
        """Whether a metric asks the detector for more than features."""
        return any(METRICS[name].needs_network for name in self.metrics)


@dataclass(frozen=True)
class Sample:
    """A run of images, `subset` being all or a block, as a metric sees it, with statistics `target` of the reference.

    Features [N, D], and `real` ones [M, D] of the reference, are empty where no metric needs them. `network` is the
    detector itself, for metrics that ask it for more than features.
    """

    detector: str
    subset: str
    statistics: Statistics
    features: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    target: Statistics
    real: NDArray[np.float32]
    real_labels: NDArray[np.int64] | None
    options: Options
    network: Detector | None

    def value(
        self,
        name: str,
        value: float,
        error: float | None = None,
        error_kind: str = "",
        subset: str = "",
        count: int = 0,
    ) -> Measurement:
        """What a metric gives: a value called as in `metrics.names.VALUES`, of the whole sample unless it says else."""
        count = count or self.statistics.num_images
        return Measurement(name, self.detector, subset or self.subset, count, value, error, error_kind)

    @cached_property
    def neighbours(self) -> dict[str, float]:
        """Every neighbour metric that the options ask for, in one pass over the distances."""
        o = self.options
        k = o.k if "precision_recall" in o.metrics else None
        k_density = o.k_density if "density_coverage" in o.metrics else None
        return neighbours.neighbour_metrics(self.real, self.features, k, k_density)


@dataclass(frozen=True)
class Metric:
    """An entry of METRICS; without features the moments are enough. `values` name what it gives for a whole sample."""

    measure: Callable[[Sample], Iterable[Measurement]]
    needs_features: bool = True
    needs_reference_features: bool = False
    needs_network: bool = False
    values: tuple[str, ...] = ()


def measure(
    name: str, sample: FeatureSet, reference: Reference, options: Options, network: Detector | None = None
) -> list[Measurement]:
    """Every metric of the options on features of detector `name`; of shared features, in the first process only."""
    target, count = reference.require(name), sample.num_images
    check_tags(sample.tags, target.tags)
    kinds, blocks = [METRICS[metric] for metric in options.metrics], options.num_blocks
    edges = [round(i * count / blocks) for i in range(blocks + 1)]
    ranges = {"all": (0, count)}
    ranges |= {f"block {i + 1}/{blocks}": (edges[i], edges[i + 1]) for i in range(blocks) if blocks > 1}
    # Collective: every process takes part in sums and gathering, the first one measures.
    moments = {label: sample.statistics(*rows) for label, rows in ranges.items()}
    nothing = np.zeros((0, sample.dim), np.float32)
    gathered = sample.gather() if options.error_blocks or any(kind.needs_features for kind in kinds) else nothing
    other = reference.features[name] if options.needs_reference_features else FeatureSet.of(nothing, {})
    real = other.gather()
    if sample.shared and distributed.rank() != 0:
        return []
    found: list[Measurement] = []
    for run, (i, j) in ranges.items():
        labels = None if sample.labels is None else sample.labels[i:j]
        part = Sample(name, run, moments[run], gathered[i:j], labels, target, real, other.labels, options, network)
        found += [value for kind in kinds for value in kind.measure(part)]
    return found


def check_reference(reference: Reference, names: Sequence[str], options: Options) -> Reference:
    """The reference; raises InputError when it cannot give what the options ask of the detectors `names`."""
    wanted, lacking = options.needs_reference_features, set(names) - reference.check(names).features.keys()
    if wanted and lacking:
        lack = f"{reference.source}: holds statistics only, and {', '.join(wanted)} need features"
        raise InputError(f"{lack}; give the reference's images or a file of `metrics features`")
    if "inception_score" in options.metrics and list(names) != ["inception"]:
        raise InputError("the Inception score is defined by Inception's logits; choose the detector inception alone")
    return reference


def cautions(name: str, sample: FeatureSet, reference: Reference) -> list[str]:
    """What a reader of the values of detector `name` should know."""
    count, few = sample.num_images, f"{sample.num_images} images for {sample.dim} features of {name}"
    unknown = [tag for tag in ESSENTIAL if tag not in reference.require(name).tags]
    texts = {
        f"FID of {count} images: published values use {FID_IMAGES}, and FID falls as the number grows": (
            name == "inception" and count != FID_IMAGES
        ),
        f"{few}: the covariance is singular and the distance mostly bias": count <= sample.dim,
        f"{reference.source}: does not say {', '.join(unknown)} of {name}, so agreement is unchecked": unknown,
    }
    return [text for text, applies in texts.items() if applies]


def value_names(metrics: Sequence[str], detector: str) -> list[str]:
    """Full names of what the metrics give in a detector's features, as result tables have them."""
    return [qualified(value, detector) for metric in metrics for value in METRICS[metric].values]


def _fd(sample: Sample) -> Iterable[Measurement]:
    blocks, distance = sample.options.error_blocks, frechet.frechet_distance(sample.statistics, sample.target)
    error = frechet.frechet_with_error(sample.features, sample.target, blocks).standard_error if blocks else None
    yield sample.value(qualified("fd", sample.detector), distance, error, "jackknife")


def _fd_infinity(sample: Sample) -> Iterable[Measurement]:
    estimate = frechet.fd_infinity(sample.features, sample.target)
    yield sample.value(qualified("fd_infinity", sample.detector), *estimate, "jackknife")


def _kid(sample: Sample) -> Iterable[Measurement]:
    count, size = sample.options.kid_subsets, sample.options.kid_subset_size
    kid = kernel.kernel_distance(sample.real, sample.features, count, size)
    yield sample.value("kid", *kid, "deviation over subsets")


def _of_neighbours(*values: str) -> Metric:
    return Metric(lambda s: [s.value(x, s.neighbours[x]) for x in values], needs_reference_features=True, values=values)


def _inception_score(sample: Sample) -> Iterable[Measurement]:
    classify = getattr(sample.network, "logits", None)
    if classify is None:
        raise InputError("the Inception score asks Inception itself for logits; measure images with that detector")
    score = inception_score.inception_score(classify(torch.from_numpy(sample.features)))
    yield sample.value("inception_score", *score, "deviation over splits")


def _per_class(sample: Sample) -> Iterable[Measurement]:
    if sample.subset != "all":
        return
    if sample.labels is None or sample.real_labels is None:
        source = (sample.statistics if sample.labels is None else sample.target).tags.get("source", "the features")
        raise InputError(f"{source}: per-class distances need labels; add a dataset.json")
    sides = sample.features, sample.labels, sample.real, sample.real_labels
    for label, distance in frechet.per_class_distances(*sides).items():
        count = int((sample.labels == label).sum())
        yield sample.value(qualified("fd", sample.detector), distance, subset=f"class {label}", count=count)


METRICS: Registry[Metric] = Registry(
    "metric",
    fd=Metric(_fd, needs_features=False, values=("fd",)),
    fd_infinity=Metric(_fd_infinity, values=("fd_infinity",)),
    kid=Metric(_kid, needs_reference_features=True, values=("kid",)),
    precision_recall=_of_neighbours("precision", "recall"),
    density_coverage=_of_neighbours("density", "coverage"),
    inception_score=Metric(_inception_score, needs_network=True, values=("inception_score",)),
    per_class=Metric(_per_class, needs_reference_features=True),
)
