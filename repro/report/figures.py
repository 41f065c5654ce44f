"""Figures of a study, all in one style: legible at column width, safe for colour-blind readers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metrics.files import atomic_write
from repro.verdicts.measures import method_label, metric

COLUMN, PAGE = 3.4, 7.0  # inches: one and two columns of a paper
INK = "#1b1b1e"  # no other thing has this colour, so that a page can replace it by its own ink
MUTED = "#8a8a90"  # readable on white and on black
# Okabe and Ito's palette keeps apart under every common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
COLOURS = {"unguided": MUTED, "autoguidance": PALETTE[0], "cfg": PALETTE[1], "interval": PALETTE[2]}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.dpi": 200,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "autoguidance-repro",  # else every rendering has other ids
}
WEIGHT_LABEL = "guidance weight w"
EMA_LABEL = r"EMA length $\sigma_{\mathrm{rel}}$"


def colour(name: str, place: int, beside: Iterable[str] = tuple(COLOURS)) -> str:
    """A method's colour, the same in every figure; others by their place in the figure, apart from the methods' that
    stand `beside`."""
    free = [c for c in PALETTE if c not in {COLOURS.get(other) for other in beside}]
    return COLOURS.get(name) or free[place % len(free)]


def label_of(name: str) -> str:
    """An axis label: the metric and which way is better."""
    return metric(name).tex + metric(name).arrow


def save(draw: Callable[[], Figure], stem: Path, data: pd.DataFrame | None = None) -> None:
    """Write STEM.png and STEM.svg, and the numbers they show as STEM.csv."""
    with matplotlib.rc_context(STYLE):
        figure = draw()
        for suffix, metadata in (("png", None), ("svg", {"Date": None})):
            with atomic_write(stem.with_suffix(f".{suffix}")) as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata, facecolor="white")
            figure.set_layout_engine("none")  # laid out once, the same in both
    if data is not None:
        with atomic_write(stem.with_suffix(".csv")) as temporary:
            data.to_csv(temporary, index=False)


def draw_curves(points: pd.DataFrame, labels: dict[str, str], xlabel: str) -> Figure:
    """Metrics along one axis: a panel per metric, a curve per sweep, a band from least to largest block.

    `points`: rows of `measures.curves`; `labels`: sweep -> name in the legend.
    """
    metrics = list(dict.fromkeys(points["metric"]))
    columns = min(len(metrics), 3)
    lines = -(-len(metrics) // columns)
    width = COLUMN if columns == 1 else PAGE
    figure = Figure(figsize=(width, 1.9 * lines + 0.45))
    grid = figure.subplots(lines, columns, squeeze=False)
    for ax, name in zip(grid.flat, metrics, strict=False):
        for place, (sweep, label) in enumerate(labels.items()):
            curve = points[(points["sweep"] == sweep) & (points["metric"] == name)].sort_values("axis_value")
            shade = colour(label, place, labels.values())
            marker = MARKERS[place % len(MARKERS)]
            ax.plot(curve["axis_value"], curve["mean"], color=shade, marker=marker, label=method_label(label))
            ax.fill_between(curve["axis_value"], curve["min"], curve["max"], color=shade, alpha=0.2, linewidth=0)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(label_of(name))
    for ax in list(grid.flat)[len(metrics) :]:
        ax.set_visible(False)
    _legend(figure, grid.flat[0], len(labels))
    return figure


def _legend(figure: Figure, ax: Axes, count: int) -> None:
    """A legend above the panels, where no data can be."""
    if count > 1:
        handles, labels = ax.get_legend_handles_labels()
        inches = 0.47 + 0.06 * max(map(len, labels))  # of a handle with its text, at 7 pt
        fitting = max(1, int(figure.get_figwidth() / inches))
        columns = min(count, 4 if figure.get_figwidth() > COLUMN else 2, fitting)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def draw_tradeoff(points: pd.DataFrame, labels: dict[str, str], x: str, y: str) -> Figure:
    """One metric against another along the weight; each point is labelled with its weight."""
    figure = Figure(figsize=(COLUMN, 3.0))
    ax = figure.subplots()
    values = points.pivot(index=["sweep", "axis_value"], columns="metric", values="mean")[[x, y]].to_numpy()
    extent = values.max(axis=0) - values.min(axis=0)
    labelled: list[NDArray[np.float64]] = []
    for place, (sweep, label) in enumerate(labels.items()):
        table = points[points["sweep"] == sweep].pivot(index="axis_value", columns="metric", values="mean")
        shade = colour(label, place)
        ax.plot(table[x], table[y], color=shade, marker=MARKERS[place % len(MARKERS)], label=method_label(label))
        ahead = table[x].shift(-1)
        for weight, following, here in zip(table.index, ahead, table[[x, y]].to_numpy(), strict=True):
            if any(np.abs((here - other) / extent).max() < 0.1 for other in labelled):
                continue  # its label would lie on another
            labelled.append(here)
            side = -1 if following > here[0] else 1  # away from the curve's next point
            align = "right" if side < 0 else "left"
            ax.annotate(f"{weight:g}", tuple(here), (4 * side, 4), textcoords="offset points", fontsize=7, ha=align)
    ax.margins(0.1)
    ax.set_xlabel(label_of(x))
    ax.set_ylabel(label_of(y))
    _legend(figure, ax, len(labels))
    return figure


def draw_methods(summary: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Configurations side by side: mean as a point, least and largest block as a bar; a panel per metric."""
    names = list(dict.fromkeys(summary["configuration"]))
    shown = dict(zip(summary["configuration"], summary["method"], strict=True))
    figure = Figure(figsize=(PAGE, 0.24 * len(names) + 0.75))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, metrics, strict=True):
        rows = summary[summary["metric"] == name].set_index("configuration").reindex(names)
        for i, (configuration, row) in enumerate(rows.iterrows()):
            method = shown[str(configuration)]
            shade = colour(method, i)
            ax.hlines(i, row["min"], row["max"], color=shade, linewidth=4, alpha=0.35)
            ax.plot(row["mean"], i, color=shade, marker="o", linestyle="none")
        ax.set_xlabel(label_of(name))
        ax.grid(axis="y", visible=False)
    unique = len(set(shown.values())) == len(names)
    panels[0].set_yticks(range(len(names)), [method_label(shown[n]) if unique else n for n in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def draw_scatter(summary: pd.DataFrame, x: str, y: str) -> Figure:
    """One metric against another, a point per configuration."""
    table = summary.pivot_table(index=["configuration", "method"], columns="metric", values="min", sort=False)
    table = table.dropna(subset=[x, y])
    figure = Figure(figsize=(COLUMN, 3.2))
    ax = figure.subplots()
    methods = list(dict.fromkeys(table.index.get_level_values("method")))
    for place, method in enumerate(methods):
        rows = table[table.index.get_level_values("method") == method]
        ax.plot(
            rows[x],
            rows[y],
            linestyle="none",
            color=colour(method, place),
            marker=MARKERS[place % len(MARKERS)],
            label=method_label(method),
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(label_of(x))
    ax.set_ylabel(label_of(y))
    _legend(figure, ax, len(methods))
    return figure


def draw_search(path: pd.DataFrame, name: str) -> Figure:
    """A guide search: what was measured on all images of its seeds, over the images that it took and over the weight.

    `path`: its path.csv; `name`: the metric.
    """
    rows = path[(path["stage"] != "fresh seeds")]
    rows = rows[rows["num_images"] == rows["num_images"].max()]
    best = rows[rows["accepted"]]
    figure = Figure(figsize=(PAGE, 2.6))
    progress, weights = figure.subplots(1, 2, sharey=True)
    progress.plot(rows["images"] / 1000, rows["value"], linestyle="none", marker="o", color=MUTED, label="candidates")
    progress.step(best["images"] / 1000, best["value"], where="post", marker="o", color=PALETTE[0], label="best so far")
    progress.set_xlabel("images generated (thousands)")
    progress.set_ylabel(label_of(name))
    progress.legend()
    for place, ((guide, kimg), group) in enumerate(rows.groupby(["guide", "kimg"])):
        marker = MARKERS[place % len(MARKERS)]
        shade = PALETTE[place % len(PALETTE)]
        label = f"{guide}, {kimg} kimg"
        weights.plot(group["guidance"], group["value"], linestyle="none", marker=marker, color=shade, label=label)
    weights.set_xlabel(WEIGHT_LABEL)
    weights.legend()
    return figure


def draw_samples(images: dict[str, NDArray[np.uint8]], labels: NDArray[np.int64], seeds: NDArray[np.int64]) -> Figure:
    """Samples of the same seeds side by side: a block of columns per method, a row per class.

    `images`: method -> uint8 [n, H, W, C], `labels` and `seeds` int64 [n] shared by all methods.
    """
    rows = sample_rows(labels)
    per_class = len(rows[0])
    figure = Figure(figsize=(PAGE, PAGE * len(rows) / (per_class * len(images) + len(images) - 1) + 0.3))
    blocks = figure.subplots(1, len(images), squeeze=False)[0]
    for ax, (method, found) in zip(blocks, images.items(), strict=True):
        gap = max(1, found.shape[1] // 32)
        tiles = np.pad(found, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
        mosaic = np.concatenate([np.concatenate(list(tiles[row]), axis=1) for row in rows])
        ax.imshow(mosaic.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        names = [f"class {labels[row[0]]}" if per_class > 1 else f"seed {seeds[row[0]]}" for row in rows]
        centres = (np.arange(len(rows)) + 0.5) * tiles.shape[1] - 0.5
        ax.set_yticks(centres, names if ax is blocks[0] else [])
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.set_title(method_label(method))
    return figure


def sample_rows(labels: NDArray[np.int64], limit: int = 4) -> list[NDArray[np.int64]]:
    """Which images make the rows of a grid: up to `limit` of each class, or eight seeds where classes hardly repeat."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) > 12 or counts.min() < 2:
        return [np.array([i]) for i in range(min(len(labels), 8))]
    width = min(limit, int(counts.min()))
    return [np.flatnonzero(labels == c)[:width] for c in classes]
