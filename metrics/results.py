"""Measured values as a table, JSON and CSV, with everything that they depend on."""

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from metrics import distributed
from metrics.statistics import Tag


@dataclass(frozen=True)
class Measurement:
    """One measured value of `num_images` images, `subset` naming which: all, a block, a class, or a pair."""

    metric: str
    detector: str
    subset: str
    num_images: int
    value: float
    error: float | None = None
    error_kind: str = ""
    """What `error` is: a jackknife standard error, or the deviation over subsets or splits."""


@dataclass(frozen=True)
class Report:
    """Measurements with warnings, facts about the run, and each detector's tags."""

    measurements: Sequence[Measurement]
    warnings: Sequence[str]
    facts: Mapping[str, str]
    tags: Mapping[str, Mapping[str, Tag]]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "results": [asdict(m) for m in self.measurements],
            "warnings": list(self.warnings),
            **self.facts,
            "detectors": {name: dict(tags) for name, tags in self.tags.items()},
        }

    def csv(self) -> str:
        """One row per measurement, with all facts and its detector's tags."""
        columns = dict.fromkeys(key for tags in self.tags.values() for key in tags if key != "detector")
        rows = [
            asdict(m) | {key: self.tags[m.detector].get(key, "") for key in columns} | dict(self.facts)
            for m in self.measurements
        ]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    def table(self) -> str:
        """Readable lines: values, their spread over blocks, facts, and warnings."""
        lines = [("metric", "detector", "images", "subset", "value")]
        for m in self.measurements:
            error = "" if m.error is None else f" ± {m.error:.2g} ({m.error_kind})"
            lines.append((m.metric, m.detector, str(m.num_images), m.subset, f"{m.value:.6g}{error}"))
        blocks: dict[tuple[str, str], list[float]] = {}
        for m in self.measurements:
            if m.subset.startswith("block "):
                blocks.setdefault((m.metric, m.detector), []).append(m.value)
        for (metric, detector), values in blocks.items():
            spread = f"{min(values):.6g} / {np.mean(values):.6g} / {max(values):.6g}"
            lines.append((metric, detector, "", f"{len(values)} blocks", f"{spread} (min / mean / max)"))
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        text = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=False)) + f"  {line[4]}"
            for line in lines
        ]
        text += ["", *(f"{key}: {value}" for key, value in self.facts.items())]
        for name, tags in self.tags.items():
            text.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in tags.items() if key != "detector"))
        return "\n".join(text)


def environment(device: str | None = None) -> dict[str, str]:
    """Versions, device and kind of arithmetic, as text."""
    used = torch.device(device) if device else distributed.device()
    hardware = torch.cuda.get_device_name(used) if used.type == "cuda" else platform.processor() or platform.machine()
    try:
        own = version("autoguidance-repro")
    except PackageNotFoundError:
        own = "source tree"
    return {
        "device": f"{used.type} ({hardware})",
        "processes": str(distributed.world_size()),
        "tf32": "off",  # every detector sees to it
        "versions": f"autoguidance-repro {own}, python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}",
    }
