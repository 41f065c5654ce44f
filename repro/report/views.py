"""Views of tables as Markdown, LaTeX (booktabs), HTML and plain text."""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tabulate import SEPARATING_LINE, tabulate

MOODS = {"holds": "good", "does not hold": "bad", "reproduced": "good", "better": "good", "off": "bad"}
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
TEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "×": r"$\times$", "–": "--", "σ": r"$\sigma$", "−": "$-$", "∞": r"$\infty$"}
    | {"≤": r"$\leq$", "≥": r"$\geq$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$"}
)


@dataclass(frozen=True)
class Cell:
    """One cell of a view."""

    text: str
    #: What the column sorts by; None sorts last.
    value: float | None = None
    best: bool = False
    #: Why it is empty.
    note: str = ""
    #: `good` or `bad` for a verdict.
    mood: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a view."""

    label: str
    tex: str = ""
    numeric: bool = True
    #: Heading shared with its neighbours.
    block: str = ""


@dataclass(frozen=True)
class View:
    """What a reader sees of a table."""

    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    #: Row numbers with a rule above them.
    rules: list[int] = field(default_factory=list)

    @property
    def blocks(self) -> list[tuple[str, int]]:
        """Headings of blocks and how many columns each spans, one without a heading included; empty without blocks."""
        found = [(block, len(list(members))) for block, members in groupby(self.columns, key=lambda c: c.block)]
        return found if any(block for block, _ in found) else []


def to_markdown(view: View) -> str:
    """GitHub Markdown; the best value in bold, notes below."""
    rows = [[f"**{c.text}**" if c.best else c.text for c in row] for row in view.rows]
    table = _tabulate(view, [[text.replace("|", r"\|") for text in row] for row in [_heads(view), *rows]], "pipe")
    return "\n".join([table, *(f"\n{note}" for note in view.notes)]) + "\n"


def to_text(view: View) -> str:
    """Aligned plain text; `*` marks the best value."""
    table: list[Any] = [_heads(view)]
    for i, row in enumerate(view.rows):
        table += [SEPARATING_LINE] if i in view.rules else []
        table.append([c.text + ("*" if c.best else "") for c in row])
    return "\n".join([_tabulate(view, table, "simple"), *view.notes]) + "\n"


def _heads(view: View) -> list[str]:
    return [f"{c.block} {c.label}".strip() for c in view.columns]


def _tabulate(view: View, table: list[Any], style: str) -> str:
    align = ["right" if c.numeric else "left" for c in view.columns]
    options = {"colalign": align} if len(table) > 1 else {}  # of no rows there is nothing to align
    return tabulate(table, "firstrow", style, disable_numparse=True, **options)


def to_latex(view: View, label: str, caption: str) -> str:
    """A `table` environment, no wider than the text; needs the packages booktabs and graphicx."""
    size = r"\scriptsize\setlength{\tabcolsep}{3pt}" if len(view.columns) > 6 else r"\small"
    align = "".join("r" if c.numeric else "l" for c in view.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex_escape(caption)}}}", rf"\label{{tab:{label}}}", size]
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", *(_tex_blocks(view) if view.blocks else [])]
    lines += [" & ".join(c.tex or tex_escape(c.label) for c in view.columns) + r" \\", r"\midrule"]
    for i, row in enumerate(view.rows):
        cells = [rf"\textbf{{{tex_escape(c.text)}}}" if c.best else tex_escape(c.text) for c in row]
        lines += [*([r"\midrule"] if i in view.rules else []), " & ".join(cells) + r" \\"]
    notes = [rf"\par\smallskip\footnotesize {tex_escape(note)}" for note in view.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", *notes, r"\end{table}"]) + "\n"


def _tex_blocks(view: View) -> list[str]:
    heads, rules, end = [], [], 0
    for block, width in view.blocks:
        end += width
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{tex_escape(block)}}}" if block else "& " * (width - 1))
        rules += [rf"\cmidrule(lr){{{end - width + 1}-{end}}}"] if block else []
    return [" & ".join(heads) + r" \\", " ".join(rules)]


def tex_escape(text: str) -> str:
    """Plain text as LaTeX."""
    return text.translate(TEX)


def to_html(view: View) -> str:
    """A `<table>`; every cell carries the value it sorts by."""
    return TEMPLATES.get_template("table.html").render(view=view)
