"""The one engine: every metric of one image set's features against a reference, and what may and should be measured.

A metric is an entry of `METRICS`: a function of a `Sample` that gives values, see `Sample.value`. Whoever adds one
registers it here and its values' names in `metrics.names`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metrics import adm, distributed, frechet, inception_score, kernel, memorisation, neighbours, vendi
from metrics.detectors import Detector
from metrics.features import FeatureSet
from metrics.files import InputError, on_one_line
from metrics.names import EVERY, qualified, requested
from metrics.references import Reference
from metrics.registry import Registry
from metrics.results import Failure, Measurement
from metrics.statistics import ESSENTIAL, Statistics, check_tags

FID_IMAGES, MOST = 50_000, 1_000_000
#: Role of a set to compare with besides the reference -> what is said of a metric where there is none.
LACKING = {
    "train": "compares with the training images, and the reference does not hold them all; name them with --train",
    "test": "compares with images that the model was not trained on; name such a held-out set with --test",
}


@dataclass(frozen=True)
class Options:
    """What to measure; raises InputError on a name or number that makes no sense."""

    #: Names of METRICS, or what `metrics.names.requested` takes for some; `fd` is FID with Inception and FD_DINOv2 with
    #: DINOv2; `all` asks for whatever can be measured.
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
    #: Detectors in whose features metrics that name none are measured; empty: any.
    otherwise: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.metrics:
            raise InputError(f"no metric is asked for; choose from {', '.join(METRICS)}")
        for _ in self._requests():
            pass  # which refuses unknown names
        least = {"num_blocks": 1, "error_blocks": 0, "kid_subsets": 1, "kid_subset_size": 2, "k": 1, "k_density": 1}
        for name, bound in least.items():
            if not bound <= getattr(self, name) <= MOST:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {bound}, and at most {MOST}")
        if self.error_blocks == 1:
            raise InputError("error_blocks is 1, but a jackknife leaves out one of at least 2 blocks")

    @property
    def needs_reference_features(self) -> list[str]:
        """Those of the metrics asked for by name that statistics of the reference are not enough for."""
        return sorted({x.metric for x in self._requests() if x.by_name and METRICS[x.metric].needs_reference_features})

    def uses_reference_features(self, detector: str) -> bool:
        """Whether any of the metrics asked for in a detector's features, be it as one of all, needs the reference's."""
        return any(METRICS[name].needs_reference_features for name in self.of(detector))

    @property
    def needs_beside(self) -> set[str]:
        """Roles of the sets that the metrics compare with besides the reference, see `Reference.beside`."""
        return {role for x in self._requests() for role in METRICS[x.metric].needs_beside}

    @property
    def needs_network(self) -> bool:
        """Whether a metric that is asked for by name asks the detector for more than features."""
        return any(x.by_name and METRICS[x.metric].needs_network for x in self._requests())

    def bound(self, names: Iterable[str]) -> "Options":
        """The same, with what names no detector asked for in the features of all of `names`, unless that is settled."""
        return self if self.otherwise else replace(self, otherwise=tuple(names))

    @property
    def detectors(self) -> tuple[str, ...]:
        """The detectors that metrics name, in that order."""
        return tuple(dict.fromkeys(x.detector for x in self._requests() if x.detector))

    def of(self, detector: str) -> tuple[str, ...]:
        """Names of METRICS that are asked for in a detector's features, in the order in which they are asked for."""
        return tuple(dict.fromkeys(x.metric for x in self._requests() if x.detector in ("", detector)))

    def is_optional(self, metric: str, detector: str) -> bool:
        """Whether one of METRICS is asked for in a detector's features as one of all, so that it may be left out."""
        asked = [x for x in self._requests() if x.metric == metric and x.detector in ("", detector)]
        return not any(x.by_name for x in asked)

    def _requests(self) -> Iterator["_Request"]:
        for asked in self.metrics:
            names, detector = requested(asked, METRICS)
            by_name = asked.lower() not in (EVERY, f"{EVERY}_{detector}".lower())
            for name in names:
                only = METRICS[name].detector
                if by_name and only and detector not in ("", only):
                    raise InputError(f"{name} is defined in features of {only} only, not of {detector}; ask for {name}")
                for place in (detector,) if detector else (only,) if only and by_name else self.otherwise or ("",):
                    if not only or place in ("", only):
                        yield _Request(name, only or place, by_name)


class _Request(NamedTuple):
    """One of METRICS in the features of a detector, or where that is empty of any; by its name, or as one of all."""

    metric: str
    detector: str
    by_name: bool


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
    #: Features [L, D] of the sets that a metric needs besides, by role.
    beside: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

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
class Prospect:
    """What is known of a measurement in a detector's features before any are made; 0, None: not known (yet)."""

    detector: str
    options: Options
    #: Images of the set.
    count: int
    #: Of the reference, by name: how many images, whether their features are to be had, and statistics.
    source: str
    others: int
    has_features: bool
    target: Statistics | None = None
    #: Images of the sets to compare with besides, by role.
    beside: Mapping[str, int] = field(default_factory=dict)
    #: Whether classes are known on both sides.
    is_labelled: bool = False
    network: Detector | None = None
    #: Whether there will be no other network than this.
    is_loaded: bool = False

    @property
    def run(self) -> int:
        """Images of the smallest run that is measured."""
        return self.count // self.options.num_blocks


def nothing_against(_: Prospect) -> None:
    """A metric that can always be measured."""


@dataclass(frozen=True)
class Metric:
    """An entry of METRICS; without features the moments are enough. `values` name what it gives for a whole sample."""

    measure: Callable[[Sample], Iterable[Measurement]]
    needs_features: bool = True
    needs_reference_features: bool = False
    needs_network: bool = False
    values: tuple[str, ...] = ()
    #: Roles of the sets that it compares with besides the reference.
    needs_beside: tuple[str, ...] = ()
    #: The only detector in whose features it is defined.
    detector: str = ""
    #: One line for people.
    about: str = ""
    #: Raises InputError where it cannot be measured.
    check: Callable[[Prospect], None] = nothing_against


def refusals(prospect: Prospect) -> dict[str, InputError]:
    """Those of METRICS that are asked for and cannot be measured, with the reason; InputError if none can be."""
    refused: dict[str, InputError] = {}
    if prospect.run < 2:
        raise InputError(f"a covariance needs at least 2 images, found {prospect.run}; give more images")
    for name in prospect.options.of(prospect.detector):
        try:
            if METRICS[name].needs_reference_features and not prospect.has_features:
                lack = f"{prospect.source}: holds statistics only, and {name} need features"
                raise InputError(f"{lack}; give the reference's images or a file of `metrics features`")
            for role in METRICS[name].needs_beside:
                if role not in prospect.beside:
                    raise InputError(f"{name} {LACKING[role]}")
            METRICS[name].check(prospect)
        except InputError as err:
            refused[name] = err
    return refused


def measure(
    name: str,
    sample: FeatureSet,
    reference: Reference,
    options: Options,
    network: Detector | None = None,
    failures: list[Failure] | None = None,
) -> list[Measurement]:
    """Every metric of the options on features of detector `name`; of shared features, in the first process only.

    What is asked for and cannot be measured is an InputError before anything is. A metric that fails nevertheless is
    added to `failures`, and the others are measured; without such a list its error is raised.
    """
    target, count = reference.require(name), sample.num_images
    check_tags(sample.tags, target.tags)
    other = reference.features.get(name)
    labelled = sample.labels is not None and other is not None and other.labels is not None
    beside = {role: x for role, x in reference.compared(name).items() if role in options.needs_beside}
    counts = {role: x.num_images for role, x in beside.items()}
    others = target.num_images if other is None else other.num_images
    known = name, options, count, reference.source, others, other is not None, target, counts, labelled
    refused = refusals(Prospect(*known, network, is_loaded=True))
    for metric, refusal in refused.items():
        if failures is not None:
            failures.append(Failure(metric, name, "all", str(refusal)))
        elif not options.is_optional(metric, name):
            raise refusal
    names = tuple(metric for metric in options.of(name) if metric not in refused)
    if not names:
        return []
    options = replace(options, metrics=names)
    kinds, blocks = [METRICS[metric] for metric in names], options.num_blocks
    edges = [round(i * count / blocks) for i in range(blocks + 1)]
    ranges = {"all": (0, count)}
    ranges |= {f"block {i + 1}/{blocks}": (edges[i], edges[i + 1]) for i in range(blocks) if blocks > 1}
    # Collective: every process takes part in sums and gathering, the first one measures.
    moments = {label: sample.statistics(*rows) for label, rows in ranges.items()}
    nothing = np.zeros((0, sample.dim), np.float32)
    gathered = sample.gather() if options.error_blocks or any(kind.needs_features for kind in kinds) else nothing
    other = other if other is not None and options.needs_reference_features else FeatureSet.of(nothing, {})
    real = other.gather()
    for side in beside.values():
        check_tags(sample.tags, side.tags)
    compared = {role: side.gather() for role, side in beside.items() if role in options.needs_beside}
    if sample.shared and distributed.rank() != 0:
        return []
    found: list[Measurement] = []
    for run, (i, j) in ranges.items():
        labels = None if sample.labels is None else sample.labels[i:j]
        sides = target, real, other.labels
        part = Sample(name, run, moments[run], gathered[i:j], labels, *sides, options, network, compared)
        for metric, kind in zip(names, kinds, strict=True):
            try:
                found += kind.measure(part)
            except Exception as err:
                if failures is None or "REPRO_DEBUG" in os.environ:
                    raise
                failures.append(Failure(metric, name, run, said(err)))
    return found


def said(err: Exception) -> str:
    """Why something failed, on one line."""
    unexpected = "" if isinstance(err, InputError | MemoryError) else f"unexpected {type(err).__name__}: "
    return unexpected + on_one_line(str(err) or "not enough memory")


def check_reference(reference: Reference, names: Sequence[str], options: Options) -> Reference:
    """The reference; raises InputError when it cannot give what the options ask of the detectors `names`."""
    wanted, lacking = options.needs_reference_features, set(names) - reference.check(names).features.keys()
    if wanted and lacking:
        lack = f"{reference.source}: holds statistics only, and {', '.join(wanted)} need features"
        raise InputError(f"{lack}; give the reference's images or a file of `metrics features`")
    if unasked := sorted({*options.detectors} - {*names}):
        raise InputError(
            f"{', '.join(options.metrics)} need the detector {unasked[0]}, which is not among {list(names)}"
        )
    return reference


def check_beside(given: Iterable[str], options: Options) -> None:
    """Raise InputError where a set is given in a role that nothing asks for, before it is read."""
    for role in sorted(set(given) - options.needs_beside):
        takers = " and ".join(name for name, metric in METRICS.items() if role in metric.needs_beside)
        raise InputError(f"--{role} is given, which only {takers} can compare with; add it to --metrics")


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


def _check_fd(p: Prospect) -> None:
    if p.target is not None:
        _ = p.target.factor  # which refuses what is no covariance
    if p.options.error_blocks:
        frechet.check_blocks(p.run, p.options.error_blocks)


def _fd(sample: Sample) -> Iterable[Measurement]:
    blocks, distance = sample.options.error_blocks, frechet.frechet_distance(sample.statistics, sample.target)
    error = frechet.frechet_with_error(sample.features, sample.target, blocks).standard_error if blocks else None
    yield sample.value(qualified("fd", sample.detector), distance, error, "jackknife")


def _fd_infinity(sample: Sample) -> Iterable[Measurement]:
    estimate = frechet.fd_infinity(sample.features, sample.target)
    yield sample.value(qualified("fd_infinity", sample.detector), *estimate, "jackknife")


def _check_kid(p: Prospect) -> None:
    kernel.check_subsets(p.others, p.run, p.options.kid_subset_size)


def _kid(sample: Sample) -> Iterable[Measurement]:
    count, size = sample.options.kid_subsets, sample.options.kid_subset_size
    kid = kernel.kernel_distance(sample.real, sample.features, count, size)
    yield sample.value("kid", *kid, "deviation over subsets")


def _of_neighbours(values: tuple[str, str], k: Callable[[Options], int], both: bool, about: str) -> Metric:
    """`k` neighbours of the reference's images, with `both` also of the set's."""

    return Metric(
        lambda s: [s.value(x, s.neighbours[x]) for x in values],
        needs_reference_features=True,
        values=values,
        about=about,
        check=partial(_check_neighbours, k, both),
    )


def _check_neighbours(k: Callable[[Options], int], both: bool, p: Prospect) -> None:
    for count in (p.others, p.run)[: 1 + both]:
        neighbours.check_k(k(p.options), count)


def _check_inception_score(p: Prospect) -> None:
    inception_score.check_splits(p.run)
    if p.network is not None or p.is_loaded:
        _logits(p.network, torch.zeros(0, getattr(p.network, "dim", 0)))


def _logits(network: Detector | None, features: torch.Tensor) -> torch.Tensor:
    classify = getattr(network, "logits", None)
    if classify is None:
        raise InputError("the Inception score asks Inception itself for logits; measure images with that detector")
    return classify(features)


def _inception_score(sample: Sample) -> Iterable[Measurement]:
    score = inception_score.inception_score(_logits(sample.network, torch.from_numpy(sample.features)))
    yield sample.value("inception_score", *score, "deviation over splits")


def _check_per_class(p: Prospect) -> None:
    if not p.is_labelled:
        raise InputError(f"per-class distances from {p.source} need labels on both sides; add a dataset.json")


def _per_class(sample: Sample) -> Iterable[Measurement]:
    if sample.subset != "all" or sample.labels is None or sample.real_labels is None:
        return
    found = frechet.per_class_distances(sample.features, sample.labels, sample.real, sample.real_labels)
    if not found:
        raise InputError("per-class distances: no class has two images or more on both sides")
    for label, distance in found.items():
        count = int((sample.labels == label).sum())
        yield sample.value(qualified("fd", sample.detector), distance, subset=f"class {label}", count=count)


def _adm_precision_recall(sample: Sample) -> Iterable[Measurement]:
    found = adm.adm_precision_recall(sample.real, sample.features, sample.options.k)
    return [sample.value(name, value) for name, value in found.items()]


def _vendi(sample: Sample) -> Iterable[Measurement]:
    yield sample.value("vendi", vendi.vendi_score(sample.features))


def _authpct(sample: Sample) -> Iterable[Measurement]:
    yield sample.value("authpct", memorisation.authentic_percentage(sample.beside["train"], sample.features))


def _ct(sample: Sample) -> Iterable[Measurement]:
    sides = sample.beside["train"], sample.beside["test"]
    yield sample.value("ct", memorisation.data_copying(*sides, sample.features))


METRICS: Registry[Metric] = Registry(
    "metric",
    fd=Metric(
        _fd,
        needs_features=False,
        values=("fd",),
        about="Fréchet distance: FID, FD_DINOv2, ...",
        check=_check_fd,
    ),
    fd_infinity=Metric(
        _fd_infinity,
        values=("fd_infinity",),
        about="the same, extrapolated to infinitely many images",
        check=lambda p: frechet.check_halves(p.run),
    ),
    kid=Metric(
        _kid,
        needs_reference_features=True,
        values=("kid",),
        about="kernel distance, over subsets",
        check=_check_kid,
    ),
    precision_recall=_of_neighbours(
        ("precision", "recall"), lambda o: o.k, True, "improved precision and recall, of --k neighbours"
    ),
    density_coverage=_of_neighbours(("density", "coverage"), lambda o: o.k_density, False, "of --k-density neighbours"),
    inception_score=Metric(
        _inception_score,
        needs_network=True,
        values=("inception_score",),
        detector="inception",
        about="over ten splits; of weights with a final layer",
        check=_check_inception_score,
    ),
    per_class=Metric(
        _per_class,
        needs_reference_features=True,
        about="Fréchet distance of each class",
        check=_check_per_class,
    ),
    adm_precision_recall=Metric(
        _adm_precision_recall,
        needs_reference_features=True,
        values=("adm_precision", "adm_recall"),
        about="as the ADM evaluator computes them, of --k neighbours",
        check=partial(_check_neighbours, lambda o: o.k, True),
    ),
    vendi=Metric(_vendi, values=("vendi",), about="how many different images there are, by cosines"),
    authpct=Metric(
        _authpct,
        values=("authpct",),
        needs_beside=("train",),
        about="percentage of images that are no copies of training images",
        check=lambda p: neighbours.check_k(1, p.beside["train"]),
    ),
    ct=Metric(
        _ct,
        values=("ct",),
        needs_beside=("train", "test"),
        about="below 0 where images lie nearer to training than held-out ones do",
        check=lambda p: memorisation.check_counts(p.beside["train"], p.beside["test"], p.run),
    ),
)
