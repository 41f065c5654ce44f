"""Tables of a study: what each shows of its tidy CSV, which is the artefact."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from metrics.files import InputError, write_csv, write_text
from metrics.names import Name, named
from repro.report.views import MOODS, Cell, Column, View, tex_escape, to_html, to_latex, to_markdown
from repro.rows import TEXTS
from repro.study import Order

TRUE = "true"  # what competes with no method for the best value of a table
LABELS = {TRUE: "true samples", "unguided": "no guidance", "cfg": "CFG", "interval": "CFG + interval"}
AXES = {"guidance": "guidance weight w", "main_ema": "EMA main σ_rel", "guide_ema": "EMA guide σ_rel"}
SETTINGS = {
    "guidance": Column("w", "$w$"),
    "weights": Column("of each guide", numeric=False),
    "interval": Column("steps", numeric=False),
    "main_ema": Column("EMA m", r"EMA$_m$"),
    "guide_ema": Column("EMA g", r"EMA$_g$"),
    "rule": Column("rule", numeric=False),
    "main_degradations": Column("main made worse by", numeric=False),
    "guide_degradations": Column("guide made worse by", numeric=False),
}
OPTIMISED = ("guidance", "main_ema", "guide_ema")  # settings that the paper chooses for each metric apart
PUBLISHED = [Column("measured"), Column("published"), Column("difference"), Column("verdict", numeric=False)]
PUBLISHED += [SETTINGS[name] for name in OPTIMISED]


@dataclass(frozen=True)
class Table:
    """A table: its CSV is the artefact, the view is made from what the CSV holds."""

    name: str
    title: str
    caption: str
    view: Callable[[pd.DataFrame], View]
    #: What its column `verdict` judges; such tables come first, and are left out where there is nothing to judge.
    judges: str = ""


def write(table: Table, rows: pd.DataFrame, folder: Path) -> None:
    """Write NAME.csv, and the view of what that file then holds as .md, .tex and .html."""
    write_csv(folder / f"{table.name}.csv", rows)
    view = read_view(table, folder)
    texts = {"md": to_markdown(view), "tex": to_latex(view, table.name, table.caption), "html": to_html(view)}
    for suffix, text in texts.items():
        write_text(folder / f"{table.name}.{suffix}", text)


def read_csv(path: Path) -> pd.DataFrame:
    """A table's CSV; digests, commits and the like stay text even where they look like numbers."""
    return pd.read_csv(path, dtype=dict.fromkeys([*TEXTS, "reason", "values"], str)).fillna({"reason": ""})


def read_view(table: Table, folder: Path) -> View:
    """The view of a table that `write` left in `folder`."""
    return table.view(read_csv(folder / f"{table.name}.csv"))


def configurations_view(rows: pd.DataFrame) -> View:
    """Methods x metrics; settings columns appear where something is set."""
    settings = [name for name in SETTINGS if name in rows and rows[name].notna().any()]
    columns = [Column("method", numeric=False), *(SETTINGS[name] for name in settings)]
    labels, best = _labels(rows, ["method"]), _best(rows)
    lines = [
        [Cell(labels[key]), *(_setting(group[name].iloc[0]) for name in settings), *_value_cells(group, best)]
        for key, group in rows.groupby("configuration", sort=False)
    ]
    return View([*columns, *_value_columns(rows)], lines, _notes(rows))


def sensitivity_view(rows: pd.DataFrame) -> View:
    """Places on curves x metrics, a rule between curves."""
    columns = [Column("method", numeric=False), Column("varied", numeric=False), Column("value")]
    labels = _labels(rows, ["method", "axis"])
    lines: list[list[Cell]] = []
    rules = []
    for key, curve in rows.groupby("configuration", sort=False):
        rules.append(len(lines))
        best, varied = _best(curve), Cell(AXES[curve["axis"].iloc[0]])
        for value, group in curve.groupby("axis_value"):
            lines.append([Cell(labels[key]), varied, _setting(value), *_value_cells(group, best)])
    return View([*columns, *_value_columns(rows)], lines, _notes(rows), rules[1:])


def tuning_view(rows: pd.DataFrame) -> View:
    """What was found for each configuration, of rows of the metric that was optimised (`measures.trials`)."""
    settings = [name for name in ("guidance", "guide_degradations") if rows[name].notna().any()]
    columns = [Column("method", numeric=False), *(SETTINGS[name] for name in settings)]
    columns += [Column("optimised", numeric=False), *map(Column, ("value", "trials", "images each", "seeds"))]
    labels, lines = _labels(rows, ["method"]), []
    for key, group in rows.groupby("configuration", sort=False):
        known = metric(group["metric"].iloc[0])
        best = group.iloc[int((known.better * group["value"]).argmax())]
        value, counts = _number(best["value"], f".{known.decimals}f"), (f"{len(group)}", f"{best['num_images']}")
        found = [Cell(labels[key]), *(_setting(best[name]) for name in settings)]
        lines.append([*found, Cell(known.label + known.arrow), value, *map(Cell, counts), Cell(best["block"])])
    return View(columns, lines)


def _labels(rows: pd.DataFrame, unique: list[str]) -> dict[Hashable, str]:
    """configuration -> its method's label, with its id where others have the same in the columns `unique`."""
    first = rows.drop_duplicates("configuration")
    twice = first.duplicated(unique, keep=False)
    return {
        key: method_label(name) + (f" ({key})" if shared else "")
        for key, name, shared in zip(first["configuration"], first["method"], twice, strict=True)
    }


def _best(rows: pd.DataFrame) -> set[object]:
    """Index of the row whose mean is best, for every metric that has a better direction and something to compare."""
    rivals = rows[rows["method"] != TRUE].dropna(subset=["mean"])
    groups = [(metric(str(name)).better, group["mean"]) for name, group in rivals.groupby("metric")]
    return {(better * means).idxmax() for better, means in groups if better and len(means) > 1}


def _value_columns(rows: pd.DataFrame) -> list[Column]:
    """Headings of `_value_cells`: number of images, and every metric with the direction of improvement."""
    metrics = map(metric, dict.fromkeys(rows["metric"]))
    texts = ((m.label + m.arrow, (m.tex or tex_escape(m.label)) + tex_escape(m.arrow)) for m in metrics)
    return [Column("N"), *(Column(*text) for text in texts)]


def _value_cells(group: pd.DataFrame, best: set[object]) -> list[Cell]:
    """Images per block and number of blocks, then every metric of one configuration or place, a row of `group` each.

    `measures.summarise` gives every one the same metrics in the same order.
    """
    done, images = group.dropna(subset=["num_images"]), Cell("–")
    if len(done):
        count, blocks = int(done["num_images"].iloc[0]), int(done["blocks"].max())
        images = Cell(f"{blocks} × {count}" if blocks > 1 else f"{count}", float(blocks * count))
    return [images, *(_value_cell(row, place in best) for place, row in group.iterrows())]


def _value_cell(row: Any, best: bool) -> Cell:
    """Mean and spread of one summary row, or the reason why there is none."""
    why, decimals = row["reason"], metric(row["metric"]).decimals
    if pd.isna(row["mean"]):
        return Cell(why.partition(":")[0] or "not a number", note=why)
    spread = "" if pd.isna(row["spread"]) else f" ± {row['spread']:.{decimals}f}"
    return Cell(f"{row['mean']:.{decimals}f}{spread}", float(row["mean"]), best, why)


def claims_view(rows: pd.DataFrame) -> View:
    """Claims, what was measured, and the verdict (columns of `claims.COLUMNS`)."""
    columns = [Column(name, numeric=False) for name in ("claim", "verdict", "metric")]
    columns += map(Column, ("its value", "against", "difference", "95% interval", "p"))
    lines = []
    for row, repeated in zip(rows.to_dict("records"), rows.duplicated(["claim", "metric"], keep=False), strict=True):
        name = metric(row["metric"])
        form = f".{name.decimals}f"
        values = [_number(row[key], form) for key in ("value", "against_value", "difference")]
        interval, p = Cell("–"), Cell("–")
        if not pd.isna(row["standard_error"]):
            values[2] = replace(values[2], text=f"{values[2].text} ± {row['standard_error']:{form}}")
            interval = Cell(f"{row['low']:{form}} to {row['high']:{form}}")
            p = Cell("< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}", float(row["p"]))
        claim = row["claim"] + (f" ({row['configuration']})" if repeated else "")
        lines.append([Cell(claim), _verdict(row), Cell(name.label), *values, interval, p])
    return View(columns, lines)


def order_rows(order: Order, summary: pd.DataFrame) -> pd.DataFrame:
    """Methods, best published first, x training seeds: mean over seed blocks, and places in the order of the metric."""
    better = named(order.metric).better
    means = summary[summary["metric"] == order.metric].set_index("configuration")["mean"]
    rows = pd.DataFrame(
        {
            "method": method,
            "published": item.published,
            "training_seed": number,
            "configuration": key,
            "mean": means.get(key),
        }
        for method, item in order.methods.items()
        for number, key in enumerate(item.here, 1)
    ).astype({"mean": float})
    of_seed = rows.groupby("training_seed")
    rows["published_place"] = of_seed["published"].rank("min", ascending=better < 0)
    rows["place"] = of_seed["mean"].rank("min", ascending=better < 0)
    return rows.assign(metric=order.metric).sort_values(["published_place", "training_seed"], kind="stable")


def order_view(rows: pd.DataFrame) -> View:
    """Methods x the paper and every training seed (`order_rows`): each value, and in brackets its place."""
    name, seeds = metric(rows["metric"].iloc[0]), rows["training_seed"].unique()
    heads = ["in the paper", *(f"training seed {number}" for number in seeds)]
    columns = [Column("method", numeric=False), *(Column(head, block=name.label + name.arrow) for head in heads)]
    lines = []
    for method, group in rows.groupby("method", sort=False):
        first = group.iloc[0]
        places = [(first["published"], first["published_place"]), *zip(group["mean"], group["place"], strict=True)]
        lines.append([Cell(method_label(str(method))), *(_placed(*each, name.decimals) for each in places)])
    return View(columns, lines)


def _placed(value: float, place: float, decimals: int) -> Cell:
    return Cell("–") if pd.isna(value) else Cell(f"{value:.{decimals}f} ({place:.0f})", float(value), bool(place == 1))


def published_rows(cells: pd.DataFrame, summary: pd.DataFrame, table: str) -> pd.DataFrame:
    """The cells of a published table, with what the summary says of their configurations."""
    cells = cells[cells["table"] == table].drop(columns=["spread", "study"])
    summary = summary.drop(columns=["section", "axis", "axis_value", "reason"])
    return cells.merge(summary, "left", ["configuration", "metric"])


def published_view(rows: pd.DataFrame) -> View:
    """Measured beside published values (`published_rows`) in the layout of the paper's Table 1: a line per row, a block
    for FID and one for FD_DINOv2."""
    metrics = [name for name in ("fid", "fd_dinov2") if name in set(rows["metric"])]
    heads = [replace(c, block=metric(name).label + metric(name).arrow) for name in metrics for c in PUBLISHED]
    best = rows.groupby("metric")["min"].min()
    cells = {(row["row"], row["metric"]): row for row in rows.to_dict("records")}
    lines = [
        [Cell(row), *(cell for name in metrics for cell in _published_cells(cells.get((row, name)), name, best[name]))]
        for row in rows["row"].unique()
    ]
    return View([Column("", numeric=False), *heads], lines, _notes(rows))


def _published_cells(row: Any, name: str, best: float) -> list[Cell]:
    """The cells of one metric, as in PUBLISHED."""
    if row is None:
        return [Cell("–")] * len(PUBLISHED)
    form, why, measured = f".{metric(name).decimals}f", row["reason"], Cell("–")
    if not pd.isna(row["min"]):
        spread = "" if pd.isna(row["spread"]) else f" ({row['mean']:{form}} ± {row['spread']:{form}})"
        measured = Cell(f"{row['min']:{form}}{spread}", float(row["min"]), bool(row["min"] == best))
    return [
        replace(measured, note=why),
        _number(row["published"], form),
        _number(row["difference"], f"+{form}"),
        _verdict(row),
        *(_setting(row[key]) for key in OPTIMISED),
    ]


def method_label(method: str) -> str:
    """A method as readers know it; one that is not in the table is called what it is."""
    return LABELS.get(method, method)


def metric(name: str) -> Name:
    """Label and direction of a value; one whose plugin is not imported here is called what it is."""
    try:
        return named(name)
    except InputError:
        return Name(name.replace("_", " "), 0)


def _number(value: Any, form: str) -> Cell:
    return Cell("–") if pd.isna(value) else Cell(format(value, form), float(value))


def _verdict(row: Any) -> Cell:
    return Cell(row["verdict"], note=row["reason"], mood=MOODS.get(row["verdict"], ""))


def _setting(value: Any) -> Cell:
    return Cell(value) if isinstance(value, str) else _number(value, "g")


def _notes(rows: pd.DataFrame) -> list[str]:
    """Each reason for missing values once, with the configurations it holds for."""
    reasons = rows[rows["reason"] != ""].groupby("reason", sort=False)["configuration"]
    return [f"{', '.join(keys.unique())}: {reason}" for reason, keys in reasons]
