"""The paper's figures 1 and 2, redrawn from networks trained here."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metrics.files import atomic_write
from repro.toy.mixture import Mixture
from repro.toy.model import ToyNetwork
from repro.toy.sampling import Method, trajectories
from repro.toy.settings import ToySettings

OVERVIEW = (0.30, 0.30, 1.2)  # centre and half the side of the view
CLOSEUP = (0.45, 1.22, 0.3)
SIGMA_MID = 0.03  # noise level of the close-up
NUM_STARTS = 4096  # noisy points of the close-up, before thinning
SPACING = 0.045  # distance they keep from each other
RESOLUTION = 300  # grid points per side for contours
NUM_SHOWN = 8192  # samples in a panel of the overview

# Okabe and Ito's colours keep apart under every common colour blindness.
CLASS_A, CLASS_B = ("#FBE3B0", "#F0C060"), ("#E4E4E4", "#CCCCCC")  # outer and inner contour
SAMPLES, UNGUIDED, GUIDED, DARK = "#0072B2", "#D55E00", "#0072B2", "#333333"
WIDTH = 7.0  # inches, of the page it is printed on
STYLE: Any = {"font.size": 7, "axes.titlesize": 7, "svg.fonttype": "none", "svg.hashsalt": "toy", "figure.dpi": 100}


def draw_overview(both: Mixture, level: float, true: Tensor, samples: dict[str, tuple[Method, Tensor]]) -> Figure:
    """Figure 1: the distribution of class A beside class B's, and samples of class A by every method.

    `level`: log density of class A's contour of 99% of its mass; `true`, `samples`: points [N, 2].
    """
    halves = len(both.weights) // 2  # class A comes first
    classes = ((_part(both, slice(halves, None)), CLASS_B), (_part(both, slice(None, halves)), CLASS_A))
    panels = [("Ground truth", true)] + [(method.title, points) for method, points in samples.values()]
    grid, x, y = _grid(OVERVIEW)
    fields = [(_on_grid(mixture.log_density(grid)), colours) for mixture, colours in classes]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.15 * WIDTH / len(panels)), layout="constrained")
        axes = figure.subplots(1, len(panels))
        for ax, letter, (title, points) in zip(axes, "abcde", panels, strict=True):
            for field, colours in fields:
                ax.contourf(x, y, field, levels=[level, level + 2, np.inf], colors=colours)
            ax.scatter(
                points[:NUM_SHOWN, 0], points[:NUM_SHOWN, 1], s=0.5, color=SAMPLES, linewidths=0, rasterized=True
            )
            _finish(ax, OVERVIEW, f"({letter}) {title}")
        _mark_closeup(axes[2])
    return figure


@torch.no_grad()
def draw_closeup(settings: ToySettings, mixture: Mixture, main: ToyNetwork, guided: list[Method]) -> Figure:
    """Figure 2: at a middle noise level, what main network and guide have learnt, and how their ratio guides.

    One row per method of `guided`, each with a guide of class ToyNetwork; `mixture` is class A.
    """
    starts = _noisy_points(mixture)
    unguided = Method("unguided", "No guidance", 1.0, main)
    unguided_paths = trajectories(unguided, settings, starts, SIGMA_MID)
    letter = iter("abcdefgh")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.0 * len(guided)), layout="constrained")
        rows = figure.subplots(len(guided), 4, squeeze=False)
        for row, method in zip(rows, guided, strict=True):
            guide = method.guide
            assert isinstance(guide, ToyNetwork)
            for ax, title, network in ((row[0], "Main model", main), (row[1], "Guide", guide)):
                _draw_density(ax, network)
                _draw_arrows(ax, starts, network.score(starts, SIGMA_MID))
                _finish(ax, CLOSEUP, f"({next(letter)}) {title}: density")
            _draw_ratio(row[2], main, guide)
            _draw_arrows(row[2], starts, main.score(starts, SIGMA_MID) - guide.score(starts, SIGMA_MID))
            _finish(row[2], CLOSEUP, f"({next(letter)}) Ratio")
            _draw_paths(row[3], mixture, settings, unguided_paths, trajectories(method, settings, starts, SIGMA_MID))
            _finish(row[3], CLOSEUP, f"({next(letter)}) Trajectories")
            row[0].set_ylabel(method.title)
        handles, labels = rows[0][3].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg, the same bytes for the same figure."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            with atomic_write(stem.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], dpi=250, metadata=metadata)


def _part(mixture: Mixture, branches: slice) -> Mixture:
    weights = mixture.weights[branches]
    return Mixture(
        weights / weights.sum(), mixture.centres[branches], mixture.spans[branches], mixture.covariances[branches]
    )


def _grid(view: tuple[float, float, float]) -> tuple[Tensor, NDArray[np.float32], NDArray[np.float32]]:
    """Points [RESOLUTION^2, 2] that fill the view, and their coordinates along x and y."""
    cx, cy, half = view
    x = torch.linspace(cx - half, cx + half, RESOLUTION)
    y = torch.linspace(cy - half, cy + half, RESOLUTION)
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy], dim=2).reshape(-1, 2), x.numpy(), y.numpy()


def _on_grid(values: Tensor) -> NDArray[np.float64]:
    return values.reshape(RESOLUTION, RESOLUTION).double().numpy()


def _noisy_points(mixture: Mixture) -> Tensor:
    """Noisy points [N, 2] of `mixture` in the close-up, thinned until none lie closer than SPACING."""
    generator = torch.Generator().manual_seed(0)
    points = mixture.sample(NUM_STARTS, generator)
    points = points + SIGMA_MID * torch.randn(points.shape, generator=generator)
    cx, cy, half = CLOSEUP
    kept: list[Tensor] = []
    for point in points[((points - torch.tensor([cx, cy])).abs() < half).all(1)]:
        if all((point - other).norm() >= SPACING for other in kept):
            kept.append(point)
    return torch.stack(kept)


def _draw_density(ax: Axes, network: ToyNetwork) -> None:
    """Contours of a learnt density, even in the square root of the distance below its peak."""
    grid, x, y = _grid(CLOSEUP)
    values = _on_grid(network.log_density(grid, SIGMA_MID))
    depth = -np.sqrt(values.max() - values)
    ax.contourf(x, y, depth, levels=np.linspace(-3.5, 0, 8), cmap="YlOrBr", extend="min", alpha=0.8)
    ax.contour(x, y, depth, levels=np.linspace(-3.5, 0, 8), colors=DARK, linewidths=0.3, linestyles="solid")


def _draw_ratio(ax: Axes, main: ToyNetwork, guide: ToyNetwork) -> None:
    """Filled contours of the log ratio of two learnt densities, 0 at its largest value in the view."""
    grid, x, y = _grid(CLOSEUP)
    values = _on_grid(main.log_density(grid, SIGMA_MID) - guide.log_density(grid, SIGMA_MID))
    values -= values.max()
    levels = np.linspace(np.quantile(values, 0.05), 0, 12)
    ax.contourf(x, y, values, levels=levels, cmap="cividis", extend="min", alpha=0.85)


def _draw_arrows(ax: Axes, points: Tensor, vectors: Tensor) -> None:
    """Vectors at points, in units of what one removal of the noise would move them."""
    steps = SIGMA_MID**2 * vectors
    ax.quiver(*points.T.numpy(), *steps.T.numpy(), angles="xy", scale_units="xy", scale=0.6, width=0.005, color=DARK)
    ax.scatter(points[:, 0], points[:, 1], s=2, color=DARK, linewidths=0)


def _draw_paths(ax: Axes, mixture: Mixture, settings: ToySettings, unguided: Tensor, guided: Tensor) -> None:
    """Paths [steps, N, 2] with and without guidance over the true density."""
    grid, x, y = _grid(CLOSEUP)
    field = _on_grid(mixture.log_density(grid))
    ax.contourf(x, y, -np.sqrt(field.max() - field), levels=np.linspace(-3.0, 0, 7), cmap="Greys", alpha=0.6)
    for paths, colour, label in ((unguided, UNGUIDED, "No guidance"), (guided, GUIDED, "Guided")):
        for i in range(paths.shape[1]):
            ax.plot(*paths[:, i].T.numpy(), color=colour, linewidth=0.8, label=label if i == 0 else None)
        ax.scatter(paths[-1, :, 0], paths[-1, :, 1], s=4, color=colour, linewidths=0, zorder=3)


def _mark_closeup(ax: Axes) -> None:
    cx, cy, half = CLOSEUP
    ax.add_patch(
        matplotlib.patches.Rectangle((cx - half, cy - half), 2 * half, 2 * half, fill=False, color=DARK, linewidth=0.8)
    )


def _finish(ax: Axes, view: tuple[float, float, float], title: str) -> None:
    cx, cy, half = view
    ax.set(xlim=(cx - half, cx + half), ylim=(cy - half, cy + half), aspect="equal", xticks=[], yticks=[], title=title)
