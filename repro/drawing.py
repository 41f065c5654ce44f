"""Figures: one style, legible at column width and safe for colour-blind readers, and files with the same bytes."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from metrics.files import atomic_write

COLUMN, PAGE = 3.4, 7.0  # inches: one and two columns of a paper
INK = "#1b1b1e"  # no other thing has this colour, so that a page can replace it by its own ink
MUTED = "#8a8a90"  # readable on white and on black
# Okabe and Ito's palette keeps apart under every common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
WEIGHT_LABEL = "guidance weight w"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right"), False),
    "axes.grid": True,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "autoguidance-repro",  # else every rendering has other ids
}
#: Decorates what draws a figure.
styled = matplotlib.rc_context(STYLE)


def save(
    figure: Figure, stem: Path, style: dict[Any, Any] = STYLE, dpi: float = 200, lay_out_once: bool = True
) -> None:
    """Write `stem`.png, of so many `dpi`, and `stem`.svg, the same bytes for the same figure.

    `style` is what the figure was drawn with, `svg.hashsalt` among it. `lay_out_once`: the SVG keeps the PNG's layout
    instead of one for its own resolution.
    """
    with matplotlib.rc_context(style):
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            with atomic_write(stem.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata, facecolor="white")
            if lay_out_once:
                figure.set_layout_engine("none")
