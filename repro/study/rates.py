"""How fast each part of the work goes on one GPU: as `repro preflight` measured it here, else as published."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metrics.errors import one_line
from metrics.files import InputError
from metrics.files.reading import check_file
from repro.degradations import window_starts
from repro.guidance import Guided
from repro.strict import build
from repro.study.counting import Shape
from repro.study.schema import Study
from repro.training.config import TrainingConfig

#: Part of the work -> in what its rate is counted.
PARTS = {
    "training": "images",
    "sampling": "evaluations of an image",
    "vae": "images decoded",
    "png": "images written",
    "decoding": "images read",
    "features": "images",
}
#: Parts that the CPU does while the GPU is busy with the others of a stage.
BESIDE = ("png", "decoding")
RECORD = "preflight.json"

# Published throughput in images/s of one A100 (EDM2 table 6): Tflops per image, VAE, guided, images/s.
THROUGHPUT = np.array(
    [
        *((4.13, 1, 0, 8.9), (7.70, 1, 0, 6.4), (12.65, 1, 0, 4.8), (19.04, 1, 0, 3.7), (26.83, 1, 0, 2.9)),
        *((36.04, 1, 0, 2.3), (6.99, 1, 1, 6.0), (10.57, 1, 1, 4.7), (15.52, 1, 1, 3.8), (21.91, 1, 1, 3.0)),
        *((29.70, 1, 1, 2.5), (38.91, 1, 1, 2.0)),
        *((6.42, 0, 0, 10.1), (11.39, 0, 0, 6.6), (17.77, 0, 0, 4.6), (25.57, 0, 0, 3.5)),
    ]
)
VAE_GFLOPS = 1260.9  # decoding a 512 x 512 image
EVALUATIONS = 63  # behind each of these images
# Published training throughput (EDM2 table 6, 512 x 512): Gflops per evaluation, images/s of one A100.
TRAINING = np.array([(45.5, 258.3), (102.2, 147.4), (180.8, 100.2), (282.2, 66.8), (405.9, 49.9), (552.1, 37.2)])
SMALLEST = 45.0  # Gflops of an evaluation of the smallest of these networks
# Gflops of an image, and the share of an A100's 19.5 Tflops of float32 (two for a multiplication with addition) that
# they are assumed to reach.
DETECTORS = {"inception": 5.7, "dinov2": 81.0, "dinov2-pil": 81.0, "dinov2-b": 23.0, "dinov2-s": 6.0}
FLOAT32_GFLOPS = 0.6 * 19_500 / 2
# Seconds of a core for a PNG of 512 x 512 x 3, and how many write and read beside each GPU, assumed.
WRITING, READING, THREADS, READERS = 0.012, 0.018, 2, 4


@dataclass(frozen=True)
class Sampled:
    """A guided network before there is one."""

    main: Shape
    guide: Shape | None
    guided: Guided
    #: Further guides, as `guided` has them.
    others: tuple[Shape, ...] = ()

    @property
    def guides(self) -> list[tuple[Shape, Mapping[str, Any]]]:
        """Every guide with what makes it worse."""
        shapes = () if self.guide is None else (self.guide, *self.others)
        return [(shape, worse) for shape, (_, worse) in zip(shapes, self.guided.guides, strict=False)]

    @property
    def gflops(self) -> float:
        """Of one evaluation of all for one image."""
        return sum(_gflops(*network) for network in [(self.main, self.guided.main_degradations), *self.guides])

    @property
    def label(self) -> str:
        """Which networks, for people."""
        networks = [(self.main, self.guided.main_degradations), *self.guides]
        return " + ".join(_label(*network) for network in networks)


def _gflops(shape: Shape, degradations: Mapping[str, Any]) -> float:
    if not (window := degradations.get("sliding_window")):
        return shape.count().gflops
    crops = len(window_starts(shape.data_shape[0], *map(int, window))) ** 2
    return crops * shape.count(int(window[0])).gflops


def _label(shape: Shape, degradations: Mapping[str, Any]) -> str:
    windows = {"sliding_window": "/".join(f"{number:g}" for number in degradations.get("sliding_window", ()))}
    return " ".join([shape.name, *(f"{name} {windows.get(name, '')}".strip() for name in degradations)])


@dataclass(frozen=True)
class Task:
    """One kind of work, which has a rate."""

    #: A key of `PARTS`.
    part: str
    #: With what, for people; with `part` it tells tasks apart.
    subject: str
    #: The same for the machine: `Sampled`; (Shape, TrainingConfig); (side, channels) of images; for features the
    #: detector's name before these.
    what: Any = field(compare=False)


@dataclass(frozen=True)
class Measured:
    """A rate that was measured."""

    part: str
    subject: str
    #: In what `PARTS` says.
    per_second: float
    #: How, where not as the study has it.
    note: str = ""
    #: When; empty in records of before, whose date it is then.
    date: str = ""


@dataclass(frozen=True)
class Finding:
    """What a check found of one thing."""

    status: str
    #: What was looked at.
    about: str
    #: Found, with the remedy where it failed, or why it was skipped.
    text: str


@dataclass(frozen=True)
class Record:
    """What `repro preflight` found, by check, and measured."""

    study: str
    #: What it ran on.
    machine: str = ""
    #: Of the last check.
    date: str = ""
    checks: dict[str, list[Finding]] = field(default_factory=dict)
    rates: list[Measured] = field(default_factory=list)


def read_record(study: Study) -> Record:
    """What `repro preflight` left of a study; empty where it has not run, InputError where it cannot be read."""
    path, remedy = study.out / RECORD, "delete it and run `repro preflight` again"
    if not path.is_file():
        return Record(study.study)
    check_file(path)
    try:
        record: Record = build(Record, json.loads(path.read_bytes()))
    except (InputError, ValueError) as err:
        raise InputError(f"{path}: not what preflight writes ({one_line(err)}); {remedy}") from None
    if not all(measured.per_second > 0 and math.isfinite(measured.per_second) for measured in record.rates):
        raise InputError(f"{path}: a rate is not above 0; {remedy}")
    return record


@dataclass(frozen=True)
class Rates:
    """Rates of tasks: measured ones, and for the others what is published of an A100."""

    measured: Mapping[tuple[str, str], float] = field(default_factory=dict)
    #: That of one's GPU relative to an A100.
    speed: float = 1.0

    @classmethod
    def of(cls, record: Record) -> "Rates":
        """Those of a record."""
        return cls({(rate.part, rate.subject): rate.per_second for rate in record.rates})

    def of_task(self, task: Task) -> tuple[float, str]:
        """Rate of a task and where it is from: `measured`, `published` or `assumed`; infinite and `unknown`."""
        if (found := self.measured.get((task.part, task.subject))) is not None:
            return found, "measured"
        rate, origin = ESTIMATES[task.part](task.what)
        return rate * (1.0 if task.part in BESIDE else self.speed), origin


def seconds_per_image(tflops: float, vae: bool, guided: bool) -> float:
    """Estimate for one A100, within 4% of every published throughput; `tflops` without those of the VAE."""
    host, decoding, slope, guiding = _published()
    return host + decoding * vae + slope * tflops + guiding * guided


def _published() -> tuple[float, float, float, float]:
    """Seconds of an image: of all, of the VAE, per Tflop, of a guide."""
    known, vae, guided, rate = THROUGHPUT.T
    networks = known - vae * VAE_GFLOPS / 1e3
    terms = np.stack([np.ones_like(rate), vae, networks, guided], axis=1) * rate[:, None]  # relative least squares
    host, decoding, slope, guiding = np.linalg.lstsq(terms, np.ones_like(rate), rcond=None)[0].tolist()
    return host, decoding, slope, guiding


def training_rate(gflops: float) -> float:
    """Images a second of one A100, interpolated between the published networks; below them by constant arithmetic."""
    known, speed = TRAINING.T
    return float(np.interp(gflops, known, known * speed)) / gflops


def _of_training(what: tuple[Shape, TrainingConfig]) -> tuple[float, str]:
    gflops = what[0].count().gflops
    return training_rate(gflops), _origin(gflops)


def _of_sampling(sampled: Sampled) -> tuple[float, str]:
    gflops = max(sampled.gflops, SMALLEST)
    whole = seconds_per_image(EVALUATIONS * gflops / 1e3, False, sampled.guide is not None)
    return EVALUATIONS / whole * gflops / sampled.gflops, _origin(sampled.gflops)


def _origin(gflops: float) -> str:
    """Nothing is published of networks smaller than XS, whose arithmetic is assumed to be as fast."""
    return "published" if gflops >= SMALLEST else "assumed"


def _of_vae(what: tuple[int, int]) -> tuple[float, str]:
    return (512 / what[0]) ** 2 / _published()[1], "published"


def _of_png(seconds: float, threads: int) -> Callable[[tuple[int, int]], tuple[float, str]]:
    return lambda what: (threads * 512**2 * 3 / (what[0] ** 2 * what[1]) / seconds, "assumed")


def _of_features(what: tuple[str, int, int]) -> tuple[float, str]:
    gflops = DETECTORS.get(what[0])
    return (math.inf, "unknown") if gflops is None else (FLOAT32_GFLOPS / gflops, "assumed")


ESTIMATES: dict[str, Callable[[Any], tuple[float, str]]] = {
    "training": _of_training,
    "sampling": _of_sampling,
    "vae": _of_vae,
    "png": _of_png(WRITING, THREADS),
    "decoding": _of_png(READING, READERS),
    "features": _of_features,
}
