"""The papers' claims about the shapes of sensitivity curves (arXiv:2406.02507 figures 3 and 7, section 4)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repro.snapshots import parse_name
from repro.study import Study, Sweep
from repro.verdicts import claims
from repro.verdicts.measures import metric as named

IMAGES = 50_000  # per point; fewer tell nothing about curves that differ by a few percent
RISE = 1.25  # a curve is as wide as the weights at which it lies below this multiple of its least value
EMA_STEP = 0.02  # how far the best EMA length may lie from the published one
METRIC_OF = {"fid": "fid", "fd": "fd_dinov2"}  # last part of a sweep's id -> the metric it is drawn for
NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Shape:
    """A claim about one curve, or about one against another."""

    text: str
    feature: str
    """What is compared: `width` of the curve, its `least` value, or where it is least (`place`)."""
    sweep: str
    against: str | float
    """Another sweep, or a place."""
    relation: str
    """`above`, `below` or `at` (within EMA_STEP)."""
    metric: str = "fid"


def judge(study: Study, curves: pd.DataFrame) -> pd.DataFrame:
    """One row per claim that the study's sweeps allow; columns `repro.claims.COLUMNS`.

    `value` and `against_value` are widths of curves, least values, or places of the minimum, of the means over seed
    blocks; a claim holds or does not, without a spread.
    """
    return pd.DataFrame([_row(shape, curves) for shape in shapes(study)], columns=claims.COLUMNS)


def shapes(study: Study) -> Iterator[Shape]:
    """The claims that a study's sweeps allow."""
    published = {key: sweep for key, sweep in study.sweeps.items() if study.data[sweep.data].kind == "reference"}
    for key, sweep in published.items():
        if sweep.axis == "guidance":
            yield from _corruption(key, sweep)
            yield from _flatter(key, sweep, published)
            yield from _best_guide(key, sweep, published)
        else:
            yield from _ema(key, sweep)


def _corruption(key: str, sweep: Sweep) -> Iterator[Shape]:
    if sweep.main_corruption and sweep.guide_corruption:
        matched = sweep.main_corruption.keys() == sweep.guide_corruption.keys()
        defects = f"{'+'.join(sweep.main_corruption)} in main, {'+'.join(sweep.guide_corruption)} in guide"
        text = f"{defects}: the best weight is {'more than 1' if matched else '1'}"
        yield Shape(text, "place", key, 1.0, "above" if matched else "at")


def _flatter(key: str, sweep: Sweep, others: Mapping[str, Sweep]) -> Iterator[Shape]:
    """Ids tell which curves belong together: NAME-METHOD-METRIC."""
    stem, _, suffix = key.rpartition("-")
    other = f"{stem.removesuffix('autoguidance')}cfg-{suffix}"
    if sweep.method == "autoguidance" and suffix in METRIC_OF and other in others:
        metric = METRIC_OF[suffix]
        text = f"Autoguidance is less sensitive to the weight than CFG ({named(metric).label})"
        yield Shape(text, "width", key, other, "above", metric)


def _best_guide(key: str, sweep: Sweep, others: Mapping[str, Sweep]) -> Iterator[Shape]:
    if sweep.method != "autoguidance" or not key.endswith("-fid"):
        return
    for other, theirs in others.items():
        same = (theirs.method, theirs.main, theirs.axis) == (sweep.method, sweep.main, sweep.axis)
        if same and theirs.guide != sweep.guide:
            text = f"The guide {sweep.guide_set} reaches a lower FID than {theirs.guide_set}"
            yield Shape(text, "least", key, other, "below")


def _ema(key: str, sweep: Sweep) -> Iterator[Shape]:
    name = parse_name(sweep.main if sweep.axis == "main_ema" else sweep.guide)
    if name is not None:
        text = f"FID is least at a {sweep.axis} within {EMA_STEP} of the published {name.ema_std}"
        yield Shape(text, "place", key, name.ema_std, "at")


def width(weights: np.ndarray, values: np.ndarray, rise: float = RISE) -> float:
    """Length of the range of weights, linearly interpolated, over which a curve lies below `rise` x its minimum."""
    fine = np.linspace(weights[0], weights[-1], 2001)
    inside = np.interp(fine, weights, values) <= rise * values.min()
    return float(inside.mean() * (weights[-1] - weights[0]))


def _feature(name: str, curve: pd.DataFrame) -> float:
    places, values = curve["axis_value"].to_numpy(float), curve["mean"].to_numpy(float)
    if name == "width":
        return width(places, values)
    return float(values.min() if name == "least" else places[values.argmin()])


def _row(shape: Shape, curves: pd.DataFrame) -> dict[str, object]:
    against = shape.against if isinstance(shape.against, str) else ""
    row: dict[str, object] = {"claim": shape.text, "metric": shape.metric}
    row |= {"configuration": shape.sweep, "against": against}
    found = []
    for key in [shape.sweep, against] if against else [shape.sweep]:
        curve = curves[(curves["sweep"] == key) & (curves["metric"] == shape.metric)].sort_values("axis_value")
        if curve.empty:
            return row | {"verdict": claims.NOT_RUN, "reason": f"{key}: {named(shape.metric).label} is not measured"}
        found.append(curve)
    ours = _feature(shape.feature, found[0])
    theirs = float(shape.against) if not against else _feature(shape.feature, found[1])
    row |= {"value": ours, "against_value": theirs, "difference": ours - theirs}
    small = [int(curve["num_images"].min()) for curve in found if curve["num_images"].min() < IMAGES]
    if small:
        return row | {"verdict": NOT_COMPARABLE, "reason": f"{small[0]:,} images per point, expected {IMAGES:,}"}
    holds = {"above": ours > theirs, "below": ours < theirs, "at": abs(ours - theirs) <= EMA_STEP + 1e-9}
    return row | {"verdict": claims.HOLDS if holds[shape.relation] else claims.FAILS, "reason": ""}
