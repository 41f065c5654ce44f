"""The paper's figures 1 and 2, redrawn from networks trained here."""

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from repro.drawing import PAGE, PALETTE
from repro.toy.mixture import Mixture, fractal
from repro.toy.model import ToyNetwork
from repro.toy.sampling import Method, trajectories
from repro.toy.settings import ToySettings

OVERVIEW = (0.30, 0.30, 1.2)  # centre and half the side of the view
CLOSEUP = (0.45, 1.22, 0.3)
SIGMA_MID = 0.03  # noise level of the close-up
SPACING = 0.045  # distance that noisy points of the close-up keep from each other
RESOLUTION = 300  # grid points per side for contours
NUM_SHOWN = 8192  # samples in a panel of the overview
CLASSES = {"B": ("#E4E4E4", "#CCCCCC"), "A": ("#FBE3B0", "#F0C060")}  # outer and inner contour
DARK = "#333333"
STYLE: Any = {"font.size": 7, "axes.titlesize": 7, "svg.fonttype": "none", "svg.hashsalt": "toy", "figure.dpi": 100}
styled = matplotlib.rc_context(STYLE)


@styled
def draw_overview(level: float, samples: dict[str, Tensor]) -> Figure:
    """Figure 1: the distribution of class A beside class B's, and points of class A in a panel each.

    `level`: log density of class A's contour of 99% of its mass; `samples`: title of the panel -> points [N, 2].
    """
    fields = [(_field(OVERVIEW, fractal(name).log_density), colours) for name, colours in CLASSES.items()]
    figure = Figure(figsize=(PAGE, 1.15 * PAGE / len(samples)), layout="constrained")
    axes = figure.subplots(1, len(samples))
    for ax, letter, (title, points) in zip(axes, "abcde", samples.items(), strict=True):
        for field, colours in fields:
            ax.contourf(*field, levels=[level, level + 2, np.inf], colors=colours)
        ax.scatter(*points[:NUM_SHOWN].T, s=0.5, color=PALETTE[0], linewidths=0, rasterized=True)
        _finish(ax, OVERVIEW, f"({letter}) {title}")
    cx, cy, half = CLOSEUP
    axes[2].add_patch(Rectangle((cx - half, cy - half), 2 * half, 2 * half, fill=False, color=DARK, linewidth=0.8))
    return figure


@styled
@torch.no_grad()
def draw_closeup(settings: ToySettings, mixture: Mixture, main: ToyNetwork, guided: list[Method]) -> Figure:
    """Figure 2: at a middle noise level, what main network and guide have learnt, and how their ratio guides.

    One row per method of `guided`, each with a guide of class ToyNetwork; `mixture` is class A.
    """
    starts = _noisy_points(mixture)
    unguided = trajectories(Method("unguided", "No guidance", 1.0, main), settings, starts, SIGMA_MID)
    letter = iter("abcdefgh")
    figure = Figure(figsize=(PAGE, 2.0 * len(guided)), layout="constrained")
    rows = figure.subplots(len(guided), 4, squeeze=False)
    for row, method in zip(rows, guided, strict=True):
        assert isinstance(method.guide, ToyNetwork)
        for ax, network in ((row[0], main), (row[1], method.guide)):
            _draw_density(ax, network)
            _draw_arrows(ax, starts, network.score(starts, SIGMA_MID))
        _draw_ratio(row[2], main, method.guide)
        _draw_arrows(row[2], starts, main.score(starts, SIGMA_MID) - method.guide.score(starts, SIGMA_MID))
        _draw_paths(row[3], mixture, unguided, trajectories(method, settings, starts, SIGMA_MID))
        for ax, title in zip(row, ("Main model: density", "Guide: density", "Ratio", "Trajectories"), strict=True):
            _finish(ax, CLOSEUP, f"({next(letter)}) {title}")
        row[0].set_ylabel(method.title)
    figure.legend(*rows[0][3].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    return figure


def _field(view: tuple[float, float, float], values: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, ...]:
    """Coordinates along x and y of a grid that fills the view, and `values` of its points, [N, 2] -> [N]."""
    cx, cy, half = view
    x, y = (torch.linspace(centre - half, centre + half, RESOLUTION) for centre in (cx, cy))
    return x.numpy(), y.numpy(), values(torch.cartesian_prod(y, x).flip(1)).reshape(len(y), len(x)).double().numpy()


def _noisy_points(mixture: Mixture) -> Tensor:
    """Noisy points [N, 2] of `mixture` in the close-up, thinned until none lie closer than SPACING."""
    generator = torch.Generator().manual_seed(0)
    points = mixture.sample(4096, generator) + SIGMA_MID * torch.randn([4096, 2], generator=generator)
    *centre, half = CLOSEUP
    kept: list[Tensor] = []
    for point in points[((points - torch.tensor(centre)).abs() < half).all(1)]:
        if all((point - other).norm() >= SPACING for other in kept):
            kept.append(point)
    return torch.stack(kept)


def _draw_density(ax: Axes, network: ToyNetwork) -> None:
    """Contours of a learnt density, even in the square root of the distance below its peak."""
    x, y, values = _field(CLOSEUP, lambda points: network.log_density(points, SIGMA_MID))
    depth, levels = -np.sqrt(values.max() - values), np.linspace(-3.5, 0, 8)
    ax.contourf(x, y, depth, levels=levels, cmap="YlOrBr", extend="min", alpha=0.8)
    ax.contour(x, y, depth, levels=levels, colors=DARK, linewidths=0.3, linestyles="solid")


def _draw_ratio(ax: Axes, main: ToyNetwork, guide: ToyNetwork) -> None:
    """Filled contours of the log ratio of two learnt densities, 0 at its largest value in the view."""
    x, y, values = _field(CLOSEUP, lambda p: main.log_density(p, SIGMA_MID) - guide.log_density(p, SIGMA_MID))
    values -= values.max()
    ax.contourf(x, y, values, np.linspace(np.quantile(values, 0.05), 0, 12), cmap="cividis", extend="min", alpha=0.85)


def _draw_arrows(ax: Axes, points: Tensor, vectors: Tensor) -> None:
    """Vectors at points, in units of what one removal of the noise would move them."""
    steps = SIGMA_MID**2 * vectors
    ax.quiver(*points.T.numpy(), *steps.T.numpy(), angles="xy", scale_units="xy", scale=0.6, width=0.005, color=DARK)
    ax.scatter(points[:, 0], points[:, 1], s=2, color=DARK, linewidths=0)


def _draw_paths(ax: Axes, mixture: Mixture, unguided: Tensor, guided: Tensor) -> None:
    """Paths [steps, N, 2] with and without guidance over the true density."""
    x, y, values = _field(CLOSEUP, mixture.log_density)
    ax.contourf(x, y, -np.sqrt(values.max() - values), levels=np.linspace(-3.0, 0, 7), cmap="Greys", alpha=0.6)
    for paths, colour, label in ((unguided, PALETTE[1], "No guidance"), (guided, PALETTE[0], "Guided")):
        ax.plot(*paths.permute(2, 0, 1).numpy(), color=colour, linewidth=0.8)[0].set_label(label)
        ax.scatter(paths[-1, :, 0], paths[-1, :, 1], s=4, color=colour, linewidths=0, zorder=3)


def _finish(ax: Axes, view: tuple[float, float, float], title: str) -> None:
    cx, cy, half = view
    ax.set(xlim=(cx - half, cx + half), ylim=(cy - half, cy + half), aspect="equal", xticks=[], yticks=[], title=title)
