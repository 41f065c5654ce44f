"""Tables of a study: what each shows of its tidy CSV, which is the artefact."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from metrics.files import atomic_write, write_text
from repro.report.views import MOODS, Cell, Column, View, to_html, to_latex, to_markdown
from repro.verdicts.measures import method_label, metric, read_csv

REFERENCE_METHODS = {"true"}  # not competing for the best value
AXES = {"guidance": "guidance weight w", "main_ema": "EMA main σ_rel", "guide_ema": "EMA guide σ_rel"}


@dataclass(frozen=True)
class Table:
    """A table: its CSV is the artefact, the view is made from what the CSV holds."""

    name: str
    title: str
    caption: str
    view: Callable[[pd.DataFrame], View]
    judges: str = ""
    """What its column `verdict` judges; such tables come first."""


def number(value: Any, decimals: int) -> str:
    """A value with fixed decimals, empty when missing."""
    return "" if pd.isna(value) else f"{float(value):.{decimals}f}"


def measured(mean: float, spread: Any, decimals: int) -> str:
    """`mean ± spread`, without the spread where there is one block only."""
    tail = number(spread, decimals)
    return f"{mean:.{decimals}f}" + (f" ± {tail}" if tail else "")


def configurations_view(rows: pd.DataFrame) -> View:
    """Methods x metrics; settings columns appear where something is set."""
    metrics = list(dict.fromkeys(rows["metric"]))
    best = {name: _best(rows[rows["metric"] == name], name) for name in metrics}
    settings = [name for name in ("guidance", "interval", "main_ema", "guide_ema") if rows[name].notna().any()]
    columns = [Column("method", numeric=False), *(_SETTING_COLUMNS[name] for name in settings)]
    columns += [Column("N")]
    columns += [metric_column(name) for name in metrics]
    lines = []
    several = rows.groupby("method")["configuration"].nunique()
    for configuration, group in rows.groupby("configuration", sort=False):
        first = group.iloc[0]
        name = method_label(first["method"]) + ("" if several[first["method"]] == 1 else f" ({configuration})")
        line = [Cell(name), *(setting_cell(first[s]) for s in settings), _images(group)]
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        lines.append(line + [value_cell(by_metric.get(m), m, best[m] == configuration) for m in metrics])
    return View(columns, lines, notes(rows))


def sensitivity_view(rows: pd.DataFrame) -> View:
    """Sweep points x metrics."""
    metrics = list(dict.fromkeys(rows["metric"]))
    columns = [Column("method", numeric=False), Column("varied", numeric=False), Column("value"), Column("N")]
    columns += [metric_column(name) for name in metrics]
    lines: list[list[Cell]] = []
    rules: list[int] = []
    several = rows.groupby(["method", "axis"])["sweep"].nunique()
    for key, sweep in rows.groupby("sweep", sort=False):
        rules.append(len(lines))
        method, axis = sweep.iloc[0]["method"], str(sweep.iloc[0]["axis"])
        name = method_label(method) + ("" if several[method, axis] == 1 else f" ({key})")
        best = {name: _best(sweep[sweep["metric"] == name], name, "axis_value") for name in metrics}
        for value, group in sweep.groupby("axis_value"):
            by_metric = {row["metric"]: row for row in group.to_dict("records")}
            line = [
                Cell(name),
                Cell(AXES[axis]),
                setting_cell(value),
                _images(group),
            ]
            lines.append(line + [value_cell(by_metric.get(m), m, best[m] == value) for m in metrics])
    return View(columns, lines, notes(rows), rules[1:])


def claims_view(rows: pd.DataFrame) -> View:
    """Claims of the paper, what was measured, and the verdict (columns of `claims.COLUMNS`)."""
    columns = [Column(name, numeric=False) for name in ("claim", "verdict", "metric")]
    columns += [Column(name) for name in ("its value", "against", "difference")]
    repeated = rows.groupby(["claim", "metric"]).size()
    lines = []
    for row in rows.to_dict("records"):
        decimals = metric(row["metric"]).decimals
        values = [_number_cell(row[name], decimals) for name in ("value", "against_value", "difference")]
        verdict = Cell(row["verdict"], note=text_of(row["reason"]), mood=MOODS.get(row["verdict"], ""))
        claim = row["claim"] + (f" ({row['configuration']})" if repeated[row["claim"], row["metric"]] > 1 else "")
        lines.append([Cell(claim), verdict, Cell(metric(row["metric"]).label), *values])
    return View(columns, lines)


def _number_cell(value: Any, decimals: int) -> Cell:
    text = number(value, decimals)
    return Cell(text, float(value)) if text else Cell("–")


def text_of(value: Any) -> str:
    """A text of a CSV; empty where there is none."""
    return "" if pd.isna(value) else str(value)


_SETTING_COLUMNS = {
    "guidance": Column("w", "$w$"),
    "interval": Column("steps", numeric=False),
    "main_ema": Column("EMA m", r"EMA$_m$"),
    "guide_ema": Column("EMA g", r"EMA$_g$"),
}
_TEX_ARROWS = {-1: r" $\downarrow$", 0: "", 1: r" $\uparrow$"}


def metric_column(name: str, block: str = "") -> Column:
    """Heading of a metric's values, with the direction of improvement."""
    m = metric(name)
    return Column(m.label + m.arrow, m.tex + _TEX_ARROWS[m.better], block=block)


def value_cell(row: Any, name: str, best: bool = False) -> Cell:
    """Mean and spread of one summary row, or the reason why there is none."""
    if row is None:
        return Cell("–", note="not measured")
    mean, why = row["mean"], text_of(row["reason"])
    if pd.isna(mean):
        return Cell(why or "not measured", note=why or "not measured")
    spread = row.get("spread")  # curves have none
    return Cell(measured(mean, spread, metric(name).decimals), float(mean), best, why)


def setting_cell(value: Any) -> Cell:
    """A weight, an EMA length or the like."""
    if pd.isna(value):
        return Cell("–")
    return Cell(value) if isinstance(value, str) else Cell(f"{value:g}", float(value))


def _images(group: pd.DataFrame) -> Cell:
    """Images per block, and the number of blocks where there are several."""
    done = group.dropna(subset=["num_images"])
    if done.empty:
        return Cell("–")
    count, blocks = int(done["num_images"].iloc[0]), int(done["blocks"].max())
    return Cell(f"{blocks} × {count}" if blocks > 1 else f"{count}", float(blocks * count))


def _best(rows: pd.DataFrame, name: str, key: str = "configuration") -> object:
    """Which row's mean is best; None where a metric has no better direction or nothing to compare."""
    rows = rows.dropna(subset=["mean"])
    rows = rows[~rows["method"].isin(REFERENCE_METHODS)]
    if not metric(name).better or len(rows) < 2:
        return None
    place = rows["mean"].argmin() if metric(name).better < 0 else rows["mean"].argmax()
    return rows[key].iloc[place]


def notes(rows: pd.DataFrame) -> list[str]:
    """Each reason for missing values once, with the configurations it holds for."""
    named = rows[rows["reason"].fillna("") != ""]
    where = "configuration" if "configuration" in named else "sweep"
    found: dict[str, list[str]] = {}
    for reason, name in zip(named["reason"], named[where], strict=True):
        found.setdefault(str(reason), []).append(str(name))
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in found.items()]


def write(table: Table, rows: pd.DataFrame, folder: Path) -> View:
    """Write NAME.csv, and the view of what that file then holds as .md, .tex and .html."""
    with atomic_write(folder / f"{table.name}.csv") as temporary:
        rows.to_csv(temporary, index=False)
    view = read_view(table, folder)
    write_text(folder / f"{table.name}.md", to_markdown(view))
    write_text(folder / f"{table.name}.tex", to_latex(view, table.name, table.caption))
    write_text(folder / f"{table.name}.html", to_html(view))
    return view


def read_view(table: Table, folder: Path) -> View:
    """The view of a table that `write` left in `folder`."""
    return table.view(read_csv(folder / f"{table.name}.csv"))
