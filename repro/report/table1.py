"""Measured beside published values, in the layout of the paper's Table 1: a block for FID and one for FD_DINOv2."""

from dataclasses import replace
from typing import Any

import pandas as pd

from repro.report.tables import SETTINGS, metric, notes, number_cell, setting_cell, verdict_cell
from repro.report.views import Cell, Column, View

CAPTION = (
    "Least of the seed blocks (mean ± standard deviation), the published value, and the verdict. The paper optimises "
    "weight w and EMA lengths for FID and for FD_DINOv2 apart. The best value of each block is marked."
)
COLUMNS = [Column("measured"), Column("published"), Column("difference"), Column("verdict", numeric=False)]
COLUMNS += [SETTINGS[name] for name in ("guidance", "main_ema", "guide_ema")]


def join(cells: pd.DataFrame, summary: pd.DataFrame, table: str) -> pd.DataFrame:
    """The cells of a published table, with what the summary says of their configurations."""
    cells = cells[cells["table"] == table].drop(columns=["spread", "study"])
    summary = summary.drop(columns=["section", "axis", "axis_value", "reason"])
    return cells.merge(summary, "left", ["configuration", "metric"])


def view(rows: pd.DataFrame) -> View:
    """A line per row of the paper's table; `rows` as made by `join`."""
    metrics = [name for name in ("fid", "fd_dinov2") if name in set(rows["metric"])]
    heads = [replace(c, block=metric(name).label + metric(name).arrow) for name in metrics for c in COLUMNS]
    best = rows.groupby("metric")["min"].min()
    cells = {(row["row"], row["metric"]): row for row in rows.to_dict("records")}
    lines = [
        [Cell(row), *(cell for name in metrics for cell in _block(cells.get((row, name)), name, best[name]))]
        for row in rows["row"].unique()
    ]
    return View([Column("", numeric=False), *heads], lines, notes(rows))


def _block(row: Any, name: str, best: float) -> list[Cell]:
    """The cells of one metric, as in COLUMNS."""
    if row is None:
        return [Cell("–")] * len(COLUMNS)
    form, why, measured = f".{metric(name).decimals}f", row["reason"], Cell("–")
    if not pd.isna(row["min"]):
        spread = "" if pd.isna(row["spread"]) else f" ({row['mean']:{form}} ± {row['spread']:{form}})"
        measured = Cell(f"{row['min']:{form}}{spread}", float(row["min"]), bool(row["min"] == best))
    return [
        replace(measured, note=why),
        number_cell(row["published"], form),
        number_cell(row["difference"], f"+{form}"),
        verdict_cell(row),
        *(setting_cell(row[key]) for key in ("guidance", "main_ema", "guide_ema")),
    ]
