"""Measured beside published values, in the layout of the paper's Table 1: a block for FID and one for FD_DINOv2."""

import re
from typing import Any

import pandas as pd

from repro.report.tables import notes, setting_cell, text_of
from repro.report.views import MOODS, Cell, Column, View
from repro.verdicts.measures import metric

VERDICT = ["published", "difference", "verdict"]
NAMES = {"imagenet512": "table1", "imagenet64": "table1", "edm2": "presets", "corruptions512": "corruptions"}
CAPTION = (
    "Least of the seed blocks (mean ± standard deviation), the published value, and the verdict. The paper optimises "
    "weight w and EMA lengths for FID and for FD_DINOv2 apart. The best value of each block is marked."
)


def join(summary: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Rows of `measures.summarise` that have a published value, with `VERDICT`; then verdicts on what no
    configuration of the study measures."""
    keys = ["configuration", "metric"]
    columns = [*keys, *VERDICT, "reason"]
    found = summary.merge(verdicts[columns], "outer", keys, suffixes=("", "_verdict"), sort=False)
    found["reason"] = found["reason_verdict"].fillna(found["reason"])
    judged = set(zip(verdicts["configuration"], verdicts["metric"], strict=True))
    order = {pair: i for i, pair in enumerate(zip(summary["configuration"], summary["metric"], strict=True))}
    pairs = list(zip(found["configuration"], found["metric"], strict=True))
    found["_order"] = [order.get(pair, len(order)) for pair in pairs]
    kept = found[[pair in judged for pair in pairs]].sort_values("_order", kind="stable")
    return kept.drop(columns=["_order", "reason_verdict"]).reset_index(drop=True)


def row_name(configuration: str) -> str:
    """The row that two configurations share, one optimised for FID and one for FD_DINOv2."""
    return re.sub(r"-(fid|fd|dino)$", "", configuration)


def view(rows: pd.DataFrame) -> View:
    """A line per row of the paper's table; `rows` as made by `join`."""
    metrics = [name for name in ("fid", "fd_dinov2") if name in set(rows["metric"])]
    metrics += [name for name in dict.fromkeys(rows["metric"]) if name not in metrics]
    columns = [Column("", numeric=False)]
    for name in metrics:
        block = metric(name).label + metric(name).arrow
        heads = [Column("measured"), Column("published"), Column("difference"), Column("verdict", numeric=False)]
        settings = [Column("w", "$w$"), Column("EMA m", r"EMA$_m$"), Column("EMA g", r"EMA$_g$")]
        columns += [Column(c.label, c.tex, c.numeric, block) for c in [*heads, *settings]]
    best = {name: rows.loc[rows["metric"] == name, "min"].min() for name in metrics}
    lines = []
    for name, group in rows.groupby(rows["configuration"].map(row_name), sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        line = [Cell(str(name))]
        for wanted in metrics:
            line += _block(by_metric.get(wanted), wanted, best[wanted])
        lines.append(line)
    return View(columns, lines, notes(rows))


def _block(row: Any, name: str, best: float) -> list[Cell]:
    """Measured, published, difference, verdict and settings of one metric."""
    if row is None:
        return [Cell("–")] * 7
    decimals = metric(name).decimals
    why = text_of(row["reason"])
    if pd.isna(row["min"]):
        measured = Cell("–", note=why)
    else:
        spread = "" if pd.isna(row["spread"]) else f" ({row['mean']:.{decimals}f} ± {row['spread']:.{decimals}f})"
        better = metric(name).better < 0 and row["min"] == best
        measured = Cell(f"{row['min']:.{decimals}f}{spread}", float(row["min"]), better, why)
    published, difference = (
        Cell("–") if pd.isna(row[key]) else Cell(f"{row[key]:{sign}.{decimals}f}", float(row[key]))
        for key, sign in (("published", ""), ("difference", "+"))
    )
    verdict = text_of(row["verdict"]) or "–"
    settings = [setting_cell(row[key]) for key in ("guidance", "main_ema", "guide_ema")]
    return [measured, published, difference, Cell(verdict, note=why, mood=MOODS.get(verdict, "")), *settings]
