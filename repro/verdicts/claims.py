"""Claims, judged on what was measured: does one configuration do better than another, is one curve the flatter?"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metrics.files import InputError
from metrics.names import named
from repro.study import Claim, CurveClaim
from repro.verdicts import paired

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
NOT_RUN, NOT_COMPARABLE, NOT_MEANINGFUL = "not run", "not comparable", "not meaningful"
#: Seed blocks and images without which nothing is decided; results/verdicts/ has the rates of false verdicts.
BLOCKS, LEAST = 2, 1024
IMAGES = 50_000  # per point of a curve; fewer tell nothing about curves that differ by a few percent
RISE = 1.25  # a curve is as wide as the weights at which it lies below this multiple of its least value
EMA_STEP = 0.02  # how far the best EMA length may lie from the published one
Obstacles = Callable[[pd.DataFrame, str], list[str]]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: str
    metric: str
    #: Which is said to be better, several joined; or the curve.
    configuration: str
    #: Its value over all seeds; or the feature of the curve.
    value: float | None = None
    against: str = ""
    against_value: float | None = None
    #: Value minus the other's.
    difference: float | None = None
    verdict: str = NOT_RUN
    reason: str = ""
    source: str = ""
    #: Of the difference, paired by seed; or of its mean over training seeds.
    standard_error: float | None = None
    #: Its 95% interval, on its own.
    low: float | None = None
    high: float | None = None
    #: p-value, corrected for the number of claims.
    p: float | None = None
    num_images: int | None = None
    #: The difference at infinitely many images, which decides where it is known, and its error.
    limit: float | None = None
    limit_error: float | None = None

    def decided(self, value: float, other: float, verdict: str, obstacles: list[str]) -> "Verdict":
        """With both values, and the verdict on them where nothing forbids to compare them."""
        judged = replace(self, value=value, against_value=other, difference=value - other)
        return replace(judged, verdict=NOT_COMPARABLE if obstacles else verdict, reason="; ".join(obstacles))


COLUMNS = [field.name for field in fields(Verdict)]


def no_numbers(rows: pd.DataFrame, metric: str) -> list[str]:
    """Why measured rows decide nothing; empty where they do."""
    return ["a value is not a number"] if rows["value"].isna().any() else []


def judge(
    claims: Sequence[Claim],
    found: pd.DataFrame,
    replicates: pd.DataFrame,
    broken: Mapping[str, str] | None = None,
    obstacles: Sequence[Obstacles] = (),
) -> list[Verdict]:
    """A verdict per claim on the difference of its two configurations, paired by seed; all claims are one family.

    A difference decides where its p-value, corrected for all claims that are tested (Holm), is at most 5%: for the
    claim on the better side of its margin, against it on the other. Of distances whose limits at infinitely many
    images are known the limits decide, since two sets as far from the data as each other may differ in bias. A claim
    about several training seeds is judged on the mean of their differences, by the spread of these.

    Args:
        found: rows as `measures.read` gives them.
        replicates: as `measures.replicates` gives them.
        broken: configurations of which nothing can be claimed, and why (`measures.broken`).
        obstacles: for each claim, what says why rows of a configuration cannot be compared.
    """
    rules = itertools.chain(obstacles, itertools.repeat(no_numbers))
    tried = [_try(claim, found, replicates, broken or {}, rule) for claim, rule in zip(claims, rules, strict=False)]
    deciding = [(claim, found[-1]) for claim, (_, found) in zip(claims, tried, strict=True) if found]
    corrected = iter(paired.holm([difference.p(_margin(claim)) for claim, difference in deciding]))
    return [
        _decide(claim, row, found, next(corrected)) if found else row
        for claim, (row, found) in zip(claims, tried, strict=True)
    ]


def _try(
    claim: Claim, found: pd.DataFrame, replicates: pd.DataFrame, broken: Mapping[str, str], obstacles: Obstacles
) -> tuple[Verdict, list[paired.Difference]]:
    """The difference that a claim is about and its limit, if that is known; none where the verdict needs none."""
    ours, theirs = map(", ".join, zip(*claim.pairs, strict=True))
    row = Verdict(_text(claim), claim.metric, ours, against=theirs, source=claim.source)
    tried = [_try_pair(row, keys, found, replicates, broken, obstacles) for keys in claim.pairs]
    if len(tried) == 1:
        return tried[0]
    if stopped := [each for each, differences in tried if not differences]:
        reasons = "; ".join(dict.fromkeys(each.reason for each in stopped))
        return replace(row, verdict=stopped[0].verdict, reason=reasons), []
    return row, [paired.mean(each) for each in zip(*(differences for _, differences in tried), strict=False)]


def _try_pair(
    row: Verdict,
    keys: tuple[str, str],
    found: pd.DataFrame,
    replicates: pd.DataFrame,
    broken: Mapping[str, str],
    obstacles: Obstacles,
) -> tuple[Verdict, list[paired.Difference]]:
    """The same for one pair of the configurations of a claim, whose `row` says what it is about."""
    limits = f"{row.metric}_infinity"
    of = [
        (found, row.metric),
        *((replicates, name) for name in (row.metric, limits) if name in set(replicates["metric"])),
    ]
    sides, *parts = (
        [rows[(rows["configuration"] == key) & (rows["metric"] == name)] for key in keys] for rows, name in of
    )
    if missing := [f"{key}: nothing measured" for key, rows in zip(keys, sides, strict=True) if rows.empty]:
        return replace(row, reason="; ".join(missing)), []
    ours, theirs = (float(rows["value"].mean()) for rows in sides)
    row = replace(row, value=ours, against_value=theirs, difference=ours - theirs)
    reasons = [f"{key}: {why}" for key, rows in zip(keys, sides, strict=True) for why in obstacles(rows, row.metric)]
    if reasons:
        return replace(row, verdict=NOT_COMPARABLE, reason="; ".join(reasons)), []
    if reasons := [f"{key}: {broken[key]}" for key in keys if key in broken]:
        return replace(row, verdict=NOT_MEANINGFUL, reason="; ".join(dict.fromkeys(reasons))), []
    blocks = min(len(rows) for rows in sides)
    images = int(min(rows["num_images"].sum() for rows in sides))
    if blocks < BLOCKS or images < LEAST or not parts or any(part.empty for part in parts[0]):
        few = f"{images:,} images in {blocks} seed block(s), expected {LEAST:,} in {BLOCKS} or more, with replicates"
        return replace(row, verdict=UNDECIDED, reason=few), []
    try:
        return row, [paired.difference(*pair) for pair in parts if not any(part.empty for part in pair)]
    except InputError as err:
        return replace(row, verdict=NOT_COMPARABLE, reason=str(err)), []


def _decide(claim: Claim, row: Verdict, found: list[paired.Difference], p: float) -> Verdict:
    """The verdict on a claim by the last of its differences, whose p-value is corrected."""
    margin, better = _margin(claim), named(claim.metric).better
    difference, deciding = found[0], found[-1]
    low, high = difference.interval
    limit = (deciding.value, deciding.standard_error) if found[1:] else (None, None)
    row = replace(
        row,
        value=difference.ours,
        against_value=difference.theirs,
        difference=difference.value,
        standard_error=difference.standard_error,
        low=low,
        high=high,
        p=p,
        num_images=difference.num_images,
        limit=limit[0],
        limit_error=limit[1],
    )
    if p <= paired.LEVEL:
        return replace(row, verdict=HOLDS if better * (deciding.value - margin) > 0 else FAILS)
    count, what = (deciding.groups, "training seeds") if claim.pairs[1:] else (deciding.num_images, "images")
    needed = count * deciding.needed(margin, paired.LEVEL * deciding.p(margin) / p)  # as strict as the correction was
    more = f"{needed:,.2g} {what} might decide it" if np.isfinite(needed) else f"no number of {what} would decide it"
    return replace(row, verdict=UNDECIDED, reason=more)


def _text(claim: Claim) -> str:
    label, (ours, theirs) = named(claim.metric).label, map(", ".join, zip(*claim.pairs, strict=True))
    how = f"beats {theirs} in {label}" + (f" by {claim.by:g} or more" if claim.by else "")
    if claim.within is not None:
        how = f"is at most {claim.within:g} worse than {theirs} in {label}"
    seeds = f", over {len(claim.pairs)} training seeds" if claim.pairs[1:] else ""
    return (claim.text or f"{ours} {how}") + seeds


def _margin(claim: Claim) -> float:
    """The difference in the metric's own direction on whose better side a claim holds."""
    return named(claim.metric).better * (claim.by if claim.within is None else -claim.within)


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
