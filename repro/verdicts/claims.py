"""The paper's qualitative claims, judged on what a study measured: does one method do better than another?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from repro.pipeline.evaluate import FD_NAMES, STAND_INS
from repro.study import Study
from repro.verdicts.measures import metric

COLUMNS = ["claim", "metric", "configuration", "value", "against", "against_value", "difference", "verdict", "reason"]
DISTANCES = [name for detector, name in FD_NAMES.items() if detector not in STAND_INS]
HOLDS, UNCLEAR, FAILS, NOT_RUN = "holds", "within the spread", "does not hold", "not run"


@dataclass(frozen=True)
class Claim:
    """`method` does better than `against` in `metric`; with `allowed`, it is at most that much worse."""

    text: str
    method: str
    against: str
    metric: str
    allowed: float | None = None


TOY = (
    Claim("Autoguidance removes outliers", "autoguidance", "unguided", "outliers"),
    Claim("Autoguidance keeps branches that CFG drops", "autoguidance", "cfg", "component_jsd"),
    Claim("Autoguidance stays closer to the distribution than CFG", "autoguidance", "cfg", "sliced_wasserstein"),
    Claim("Autoguidance keeps branches that truncation drops", "autoguidance", "truncation", "component_jsd"),
)
IMAGES = (
    Claim("Autoguidance lowers {metric}", "autoguidance", "unguided", "fd"),
    Claim("Autoguidance beats CFG in {metric}", "autoguidance", "cfg", "fd"),
    Claim("Autoguidance raises precision", "autoguidance", "unguided", "precision"),
    Claim("Autoguidance keeps recall, within 0.05", "autoguidance", "unguided", "recall", allowed=0.05),
)


def judge(study: Study, summary: pd.DataFrame) -> pd.DataFrame:
    """One row per claim that the study's methods allow; columns `COLUMNS`.

    A claim holds when every seed block of the better method beats every block of the other, and is `within the
    spread` when only the means do. The difference is method minus against.
    """
    rows = []
    for key in study.toy:
        found = summary[summary["id"] == key]
        rows += [_row(claim, claim.metric, found) for claim in TOY]
    for pair, claim in image_claims(study):
        found = summary[summary["configuration"].isin(pair)]
        wanted = DISTANCES if claim.metric == "fd" else [claim.metric]
        rows += [_row(claim, name, found) for name in wanted if name in set(found["metric"])]
    return pd.DataFrame(rows, columns=COLUMNS)


def image_claims(study: Study) -> list[tuple[list[str], Claim]]:
    """The two configurations that a claim compares, for every claim: they share the main network, and it has no
    others of their methods (where weights and EMA lengths were optimised apart, published values judge)."""
    groups: dict[str, list[str]] = {}
    for key, item in study.generate.items():
        groups.setdefault(item.main, []).append(key)
    found = []
    for keys in groups.values():
        methods = [study.generate[key].method for key in keys]
        for claim in IMAGES:
            if methods.count(claim.method) == 1 and methods.count(claim.against) == 1:
                pair = [keys[methods.index(claim.method)], keys[methods.index(claim.against)]]
                found.append((pair, claim))
    return found


def _row(claim: Claim, name: str, found: pd.DataFrame) -> dict[str, object]:
    rows = {row["method"]: row for row in found[found["metric"] == name].to_dict("records")}
    ours, other = rows[claim.method], rows[claim.against]
    difference = ours["mean"] - other["mean"]
    reasons = [str(r["reason"]) for r in (ours, other) if pd.isna(r["mean"])]
    return {
        "claim": claim.text.format(metric=metric(name).label),
        "metric": name,
        "configuration": ours["configuration"],
        "value": ours["mean"],
        "against": other["configuration"],
        "against_value": other["mean"],
        "difference": difference,
        "verdict": NOT_RUN if reasons else verdict(ours, other, metric(name).better, claim.allowed),
        "reason": "; ".join(reasons),
    }


def verdict(ours: Mapping[Any, Any], other: Mapping[Any, Any], better: int, allowed: float | None = None) -> str:
    """Verdict on `ours` against `other`, each with mean, min and max over seed blocks; `better` as in `Metric`."""
    gain = better * (ours["mean"] - other["mean"])
    if allowed is not None:
        return HOLDS if gain >= -allowed else FAILS
    if gain <= 0:
        return FAILS
    separate = ours["max"] < other["min"] if better < 0 else ours["min"] > other["max"]
    return HOLDS if separate else UNCLEAR
