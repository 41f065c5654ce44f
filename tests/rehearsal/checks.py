"""What must hold of a rehearsed study: whole, and without one number that could be taken for a result."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from repro.missing import NOTE, read_missing
from repro.rows import MEASURES
from repro.study import Study, parse_seeds
from repro.verdicts import claims
from repro.verdicts.published import NOT_COMPARABLE, NOT_POSSIBLE
from tests.rehearsal.checkout import FailedError
from tests.rehearsal.standin import DISTANCES

MEANINGLESS = set(DISTANCES.values())
MEASURED = {"min", "max", "mean", "value", "against_value", "difference"}  # columns of measured values
JUDGED = {claims.HOLDS, claims.UNDECIDED, claims.FAILS}


def expect(condition: bool, message: str) -> None:
    """Raise FailedError with `message` unless `condition`."""
    if not condition:
        raise FailedError(message)


class Finished(Protocol):
    """A checkout in which a study has run."""

    folder: Path

    def finished(self) -> set[str]:
        """Names of the stages that did."""
        ...


def everything(checkout: Finished, study: Study) -> None:
    """All stages are done, all is measured, judged and reported."""
    out = checkout.folder / study.out
    missing = (study.ids() | {f"{stage}@{study.study}" for stage in ("report", "verify")}) - checkout.finished()
    expect(not missing, f"{study.study}: stages {sorted(missing)} did not run")
    _measures(out, study)
    _verdicts(out, study)
    _report(out, study)


def not_possible(out: Path, missing: set[str]) -> bool:
    """For each of the files that nobody has, some result says so; and each says so, in its cell too, or has measures.

    Returns whether any has.
    """
    cells = pd.read_csv(out / "published.csv").set_index("configuration")[["verdict", "reason"]].astype(str)
    results = out.glob(f"results/*/{MEASURES}")
    reasons = {path.parent.name: read_missing(path.with_name(NOTE)).get("", "") for path in results}
    for path in missing:
        told = any(f"{path} gave 404 on" in reason for reason in reasons.values())
        expect(told, f"nothing says that {path} is missing")
    for key, reason in reasons.items():
        for verdict, why in cells[cells.index == key].to_numpy():
            lost = verdict == NOT_POSSIBLE
            expect(lost == bool(reason) == ("gave 404" in why), f"{key}: '{verdict}' for '{why}', not '{reason}'")
        expect(bool(reason) == pd.read_csv(out / "results" / key / MEASURES).empty, f"{key}: measured and '{reason}'")
    return not all(reasons.values())


def _measures(out: Path, study: Study) -> None:
    """Every configuration and every point of every curve has a finite value per block and detector."""
    for key in [*study.sampled, *study.sweeps]:
        item: Any = study.sampled.get(key) or study.sweeps[key]
        values = item.values if key in study.sweeps else [None]
        found = pd.read_csv(out / "results" / key / MEASURES)
        expect(len(found) == len(values) * len(item.seeds) * len(MEANINGLESS), f"{key}: {len(found)} rows of measures")
        expect(set(found["metric"]) == MEANINGLESS, f"{key}: measures {sorted(set(found['metric']))}")
        expect(all(map(math.isfinite, found["value"])), f"{key}: a value is not finite")
        expect(set(found["num_images"]) == {len(parse_seeds(b)) for b in item.seeds}, f"{key}: other numbers of images")
        if key in study.sweeps:
            expect(sorted(set(found["axis_value"])) == sorted(set(values)), f"{key}: other points than the study's")


def _verdicts(out: Path, study: Study) -> None:
    """Every published cell has its row, and none is called more than `not comparable`; no claim is judged."""
    cells = pd.read_csv(out / "published.csv").set_index("configuration")
    expected = {key: NOT_COMPARABLE for key in study.published} | {key: NOT_POSSIBLE for key in study.waived}
    expect(sorted(cells.index) == sorted(expected), f"{study.study}: verdicts on {sorted(cells.index)}")
    for key, wanted in expected.items():
        found = cells.loc[key, "verdict"]
        expect(found == wanted, f"{study.study}: the verdict on {key} is '{found}', expected '{wanted}'")
        expect(bool(str(cells.loc[key, "reason"]).strip()), f"{study.study}: no reason for the verdict on {key}")
        expect(pd.isna(cells.loc[key, "measured_min"]), f"{study.study}: {key} has a value beside the published one")
    tested = pd.read_csv(out / "verdicts.csv")
    judged = tested[tested["verdict"].isin(JUDGED)]
    expect(judged.empty, f"{study.study}: meaningless numbers decide that '{judged['claim'].min()}'")


def _report(out: Path, study: Study) -> None:
    """The report and the tables are there, and say of every measured number that it means nothing."""
    folder = out / "report"
    expect("meaningless" in (folder / "report.html").read_text(), f"{folder}/report.html does not say 'meaningless'")
    for name in {item.table for item in study.published.values()}:
        for suffix in (".csv", ".md", ".tex"):
            path = folder / f"{name}{suffix}"
            expect(path.exists(), f"{path} was not written")
    for path in sorted([*folder.glob("*.csv"), out / "sensitivity.csv"]):
        rows = pd.read_csv(path)
        measured: set[str] = set()
        for column in MEASURED & set(rows.columns):
            measured |= set(rows.loc[rows[column].notna(), "metric"])
        expect(measured <= MEANINGLESS, f"{path}: values of {sorted(measured - MEANINGLESS)} without a warning")
        for view in (path.with_suffix(suffix) for suffix in (".md", ".tex", ".html", ".svg")):
            if measured and view.exists():
                expect("meaningless" in view.read_text(), f"{view} does not say 'meaningless'")
    _only_meaningless(json.loads((out / "metrics.json").read_text()), f"{out}/metrics.json")


def _only_meaningless(tree: Any, where: str) -> None:
    """Every number in a tree of mappings hangs on the name of a stand-in's metric."""
    for key, item in tree.items():
        if isinstance(item, dict) and key not in MEANINGLESS:
            _only_meaningless(item, f"{where}: {key}")
        else:
            expect(key in MEANINGLESS, f"{where}: {key} without a warning")


def served_once(path: str, ranges: Sequence[str | None], faults: Sequence[Any]) -> None:
    """A network was asked for once, whichever studies want it, besides what faults cost."""
    wanted = 1 + len(faults)
    expect(len(ranges) == wanted, f"{path}: was asked for {len(ranges)} times, expected {wanted}")
