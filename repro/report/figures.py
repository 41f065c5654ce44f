"""Figures of a study, in the style of `repro.drawing`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.figure import Figure
from numpy.typing import NDArray

from repro.drawing import COLUMN, MARKERS, MUTED, PAGE, PALETTE, styled
from repro.pixels import image_grid
from repro.report.tables import method_label, metric

#: Methods have the same colour in every figure.
COLOURS = {"unguided": MUTED, "autoguidance": PALETTE[0], "cfg": PALETTE[1], "interval": PALETTE[2]}


def look(name: str, place: int, beside: Iterable[str] = tuple(COLOURS)) -> dict[str, Any]:
    """How matplotlib draws a method: its colour is the same in every figure; others have one by their place in the
    figure, apart from the methods' that stand `beside`, and with its marker no two of 18 look alike."""
    free = [c for c in PALETTE if c not in {COLOURS.get(other) for other in beside}]
    colour = COLOURS.get(name, free[place % len(free)])
    marker = MARKERS[(place + place // len(MARKERS)) % len(MARKERS)]
    return {"color": colour, "marker": marker, "label": method_label(name)}


@styled
def draw_curves(points: pd.DataFrame, labels: dict[str, str], xlabel: str) -> Figure:
    """Metrics along one axis: a panel per metric, a curve per sweep, a band from least to largest block.

    `points`: rows of `measures.curves`; `labels`: sweep -> name in the legend.
    """
    metrics = list(dict.fromkeys(points["metric"]))
    columns = min(len(metrics), 3)
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, 1.9 * lines + 0.45))
    for number, name in enumerate(metrics, 1):
        ax = figure.add_subplot(lines, columns, number)
        for place, (sweep, label) in enumerate(labels.items()):
            curve = points[(points["configuration"] == sweep) & (points["metric"] == name)].set_index("axis_value")
            curve, style = curve.sort_index(), look(label, place, labels.values())
            ax.plot(curve.index, curve["mean"], **style)
            ax.fill_between(curve.index, curve["min"], curve["max"], color=style["color"], alpha=0.2, linewidth=0)
        ax.set(xlabel=xlabel, ylabel=metric(name).axis)
    _legend(figure, len(labels))
    return figure


def _legend(figure: Figure, count: int) -> None:
    """A legend of the first panel's curves above all panels, where no data can be."""
    if count > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        inches = 0.47 + 0.06 * max(map(len, labels))  # of a handle with its text, at 7 pt
        columns = min(count, 4 if figure.get_figwidth() > COLUMN else 2, max(1, int(figure.get_figwidth() / inches)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


@styled
def draw_tradeoff(points: pd.DataFrame, labels: dict[str, str], x: str, y: str) -> Figure:
    """One metric against another along the weight; each point is labelled with its weight."""
    figure = Figure(figsize=(COLUMN, 3.0))
    ax = figure.subplots()
    table = points.pivot(index=["configuration", "axis_value"], columns="metric", values="mean")[[x, y]]
    extent = (table.max() - table.min()).to_numpy()
    labelled: list[NDArray[np.float64]] = []
    for place, (sweep, label) in enumerate(labels.items()):
        if sweep not in table.index:
            continue
        curve = table.loc[sweep]
        ax.plot(curve[x], curve[y], **look(label, place))
        for weight, following, here in zip(curve.index, curve[x].shift(-1), curve.to_numpy(), strict=True):
            if any(np.abs((here - other) / extent).max() < 0.1 for other in labelled):
                continue  # its label would lie on another
            labelled.append(here)
            side, align = (-4, "right") if following > here[0] else (4, "left")  # away from the curve's next point
            ax.annotate(f"{weight:g}", tuple(here), (side, 4), textcoords="offset points", fontsize=7, ha=align)
    ax.margins(0.1)
    ax.set(xlabel=metric(x).axis, ylabel=metric(y).axis)
    _legend(figure, len(labels))
    return figure


@styled
def draw_methods(summary: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Configurations side by side: mean as a point, least and largest block as a bar; a panel per metric."""
    methods = dict(zip(summary["configuration"], summary["method"], strict=True))
    figure = Figure(figsize=(PAGE, 0.24 * len(methods) + 0.75))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, metrics, strict=True):
        rows = summary[summary["metric"] == name].set_index("configuration").reindex(list(methods))
        for i, (shown, (_, row)) in enumerate(zip(methods.values(), rows.iterrows(), strict=True)):
            shade = look(shown, i)["color"]
            ax.hlines(i, row["min"], row["max"], color=shade, linewidth=4, alpha=0.35)
            ax.plot(row["mean"], i, color=shade, marker="o", linestyle="none")
        ax.set_xlabel(metric(name).axis)
        ax.grid(axis="y", visible=False)
    unique = len(set(methods.values())) == len(methods)
    labels = [method_label(shown) if unique else key for key, shown in methods.items()]
    panels[0].set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    return figure


@styled
def draw_scatter(summary: pd.DataFrame, x: str, y: str, values: str = "min", scale: str = "log") -> Figure:
    """One metric against another, a point per configuration; `values` is the column that is shown."""
    table = summary.pivot_table(index=["configuration", "method"], columns="metric", values=values, sort=False)
    groups = table.dropna(subset=[x, y]).groupby("method", sort=False)
    figure = Figure(figsize=(COLUMN, 3.2))
    ax = figure.subplots()
    for place, (name, rows) in enumerate(groups):
        ax.plot(rows[x], rows[y], linestyle="none", **look(str(name), place))
    ax.set(xscale=scale, yscale=scale, xlabel=metric(x).axis, ylabel=metric(y).axis)
    _legend(figure, len(groups))
    return figure


@styled
def draw_samples(images: dict[str, NDArray[np.uint8]], labels: NDArray[np.int64], seeds: NDArray[np.int64]) -> Figure:
    """Samples of the same seeds side by side: a block of columns per method, a row per class.

    `images`: method -> uint8 [n, H, W, C], `labels` and `seeds` int64 [n] shared by all methods.
    """
    rows = sample_rows(labels)
    per_class = len(rows[0])
    figure = Figure(figsize=(PAGE, PAGE * len(rows) / (per_class * len(images) + len(images) - 1) + 0.3))
    blocks = figure.subplots(1, len(images), squeeze=False)[0]
    ticks = [f"class {labels[row[0]]}" if per_class > 1 else f"seed {seeds[row[0]]}" for row in rows]
    for ax, (name, found) in zip(blocks, images.items(), strict=True):
        picture = mosaic(found[np.concatenate(rows)], per_class)
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        centres = (np.arange(len(rows)) + 0.5) * (picture.height / len(rows)) - 0.5
        ax.set(xticks=[], yticks=centres, yticklabels=ticks if ax is blocks[0] else [], title=method_label(name))
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    return figure


def mosaic(images: NDArray[np.uint8], columns: int) -> PIL.Image.Image:
    """uint8 [n, H, W, C] side by side, row by row; gaps and what the last row lacks are white."""
    gap = max(1, images.shape[2] // 32)
    tiles = np.pad(images, ((0, -len(images) % columns), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return image_grid(list(tiles), columns)


def sample_rows(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Which images make the rows of a grid: up to four of each class, or eight seeds where classes hardly repeat."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) > 12 or counts.min() < 2:
        return [np.array([i]) for i in range(min(len(labels), 8))]
    return [np.flatnonzero(labels == c)[: min(4, counts.min())] for c in classes]
