"""Measured values as a table, JSON and CSV, with everything that they depend on."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate

from metrics.statistics import Tag


@dataclass(frozen=True)
class Measurement:
    """One measured value of `num_images` images, `subset` naming which: all, a block, a class, or a pair.

    `error` is, as `error_kind` says, a jackknife standard error, or the deviation over subsets or splits.
    """

    metric: str
    detector: str
    subset: str
    num_images: int
    value: float
    error: float | None = None
    error_kind: str = ""


@dataclass(frozen=True)
class Results:
    """Measurements with warnings, facts about the run, and each detector's tags."""

    measurements: Sequence[Measurement]
    warnings: Sequence[str]
    facts: dict[str, str]
    tags: dict[str, dict[str, Tag]]

    def as_dict(self) -> dict[str, object]:
        """What `--json` writes."""
        values = [asdict(m) for m in self.measurements]
        return {"results": values, "warnings": self.warnings, **self.facts, "detectors": self.tags}

    def json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """One row per measurement, with its detector's tags and all facts."""
        rows = [asdict(m) | self.tags[m.detector] | {"detector": m.detector} | self.facts for m in self.measurements]
        return pd.DataFrame(rows).to_csv(index=False)

    def table(self) -> str:
        """Readable lines: values, their spread over blocks, facts, and warnings."""
        lines = [("metric", "detector", "images", "subset", "value")]
        for m in self.measurements:
            error = "" if m.error is None else f" ± {m.error:.2g} ({m.error_kind})"
            lines.append((m.metric, m.detector, str(m.num_images), m.subset, f"{m.value:.6g}{error}"))
        blocks = [((m.metric, m.detector), m.value) for m in self.measurements if m.subset.startswith("block ")]
        for metric, detector in dict(blocks):
            values = [value for what, value in blocks if what == (metric, detector)]
            spread = f"{min(values):.6g} / {np.mean(values):.6g} / {max(values):.6g}"
            lines.append((metric, detector, "", f"{len(values)} blocks", f"{spread} (min / mean / max)"))
        made = {x: ", ".join(f"{k} {v}" for k, v in tags.items() if k != "detector") for x, tags in self.tags.items()}
        text = [tabulate(lines, tablefmt="plain", disable_numparse=True), ""]
        return "\n".join(text + [f"{key}: {value}" for key, value in (self.facts | made).items()])


def environment(device: torch.device) -> dict[str, str]:
    """The device with its hardware, and versions, as text."""
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return {"device": f"{device.type} ({hardware})", "versions": versions}
