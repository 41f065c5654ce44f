"""Views of tables as Markdown, LaTeX (booktabs), HTML and plain text."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import SEPARATING_LINE, tabulate

MOODS = {"holds": "good", "does not hold": "bad", "reproduced": "good", "better": "good", "off": "bad"}
TEMPLATES = Environment(
    loader=PackageLoader("repro.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
TEX_TEMPLATES = TEMPLATES.overlay("<%", "%>", "<<", ">>", autoescape=False)  # LaTeX is full of braces
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
    def blocks(self) -> list[tuple[str, list[int]]]:
        """Headings of blocks and the numbers, from 1, of the columns under each; those without one are a block too."""
        blocks = groupby(enumerate(self.columns, 1), key=lambda numbered: numbered[1].block)
        found = [(block, [number for number, _ in members]) for block, members in blocks]
        return found if any(block for block, _ in found) else []  # nothing, where no column has a heading


def to_markdown(view: View) -> str:
    """GitHub Markdown; the best value in bold, notes below."""
    rows = [[f"**{c.text}**" if c.best else c.text for c in row] for row in view.rows]
    table = _tabulate(view, [[text.replace("|", r"\|") for text in row] for row in [_heads(view), *rows]], "pipe")
    return "\n".join([table, *(f"\n{note}" for note in view.notes)]) + "\n"


def to_text(view: View) -> str:
    """Aligned plain text; `*` marks the best value."""
    table: list[Any] = [_heads(view), *([c.text + ("*" if c.best else "") for c in row] for row in view.rows)]
    for i in reversed(view.rules):
        table.insert(i + 1, SEPARATING_LINE)
    return "\n".join([_tabulate(view, table, "simple"), *view.notes]) + "\n"


def _heads(view: View) -> list[str]:
    return [f"{c.block} {c.label}".strip() for c in view.columns]


def _tabulate(view: View, table: list[Any], style: str) -> str:
    align = ["right" if c.numeric else "left" for c in view.columns]
    options = {"colalign": align} if len(table) > 1 else {}  # of no rows there is nothing to align
    return tabulate(table, "firstrow", style, disable_numparse=True, **options)


def to_latex(view: View, label: str, caption: str) -> str:
    """A `table` environment, no wider than the text; needs the packages booktabs and graphicx."""
    return (
        TEX_TEMPLATES.get_template("table.tex").render(view=view, label=label, caption=caption, tex=tex_escape) + "\n"
    )


def tex_escape(text: str) -> str:
    """Plain text as LaTeX."""
    return text.translate(TEX)


def to_html(view: View) -> str:
    """A `<table>`; every cell carries the value it sorts by."""
    return TEMPLATES.get_template("table.html").render(view=view)
