"""Claims, judged on what was measured: does one configuration do better than another, is one curve the flatter?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metrics.names import named
from repro.study import Claim, CurveClaim

HOLDS, UNCLEAR, FAILS = "holds", "within the spread", "does not hold"
NOT_RUN, NOT_COMPARABLE = "not run", "not comparable"
IMAGES = 50_000  # per point of a curve; fewer tell nothing about curves that differ by a few percent
RISE = 1.25  # a curve is as wide as the weights at which it lies below this multiple of its least value
EMA_STEP = 0.02  # how far the best EMA length may lie from the published one


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: str
    metric: str
    #: Which is said to be better; or the curve.
    configuration: str
    #: Its mean over seed blocks; or the feature of the curve.
    value: float | None = None
    against: str = ""
    against_value: float | None = None
    #: Value minus the other's.
    difference: float | None = None
    verdict: str = NOT_RUN
    reason: str = ""
    source: str = ""

    def decided(self, value: float, other: float, verdict: str, obstacles: list[str]) -> "Verdict":
        """With both values, and the verdict on them where nothing forbids to compare them."""
        judged = replace(self, value=value, against_value=other, difference=value - other)
        return replace(judged, verdict=NOT_COMPARABLE if obstacles else verdict, reason="; ".join(obstacles))


COLUMNS = [field.name for field in fields(Verdict)]


def no_numbers(rows: pd.DataFrame, metric: str) -> list[str]:
    """Why measured rows decide nothing; empty where they do."""
    return ["a value is not a number"] if rows["value"].isna().any() else []


def judge(
    claims: Iterable[Claim], found: pd.DataFrame, obstacles: Callable[[pd.DataFrame, str], list[str]] = no_numbers
) -> list[Verdict]:
    """A verdict per claim on the rows `found` (as `measures.read` gives them).

    `obstacles(rows, metric)` says why rows of a configuration cannot be compared.
    """
    return [_judge(claim, found[found["metric"] == claim.metric], obstacles) for claim in claims]


def _judge(claim: Claim, found: pd.DataFrame, obstacles: Callable[[pd.DataFrame, str], list[str]]) -> Verdict:
    row = Verdict(_text(claim), claim.metric, claim.better, against=claim.than, source=claim.source)
    sides = {key: found[found["configuration"] == key] for key in (claim.better, claim.than)}
    missing = [f"{key}: nothing measured" for key, rows in sides.items() if rows.empty]
    if missing:
        return replace(row, reason="; ".join(missing))
    reasons = [f"{key}: {why}" for key, rows in sides.items() for why in obstacles(rows, claim.metric)]
    ours, theirs = (rows["value"].to_numpy(float) for rows in sides.values())
    better = named(claim.metric).better
    result = verdict(better * ours, better * theirs, claim.by, claim.within)
    return row.decided(ours.mean(), theirs.mean(), result, reasons)


def verdict(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], by: float = 0.0, within: float | None = None
) -> str:
    """Verdict on values of seed blocks [n] and [m], of which the higher are better.

    `ours` holds where every block beats every other one and the means differ by at least `by`, and is within the spread
    where only the means do; with `within` it holds where the mean is at most that much worse.
    """
    gain = ours.mean() - theirs.mean()
    if within is not None:
        return HOLDS if gain >= -within else FAILS
    if gain <= 0 or gain < by:
        return FAILS
    return HOLDS if ours.min() > theirs.max() else UNCLEAR


def _text(claim: Claim) -> str:
    label, least = named(claim.metric).label, f" by {claim.by:g} or more" if claim.by else ""
    if claim.within is not None:
        return claim.text or f"{claim.better} is at most {claim.within:g} worse than {claim.than} in {label}"
    return claim.text or f"{claim.better} beats {claim.than} in {label}{least}"


def judge_curves(claims: Iterable[CurveClaim], curves: pd.DataFrame) -> list[Verdict]:
    """A verdict per claim on the shapes of curves as `measures.curves` gives them (arXiv:2406.02507 figures 3 and 7).

    Values are widths of curves, least values, or places of the minimum, of the means over seed blocks; a claim holds
    or does not, without a spread.
    """
    return [_judge_curve(claim, curves.dropna(subset=["mean"])) for claim in claims]


def _judge_curve(claim: CurveClaim, curves: pd.DataFrame) -> Verdict:
    against = claim.against if isinstance(claim.against, str) else ""
    row = Verdict(claim.text, claim.metric, claim.curve, against=against, source=claim.source)
    drawn = curves[curves["metric"] == claim.metric].sort_values("axis_value")
    sides = [(key, drawn[drawn["configuration"] == key]) for key in (claim.curve, against) if key]
    for key, curve in sides:
        if curve.empty:
            return replace(row, reason=f"{key}: {named(claim.metric).label} is not measured")
    ours = _feature(claim.feature, sides[0][1])
    theirs = _feature(claim.feature, sides[1][1]) if against else float(claim.against)
    holds = {"above": ours > theirs, "below": ours < theirs, "at": abs(ours - theirs) <= EMA_STEP + 1e-9}
    fewest = min(int(curve["num_images"].min()) for _, curve in sides)
    few = [] if fewest >= IMAGES else [f"{fewest:,} images per point, expected {IMAGES:,}"]
    return row.decided(ours, theirs, HOLDS if holds[claim.relation] else FAILS, few)


def _feature(name: str, curve: pd.DataFrame) -> float:
    places, values = curve["axis_value"].to_numpy(float), curve["mean"].to_numpy(float)
    return float({"width": width(places, values), "least": values.min(), "place": places[values.argmin()]}[name])


def width(weights: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Length of the range of weights, linearly interpolated, over which a curve lies below `RISE` x its minimum."""
    fine = np.linspace(weights[0], weights[-1], 2001)
    inside = np.interp(fine, weights, values) <= RISE * values.min()
    return float(inside.mean() * (weights[-1] - weights[0]))


def table(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Verdicts as rows; columns `COLUMNS`."""
    return pd.DataFrame(list(verdicts), columns=COLUMNS)
