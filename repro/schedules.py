"""Noise levels of the sampler: EDM's, and the best ones for a network, found exactly on a grid."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from metrics.files import InputError, nearest
from repro.networks import Denoiser

#: (x, sigma) -> dx/dsigma of the probability-flow ODE (EDM equation 1), or D(x; sigma).
Slope = Callable[[Tensor, Tensor], Tensor]


def edm(
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The EDM schedule sigma_0 ... sigma_{N-1}, then 0: [num_steps + 1] (EDM equation 5)."""
    ramp = torch.arange(num_steps, dtype=dtype, device=device) / max(num_steps - 1, 1)
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = (hi + ramp * (lo - hi)) ** rho
    return torch.cat([levels, torch.zeros_like(levels[:1])])


def checked(levels: Sequence[float] | Tensor) -> Tensor:
    """A schedule [N + 1] as float64; raises InputError unless it is N finite noise levels, falling, and then 0."""
    found = torch.as_tensor(levels, dtype=torch.float64)
    if found.ndim != 1 or len(found) < 2 or found[-1] != 0 or not found.isfinite().all() or (found.diff() >= 0).any():
        raise InputError(f"schedule is {found.tolist()}, expected falling noise levels above 0, and then 0")
    return found


def optimal(
    network: Denoiser,
    noise: Tensor,
    num_steps: int,
    labels: Tensor | None = None,
    solver: str = "heun",
    grid: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    criterion: str = "error",
) -> Tensor:
    """The levels of `grid` log-spaced ones and EDM's on which `solver` errs least: [num_steps + 1], ending in 0.

    Args:
        noise: unit normal [M, C, H, W]; the M images (16 are enough) whose trajectories are followed.
        labels: one-hot [M, label_dim]; required where `network` is conditional. It is solved unguided.
        solver: a name of `SOLVERS`.
        rho: of the EDM schedule that is among the choices, so that its summed error is never less.
        criterion: `error`, see `step_errors`; or `klub`, see `divergences`, for first-order stochastic samplers alone.
    """
    levels = grid_levels(grid, [num_steps], sigma_min, sigma_max, rho)
    costs = step_costs(network, noise, levels, labels, solver, criterion)
    chosen = cheapest(costs, num_steps)
    return torch.cat([levels[chosen], torch.zeros(1, dtype=levels.dtype)])


def grid_levels(
    grid: int, num_steps: Iterable[int] = (), sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7
) -> Tensor:
    """`grid` log-spaced levels from sigma_max to sigma_min, and those of EDM for each of `num_steps`: falling, float64.

    Raises InputError where there is nothing to choose from.
    """
    if grid < 2 or not 0 < sigma_min < sigma_max < math.inf:
        raise InputError(f"{grid} levels from {sigma_min} to {sigma_max}: expected 2 or more, rising from above 0")
    levels = [torch.logspace(math.log10(sigma_max), math.log10(sigma_min), grid, dtype=torch.float64)]
    levels += [edm(n, sigma_min, sigma_max, rho)[:-1] for n in num_steps]
    found = torch.cat(levels).sort(descending=True).values
    found = found[torch.cat([torch.ones(1, dtype=torch.bool), found[1:] < found[:-1] * (1 - 1e-9)])]
    found[0], found[-1] = sigma_max, sigma_min
    return found


def step_costs(
    network: Denoiser,
    noise: Tensor,
    levels: Tensor,
    labels: Tensor | None = None,
    solver: str = "heun",
    criterion: str = "error",
    over: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Tensor:
    """`step_errors`, or, by the criterion `klub`, `divergences`. Raises InputError where they do not fit `solver`."""
    for name, value, known in (("solver", solver, SOLVERS), ("criterion", criterion, CRITERIA)):
        if value not in known:
            raise InputError(f"{name} '{value}' is unknown{nearest(value, known)}")
    if criterion == "error":
        return step_errors(network, noise, levels, labels, solver, over)
    if solver != "euler":
        raise InputError(
            f"criterion klub bounds first-order stochastic samplers; its least for {solver} is degenerate (8 steps err "
            "fifty times as much), use criterion error or solver euler"
        )
    return divergences(network, noise, levels, labels, over)


def step_errors(
    network: Denoiser,
    noise: Tensor,
    levels: Tensor,
    labels: Tensor | None = None,
    solver: str = "heun",
    over: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Tensor:
    """[T, T], float64, on the CPU: at (i, j > i) how far one step of `solver` from level i to level j lands from there.

    "There" is where Heun's method gets level by level (T levels, falling); the error is the root mean square over
    images and values, infinite where j <= i. T (T - 1) / 2 + 2 T evaluations an image, 2 T for a first-order solver.
    `over` goes through the levels, and can show how far it is.
    """
    denoise, count, sigmas = _denoiser(network, labels), len(levels), levels.to(noise)
    slope = _slope(denoise)
    errors = torch.full([count, count], math.inf, dtype=torch.float64)
    with torch.no_grad():
        points, slopes = _trajectory(slope, noise, sigmas)
        for i in over(range(count - 1)):
            for j in range(i + 1, count):
                landed = SOLVERS[solver](slope, points[i], slopes[i], sigmas[i], sigmas[j])
                errors[i, j] = (landed - points[j]).double().square().mean().sqrt()
    return errors


def divergences(
    network: Denoiser,
    noise: Tensor,
    levels: Tensor,
    labels: Tensor | None = None,
    over: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Tensor:
    """[T, T], float64: at (i, j > i) what the step adds to the bound of Align Your Steps (arXiv:2404.14507).

    The integral of t^-3 E|D(x_t; t) - D(x_i; sigma_i)|^2 from sigma_j to sigma_i, by the trapezoid rule in ln t on the
    levels, along one noise path per image with independent increments. The images are the network's own, by Heun's
    method. It bounds the divergence of a first-order stochastic sampler. 3 T evaluations an image.
    """
    denoise, sigmas = _denoiser(network, labels), levels.to(noise)
    with torch.no_grad():
        end = _trajectory(_slope(denoise), noise, sigmas)[0][-1]
        x, below = denoise(end, sigmas[-1]), torch.zeros_like(sigmas[-1])
        generator = torch.Generator().manual_seed(0)
        answers = list[Tensor]()
        for sigma in sigmas.flip(0):
            fresh = torch.randn(noise.shape, dtype=noise.dtype, generator=generator).to(noise.device)
            x, below = x + (sigma**2 - below**2).sqrt() * fresh, sigma
            answers.append(denoise(x, sigma))
        answers.reverse()
        found, logs = torch.full([len(levels)] * 2, math.inf, dtype=torch.float64), levels.double().log()
        for i in over(range(len(levels) - 1)):
            away = [float((D - answers[i]).double().square().mean()) for D in answers[i:]]
            density = torch.tensor(away, dtype=torch.float64) / levels[i:].double() ** 2  # of d ln t
            found[i, i + 1 :] = ((density[1:] + density[:-1]) / 2 * -logs[i:].diff()).cumsum(0)
    return found


def _denoiser(network: Denoiser, labels: Tensor | None) -> Slope:
    """(x, sigma) -> D(x; sigma) in the dtype of `x`; raises InputError where labels are missing."""
    if network.label_dim and labels is None:
        raise InputError(f"the network has {network.label_dim} classes: labels are required")
    return lambda x, sigma: network(x, sigma, labels if network.label_dim else None).to(x.dtype)


def _slope(denoise: Slope) -> Slope:
    return lambda x, sigma: (x - denoise(x, sigma)) / sigma


def _trajectory(slope: Slope, noise: Tensor, sigmas: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Points at all levels, by Heun's method from one to the next, and the slopes at all but the last."""
    points, slopes = [noise * sigmas[0]], list[Tensor]()
    for t, t_next in pairwise(sigmas):
        slopes.append(slope(points[-1], t))
        points.append(heun(slope, points[-1], slopes[-1], t, t_next))
    return points, slopes


def cheapest(errors: Tensor, num_steps: int) -> list[int]:
    """Of the levels behind `errors` [T, T] the `num_steps` from first to last whose steps' errors add up to the least.

    Exact, by dynamic programming over (level, steps taken). Raises InputError where T levels have no such path.
    """
    count = len(errors)
    if not 2 <= num_steps <= count:
        raise InputError(f"a schedule of {num_steps} steps: expected 2 to {count}, the levels to choose from")
    cost = torch.full([count], math.inf, dtype=errors.dtype)
    cost[0] = 0
    before: list[Tensor] = []
    for _ in range(num_steps - 1):
        cost, came_from = (cost[:, None] + errors).min(dim=0)
        before.append(came_from)
    path = [count - 1]
    for came_from in reversed(before):
        path.append(int(came_from[path[-1]]))
    return path[::-1]


def euler(slope: Slope, x: Tensor, d: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step of Euler's method from `x` at t, where the slope is `d`."""
    return x + (t_next - t) * d


def heun(slope: Slope, x: Tensor, d: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The same of Heun's method, the sampler's."""
    return x + (t_next - t) * (0.5 * d + 0.5 * slope(euler(slope, x, d, t, t_next), t_next))


SOLVERS = {"heun": heun, "euler": euler}
CRITERIA = ("error", "klub")
