"""Measured values as a table, JSON and CSV, with everything that they depend on."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import distributions

import numpy as np
import torch
from tabulate import tabulate

from metrics.statistics import ESSENTIAL, Tag


@dataclass(frozen=True)
class Measurement:
    """One measured value of `num_images` images, `subset` naming which: all, a block, a class, or a pair.

    `error` is, as `error_kind` says, a jackknife standard error, or the deviation over subsets or splits. `images`
    names the set, where several may be measured.
    """

    metric: str
    detector: str
    subset: str
    num_images: int
    value: float
    error: float | None = None
    error_kind: str = ""
    images: str = ""


@dataclass(frozen=True)
class Failure:
    """What was asked for and could not be measured, and why: a metric, or with `metric` empty a whole set of images."""

    metric: str
    detector: str
    subset: str
    why: str
    images: str = ""

    def __str__(self) -> str:
        what = f"{self.metric} of {self.detector}" if self.metric else "everything"
        where = f" of {self.images}" if self.images else ""
        return f"{what}{where}{'' if self.subset in ('', 'all') else f', {self.subset}'} is missing: {self.why}"


#: Facts about the run, and about each set of images, that `evaluate` gives.
FACTS = (
    *("reference", "reference_digest", "reference_size", "train", "train_digest", "test", "test_digest"),
    *("device", "versions", "processes", "tf32"),
)
SET = ("images_digest", "images_size")


def columns(facts: Sequence[str] = FACTS) -> list[str]:
    """Names of the columns of a CSV, for `evaluate`'s facts the same whatever is measured."""
    return [*(x.name for x in fields(Measurement)), *(x for x in ESSENTIAL if x != "detector"), *SET, *facts]


@dataclass(frozen=True)
class Results:
    """Measurements with warnings, facts about the run, each detector's tags, and facts about each set by its name."""

    measurements: Sequence[Measurement]
    warnings: Sequence[str]
    facts: dict[str, str]
    tags: dict[str, dict[str, Tag]]
    sets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: What was asked for and is not among the measurements.
    missing: Sequence[Failure] = ()

    def as_dict(self) -> dict[str, object]:
        """What `--json` writes."""
        values, missing = ([asdict(x) for x in found] for found in (self.measurements, self.missing))
        sets = [{"images": name, **found} for name, found in self.sets.items()]
        said = {"warnings": self.warnings, "missing": missing, "sets": sets}
        return {"results": values, **said, **self.facts, "detectors": self.tags}

    def json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """One row per measurement, with its detector's tags and all facts."""
        rows = [
            asdict(m) | self.tags[m.detector] | {"detector": m.detector, **self.sets.get(m.images, {}), **self.facts}
            for m in self.measurements
        ]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns([*self.facts]), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    def table(self) -> str:
        """Readable lines: values, with those of several sets side by side, their spread over blocks, and facts."""
        several = len(self.sets) > 1
        lines = [("metric", "detector", *(["set"] if several else []), "images", "subset", "value")]

        def line(metric: str, detector: str, images: str, *cells: str) -> None:
            lines.append((metric, detector, *([images] if several else []), *cells))

        order = {key: i for i, key in enumerate(dict.fromkeys((m.metric, m.detector) for m in self.measurements))}
        values = [*self.measurements]
        for m in sorted(values, key=lambda m: order[m.metric, m.detector]) if several else values:
            error = "" if m.error is None else f" ± {m.error:.2g} ({m.error_kind})"
            line(m.metric, m.detector, m.images, str(m.num_images), m.subset, f"{m.value:.6g}{error}")
        blocks = [((m.metric, m.detector, m.images), m.value) for m in values if m.subset.startswith("block ")]
        for what in dict(blocks):
            found = [value for key, value in blocks if key == what]
            spread = f"{min(found):.6g} / {np.mean(found):.6g} / {max(found):.6g}"
            line(*what, "", f"{len(found)} blocks", f"{spread} (min / mean / max)")
        made = {x: ", ".join(f"{k} {v}" for k, v in tags.items() if k != "detector") for x, tags in self.tags.items()}
        sets = {name: ", ".join(f"{k} {v}" for k, v in found.items() if v) for name, found in self.sets.items()}
        text = [tabulate(lines, tablefmt="plain", disable_numparse=True), ""]
        facts = [*sets.items(), *self.facts.items(), *made.items()]
        return "\n".join(text + [f"{key}: {value}" for key, value in facts if value])


def version() -> str:
    """Of this distribution; `source tree` where it is not installed."""
    return next((package.version for package in distributions(name="autoguidance-repro")), "source tree")


def environment(device: torch.device) -> dict[str, str]:
    """The device with its hardware, and versions, as text."""
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return {"device": f"{device.type} ({hardware})", "versions": versions}
