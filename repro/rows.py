"""Measured values as rows: one per value, with everything it depends on. The CSV of them is the artefact."""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from metrics.files import InputError, explained, write_csv
from metrics.results import environment
from repro.guidance import Guided
from repro.snapshots import parse_name

MEASURES, TRIALS = "measures.csv", "trials.csv"


@dataclass(frozen=True)
class Row:
    """One measured value. What does not apply is empty."""

    study: str
    #: Id in the study.
    configuration: str
    method: str
    #: Seed block, first-last; of the 2D example, the sampling seed.
    block: str
    #: Full name, see `metrics.names`.
    metric: str
    value: float
    num_images: int
    #: Of a curve: what varies.
    axis: str = ""
    axis_value: float | None = None
    #: Network file.
    main: str = ""
    guide: str = ""
    guidance: float = 1.0
    #: Of several guides, with + between them, each one's part of it.
    weights: str = ""
    interval: str = ""
    main_ema: float | None = None
    guide_ema: float | None = None
    num_steps: int | None = None
    training_seed: int | None = None
    #: Rule with its settings and ramp, where it is not linear and constant.
    rule: str = ""
    #: What makes main network and guide worse: NAME=STRENGTH.
    main_degradations: str = ""
    guide_degradations: str = ""
    #: What decides the images besides, in JSON; fields at their defaults left out.
    solver: str = ""
    main_sha256: str = ""
    guide_sha256: str = ""
    detector: str = ""
    detector_sha256: str = ""
    reference_sha256: str = ""
    device: str = ""
    versions: str = ""
    commit: str = ""


@dataclass(frozen=True)
class Replicate:
    """One value of all seeds of a configuration, or of all but a group, from which paired differences are made."""

    configuration: str
    metric: str
    #: The group, first-last; or WHOLE or REAL.
    left_out: str
    num_images: int
    value: float


#: Nothing is left out; the value of one half of the real images against the other.
WHOLE, REAL = "none", "real"
REPLICATES = "replicates.csv"
COLUMNS = [field.name for field in fields(Row)]
REPLICATE_COLUMNS = [field.name for field in fields(Replicate)]
TEXTS = [field.name for field in fields(Row) if field.type is str]
#: Columns that came later: tables without them say what they said before.
LATER = ["weights", "rule", "main_degradations", "guide_degradations", "solver"]


def settings(guided: Guided) -> dict[str, Any]:
    """What rows say of a guided network: main, guide, guidance, interval, EMA lengths, rule and degradations.

    Of several guides these have + between them.
    """
    interval = "" if guided.interval is None else "{}-{}".format(*guided.interval)
    active = guided.active
    several = " + ".join(f"{weight:.6g}" for weight in active.weights) if active.other_guides else ""
    columns: dict[str, Any] = {"guidance": guided.guidance, "weights": several, "interval": interval}
    for role, networks in (("main", [(active.main, active.main_degradations)]), ("guide", active.guides)):
        files = [Path(name or "").name for name, _ in networks]
        lengths = [found and found.ema_std for found in map(parse_name, files)]
        columns |= {role: " + ".join(files), f"{role}_ema": None if several and role == "guide" else lengths[0]}
        worse = [_assigned(degradations) for _, degradations in networks]
        columns[f"{role}_degradations"] = " + ".join(each or "-" for each in worse) if any(worse) else ""
    others = guided.rule_settings | ({} if guided.ramp == "constant" else {"ramp": guided.ramp})
    named = guided.rule != "linear" or others
    return columns | {"rule": f"{guided.rule} {_assigned(others)}".rstrip() if named else ""}


def _assigned(values: Mapping[str, Any]) -> str:
    """NAME=VALUE, with commas between them."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Rows as CSV, atomically."""
    write_csv(path, pd.DataFrame([vars(row) for row in rows], columns=COLUMNS))


def write_replicates(path: Path, rows: Iterable[Replicate]) -> None:
    """Replicates as CSV, atomically."""
    write_csv(path, pd.DataFrame([vars(row) for row in rows], columns=REPLICATE_COLUMNS))


def read_replicates(path: Path) -> pd.DataFrame:
    """A CSV of replicates, columns as in `Replicate`; InputError if it is none."""
    return _read(path, REPLICATE_COLUMNS, "replicates")


def read_rows(path: Path) -> pd.DataFrame:
    """A CSV of rows, columns as in `Row`, texts as text even if they look like numbers; InputError if it is none."""
    return _read(path, COLUMNS, "measures")


def _read(path: Path, columns: list[str], what: str) -> pd.DataFrame:
    remedy = "delete it and run `dvc repro`"
    with explained(f"{path}: not a CSV of {what}", remedy, (OSError, ValueError, OverflowError)):
        found = pd.read_csv(path, dtype=dict.fromkeys([*TEXTS, "left_out"], str))
        if missing := [name for name in columns if name not in found and name not in LATER]:
            raise InputError(f"{path}: no column '{missing[0]}'; {remedy}")
        found = found.reindex(columns=list(dict.fromkeys([*columns, *found]))).astype(
            {"value": float, "num_images": int}
        )
    if found[["configuration", "metric"]].isna().any(axis=None):
        raise InputError(f"{path}: a row without configuration or metric; {remedy}")
    return found


def gather_rows(parts: Iterable[tuple[dict[str, Any], Path]], target: Path) -> pd.DataFrame:
    """Join CSVs of rows with the given columns set, into `target`; every text stays as it is. Returns the rows."""
    frames = [pd.read_csv(part, dtype=str, keep_default_na=False).assign(**common) for common, part in parts]
    found = pd.concat([pd.DataFrame(columns=COLUMNS, dtype=str), *frames])[COLUMNS]
    write_csv(target, found)
    return found


@cache
def provenance(device: torch.device) -> dict[str, str]:
    """Device, versions and commit of this run, found out once."""
    return environment(device) | {"commit": _commit()}


def _commit() -> str:
    """Short hash of the checked-out commit, `+` appended where files differ from it; empty outside git."""
    git = partial(subprocess.run, capture_output=True, text=True, check=True)
    try:
        dirty = git(["git", "status", "--porcelain", "--untracked-files=no", "--", "repro", "metrics"]).stdout
        return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
