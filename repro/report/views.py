"""Views of tables as Markdown, LaTeX (booktabs), HTML and plain text."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

MOODS = {"holds": "good", "does not hold": "bad", "reproduced": "good", "better": "good", "off": "bad"}


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
    """A `table` environment, no wider than the text; needs the packages booktabs and graphicx."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex_escape(caption)}}}", rf"\label{{tab:{label}}}"]
    lines += [r"\scriptsize\setlength{\tabcolsep}{3pt}"] if len(view.columns) > 6 else [r"\small"]
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in view.columns)}}}", r"\toprule"]
    if any(c.block for c in view.columns):
        lines += _tex_blocks(view.columns)
    lines += [" & ".join(c.tex or tex_escape(c.label) for c in view.columns) + r" \\", r"\midrule"]
    for i, row in enumerate(view.rows):
        if i in view.rules:
            lines.append(r"\midrule")
        cells = [rf"\textbf{{{tex_escape(c.text)}}}" if c.best else tex_escape(c.text) for c in row]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
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
