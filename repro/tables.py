"""Tables of a study: views of the tidy CSVs as Markdown, LaTeX (booktabs), HTML and plain text."""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from metrics.files import atomic_write, write_text
from repro.measures import method_label, metric, read_csv

REFERENCE_METHODS = {"true"}  # not competing for the best value
MOODS = {"holds": "good", "does not hold": "bad", "reproduced": "good", "better": "good", "off": "bad"}
AXES = {"guidance": "guidance weight w", "main_ema": "EMA main σ_rel", "guide_ema": "EMA guide σ_rel"}


@dataclass(frozen=True)
class Cell:
    """One cell of a view."""

    text: str
    value: float | None = None
    """What the column sorts by; None sorts last."""
    best: bool = False
    note: str = ""
    """Why it is empty."""
    mood: str = ""
    """`good` or `bad` for a verdict."""


@dataclass(frozen=True)
class Column:
    """One column of a view."""

    label: str
    tex: str = ""
    numeric: bool = True
    block: str = ""
    """Heading shared with its neighbours."""


@dataclass(frozen=True)
class View:
    """What a reader sees of a table."""

    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    rules: list[int] = field(default_factory=list)
    """Row numbers with a rule above them."""


@dataclass(frozen=True)
class Table:
    """A table: its CSV is the artefact, the view is made from what the CSV holds."""

    name: str
    title: str
    caption: str
    view: Callable[[pd.DataFrame], View]


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
        line = [Cell(name), *(_setting(first[s]) for s in settings), _images(group)]
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        lines.append(line + [value_cell(by_metric.get(m), m, best[m] == configuration) for m in metrics])
    return View(columns, lines, _notes(rows))


def sensitivity_view(rows: pd.DataFrame) -> View:
    """Sweep points x metrics."""
    metrics = list(dict.fromkeys(rows["metric"]))
    columns = [Column("method", numeric=False), Column("varied", numeric=False), Column("value"), Column("N")]
    columns += [metric_column(name) for name in metrics]
    lines: list[list[Cell]] = []
    rules: list[int] = []
    for _, sweep in rows.groupby("sweep", sort=False):
        rules.append(len(lines))
        best = {name: _best(sweep[sweep["metric"] == name], name, "axis_value") for name in metrics}
        for value, group in sweep.groupby("axis_value"):
            first = group.iloc[0]
            by_metric = {row["metric"]: row for row in group.to_dict("records")}
            line = [
                Cell(method_label(first["method"])),
                Cell(AXES[str(first["axis"])]),
                _setting(value),
                _images(group),
            ]
            lines.append(line + [value_cell(by_metric.get(m), m, best[m] == value) for m in metrics])
    return View(columns, lines, _notes(rows), rules[1:])


def claims_view(rows: pd.DataFrame) -> View:
    """Claims of the paper, what was measured, and the verdict (columns of `claims.COLUMNS`)."""
    columns = [Column(name, numeric=False) for name in ("claim", "verdict", "metric")]
    columns += [Column(name) for name in ("its value", "against", "difference")]
    lines = []
    for row in rows.to_dict("records"):
        decimals = metric(row["metric"]).decimals
        values = [_number_cell(row[name], decimals) for name in ("value", "against_value", "difference")]
        verdict = Cell(row["verdict"], note=_text(row["reason"]), mood=MOODS.get(row["verdict"], ""))
        lines.append([Cell(row["claim"]), verdict, Cell(metric(row["metric"]).label), *values])
    return View(columns, lines)


def _number_cell(value: Any, decimals: int) -> Cell:
    text = number(value, decimals)
    return Cell(text, float(value)) if text else Cell("–")


def _text(value: Any) -> str:
    """A text of a CSV; empty where there is none."""
    return "" if pd.isna(value) else str(value)


_SETTING_COLUMNS = {
    "guidance": Column("w", "$w$"),
    "interval": Column("steps", numeric=False),
    "main_ema": Column("EMA main", r"EMA$_m$"),
    "guide_ema": Column("EMA guide", r"EMA$_g$"),
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
    mean, why = row["mean"], _text(row["reason"])
    if pd.isna(mean):
        return Cell(why.split(" (")[0] or "not measured", note=why or "not measured")
    spread = row.get("spread")  # curves have none
    return Cell(measured(mean, spread, metric(name).decimals), float(mean), best, why)


def _setting(value: Any) -> Cell:
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


def _notes(rows: pd.DataFrame) -> list[str]:
    """Each reason for missing values once, with the configurations it holds for."""
    named = rows[rows["reason"].fillna("") != ""]
    where = "configuration" if "configuration" in named else "sweep"
    found: dict[str, list[str]] = {}
    for reason, name in zip(named["reason"], named[where], strict=True):
        found.setdefault(str(reason), []).append(str(name))
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in found.items()]


def to_markdown(view: View) -> str:
    """GitHub Markdown; the best value in bold, notes below."""
    header = [f"{c.block} {c.label}".strip() for c in view.columns]
    lines = [_pipe(header), _pipe(["--:" if c.numeric else ":--" for c in view.columns])]
    lines += [_pipe([f"**{c.text}**" if c.best else c.text for c in row]) for row in view.rows]
    return "\n".join(lines + [f"\n{note}" for note in view.notes]) + "\n"


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def to_text(view: View) -> str:
    """Aligned plain text; `*` marks the best value."""
    header = [f"{c.block} {c.label}".strip() for c in view.columns]
    body = [[c.text + ("*" if c.best else "") for c in row] for row in view.rows]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = []
    for i, line in enumerate([header, ["-" * width for width in widths], *body]):
        if i - 2 in view.rules:
            lines.append("")
        cells = zip(line, widths, view.columns, strict=True)
        lines.append("  ".join(t.rjust(w) if c.numeric else t.ljust(w) for t, w, c in cells).rstrip())
    return "\n".join([*lines, *view.notes]) + "\n"


def to_latex(view: View, label: str, caption: str) -> str:
    """A `table` environment; needs the package booktabs."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex_escape(caption)}}}", rf"\label{{tab:{label}}}"]
    lines += [r"\scriptsize"] if len(view.columns) > 9 else [r"\small"]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in view.columns)}}}", r"\toprule"]
    if any(c.block for c in view.columns):
        lines += _tex_blocks(view.columns)
    lines += [" & ".join(c.tex or tex_escape(c.label) for c in view.columns) + r" \\", r"\midrule"]
    for i, row in enumerate(view.rows):
        if i in view.rules:
            lines.append(r"\midrule")
        cells = [rf"\textbf{{{tex_escape(c.text)}}}" if c.best else tex_escape(c.text) for c in row]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {tex_escape(note)}" for note in view.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tex_blocks(columns: list[Column]) -> list[str]:
    heads, rules, start = [], [], 1
    for block, members in groupby(columns, key=lambda c: c.block):
        width = len(list(members))
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{tex_escape(block)}}}" if block else "& " * (width - 1))
        if block:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return [" & ".join(heads) + r" \\", " ".join(rules)]


def tex_escape(text: str) -> str:
    """Plain text as LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    special |= {"±": r"$\pm$", "×": r"$\times$", "–": "--", "σ": r"$\sigma$", "−": "$-$"}
    special |= {"≤": r"$\leq$", "≥": r"$\geq$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$"}
    return re.sub("|".join(map(re.escape, special)), lambda found: special[found[0]], text)


def to_html(view: View) -> str:
    """A `<table>`; every cell carries the value it sorts by."""
    lines = ["<table>", "<thead>"]
    if any(c.block for c in view.columns):
        blocks = [(block, len(list(members))) for block, members in groupby(view.columns, key=lambda c: c.block)]
        lines.append("<tr>" + "".join(f'<th colspan="{n}" class="block">{html.escape(b)}</th>' for b, n in blocks))
    heads = (f'<th scope="col"{_numeric(c)}>{html.escape(c.label)}</th>' for c in view.columns)
    lines += ["<tr>" + "".join(heads), "</thead>", "<tbody>"]
    for i, row in enumerate(view.rows):
        cells = "".join(_html_cell(c, column) for c, column in zip(row, view.columns, strict=True))
        lines.append(("<tr class=rule>" if i in view.rules else "<tr>") + cells)
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


def _numeric(column: Column) -> str:
    return " class=number" if column.numeric else ""


def _html_cell(cell: Cell, column: Column) -> str:
    text = html.escape(cell.text)
    attributes = _numeric(column) + (f" class={cell.mood}" if cell.mood else "")
    attributes += "" if cell.value is None else f' data-value="{cell.value!r}"'
    attributes += f' title="{html.escape(cell.note)}"' if cell.note else ""
    return f"<td{attributes}>{f'<strong>{text}</strong>' if cell.best else text}</td>"


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
