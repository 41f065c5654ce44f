"""Noise schedules: the path is the best one, and its samples are nearer to the exact ones than EDM's."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor

from metrics.files import InputError
from repro import schedules
from repro.guidance import guided_steps
from repro.sampler import sample
from repro.sampling.pairs import Solver
from repro.sampling.scheduling import Choice, find_schedules
from repro.strict import build


class Mixture:
    """Exact denoiser of points, each blurred by `spread`: D is their mean, weighted by the posterior."""

    img_resolution, img_channels, label_dim, sigma_data, encoder = 2, 1, 0, 0.5, None

    def __init__(self, spread: float = 0.2) -> None:
        self.centres = 0.5 * torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.spread = spread
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        variance = self.spread**2 + sigma**2
        distances = (x[:, None] - self.centres).flatten(2).square().sum(2)  # [N, centres]
        shares = (-distances / (2 * variance)).softmax(dim=1)[:, :, None, None, None]
        mean = (shares * self.centres).sum(1)
        return mean + self.spread**2 / variance * (x - mean)


def unit_noise(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def path_cost(errors: Tensor, path: list[int] | tuple[int, ...]) -> float:
    return sum(errors[i, j].item() for i, j in itertools.pairwise(path))


@pytest.mark.parametrize("solver", schedules.SOLVERS)
@pytest.mark.parametrize("num_steps", [2, 4, 7, 10])
def test_the_path_is_the_best_of_all(solver: str, num_steps: int) -> None:
    errors = schedules.step_errors(Mixture(), unit_noise(8), schedules.grid_levels(10), solver=solver)
    every = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), num_steps - 2)]
    best = min(every, key=lambda path: path_cost(errors, path))
    assert schedules.cheapest(errors, num_steps) == list(best)


@pytest.mark.parametrize("num_steps", [4, 8, 12])
def test_with_edm_on_the_grid_it_never_costs_more(num_steps: int) -> None:
    levels = schedules.grid_levels(24, [num_steps])
    errors = schedules.step_errors(Mixture(), unit_noise(8), levels)
    edm = schedules.edm(num_steps)[:-1]
    path = [int((levels / level - 1).abs().argmin()) for level in edm]
    torch.testing.assert_close(levels[path], edm, rtol=1e-9, atol=0)
    assert path_cost(errors, schedules.cheapest(errors, num_steps)) <= path_cost(errors, path)


def test_eight_steps_err_at_most_six_tenths_as_much() -> None:
    """Against 512 EDM steps, on noise that the schedule was not made with."""
    network, noise = Mixture(), unit_noise(256, seed=2)
    fine = sample(network, noise, num_steps=512, dtype=torch.float64)

    def error(**schedule: object) -> float:
        return (sample(network, noise, dtype=torch.float64, **schedule) - fine).square().mean().sqrt().item()

    assert error(levels=schedules.optimal(network, unit_noise(32), 8)) <= 0.6 * error(num_steps=8)


def test_the_error_of_a_step_is_how_far_it_lands_from_the_trajectory() -> None:
    network, noise, levels = Mixture(), unit_noise(4), torch.tensor([10.0, 4.0, 1.0, 0.2], dtype=torch.float64)
    errors = schedules.step_errors(network, noise, levels)
    assert errors[0, 1] == errors[1, 2] == errors[2, 3] == 0  # the trajectory itself

    def heun(x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        d = (x - network(x, t)) / t
        guess = x + (t_next - t) * d
        return x + (t_next - t) * (d + (guess - network(guess, t_next)) / t_next) / 2

    one, two = (heun(noise * levels[0], levels[0], levels[1]), heun(noise * levels[0], levels[0], levels[2]))
    error = (two - heun(one, levels[1], levels[2])).square().mean().sqrt()
    assert errors[0, 2].item() == pytest.approx(error.item(), rel=1e-12)
    assert errors.isinf().sum() == 10  # never back


def test_the_bound_of_align_your_steps_is_its_integral() -> None:
    """Of Gaussian data, whose D along a noise path has closed moments; on a grid fine enough for the trapezoids."""

    class Gaussian(Mixture):
        def __init__(self) -> None:
            super().__init__()
            self.centres = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
            self.spread = 0.5

    levels = schedules.grid_levels(60, sigma_min=0.05, sigma_max=20)
    found = schedules.divergences(Gaussian(), unit_noise(4000), levels)

    def expected(i: int, j: int) -> float:
        """E|D(x_t) - D(x_s)|^2 = c Var, with x_s = x_t + sqrt(s^2 - t^2) n and D = k(t) x, k = 0.25 / (0.25 + t^2)."""
        low, s = levels[j].item(), levels[i].item()
        t = np.exp(np.linspace(np.log(low), np.log(s), 4001))
        k, k_s = 0.25 / (0.25 + t**2), 0.25 / (0.25 + s**2)
        away = (k - k_s) ** 2 * (0.25 + t**2) + k_s**2 * (s**2 - t**2)
        return float(np.trapezoid(away / t**2, np.log(t)))

    for i, j in ((0, 59), (0, 20), (10, 40), (45, 59)):
        assert found[i, j].item() == pytest.approx(expected(i, j), rel=0.05)
    assert found[tuple(torch.tril_indices(60, 60))].isinf().all()
    every = [(0, *inner, 59) for inner in itertools.combinations(range(1, 59), 2)]
    best = min(every, key=lambda path: path_cost(found, path))
    assert schedules.cheapest(found, 4) == list(best)


def test_what_it_costs_is_what_it_says() -> None:
    for solver, evaluations in (("heun", 12 * 11 // 2 + 2 * 11), ("euler", 2 * 11)):
        network = Mixture()
        schedules.step_errors(network, unit_noise(2), schedules.grid_levels(12), solver=solver)
        assert network.calls == evaluations


def test_levels_take_the_place_of_edm() -> None:
    network, noise = Mixture(), unit_noise(4)
    plain = sample(network, noise, num_steps=6, sigma_min=0.01, sigma_max=20, dtype=torch.float64)
    levels = schedules.edm(6, 0.01, 20)
    assert torch.equal(sample(network, noise, num_steps=99, levels=levels, dtype=torch.float64), plain)
    assert guided_steps(0.28, 2.9, levels=schedules.edm(32)) == guided_steps(0.28, 2.9)
    solver = Solver(num_steps=6, schedule=levels[:-1].tolist())
    assert torch.equal(sample(network, noise, dtype=torch.float64, **solver.arguments()), plain)


@pytest.mark.parametrize(
    "levels",
    [[1.0, 2.0, 0.0], [2.0, 1.0], [0.0], [], [math.inf, 1.0, 0.0], [math.nan, 0.0], [1.0, 1.0, 0.0], [[1.0, 0.0]]],
)
def test_what_is_no_schedule_is_refused(levels: list[float]) -> None:
    with pytest.raises(InputError, match="schedule is"):
        sample(Mixture(), unit_noise(1), levels=levels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": [2.0, 1.0]}, "num_steps is 32, and schedule has 2"),
        ({"num_steps": 2, "schedule": [1.0, 2.0]}, "falling noise levels"),
        ({"num_steps": 1, "schedule": [0.0]}, "falling noise levels"),
        ({"num_steps": 2, "schedule": [2.0, 1.0], "rho": 5.0}, "rho says nothing beside schedule"),
    ],
)
def test_a_study_whose_schedule_contradicts_itself_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Solver(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 1}, "2 to"),
        ({"num_steps": 99, "grid": 4}, "levels to choose from"),
        ({"num_steps": 4, "grid": 1}, "2 or more"),
        ({"num_steps": 4, "sigma_min": 9.0, "sigma_max": 1.0}, "rising"),
        ({"num_steps": 4, "solver": "huen"}, "did you mean 'heun'"),
        ({"num_steps": 4, "criterion": "kulb"}, "did you mean 'klub'"),
        ({"num_steps": 4, "criterion": "klub"}, "bounds first-order stochastic samplers"),
    ],
)
def test_what_cannot_be_solved_is_refused(arguments: dict[str, object], message: str) -> None:
    if arguments.get("num_steps") == 99:  # with EDM's own levels among them any number can be had
        levels = schedules.grid_levels(4)
        with pytest.raises(InputError, match=message):
            schedules.cheapest(schedules.step_errors(Mixture(), unit_noise(1), levels), 99)
        return
    with pytest.raises(InputError, match=message):
        schedules.optimal(Mixture(), unit_noise(1), **arguments)  # type: ignore[arg-type]


def test_a_conditional_network_needs_labels() -> None:
    network = Mixture()
    network.label_dim = 3
    with pytest.raises(InputError, match="labels are required"):
        schedules.optimal(network, unit_noise(1), 4)


def test_the_command_writes_what_a_study_takes_and_is_not_repeated(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, out = Choice([4, 6], range(4), grid=8), tmp_path / "schedule.yaml"
    found = find_schedules(str(golden / "main.pkl"), choice, out)
    assert (found["best"] < found["edm"]).all()
    written = yaml.safe_load(out.read_text())
    solvers = [build(Solver, entry) for entry in written["sampler"]]
    assert [solver.num_steps for solver in solvers] == [4, 6]
    assert {(solver.schedule[0], solver.schedule[-1]) for solver in solvers} == {(80.0, 0.002)}
    assert out.with_suffix(".png").stat().st_size > 1000

    monkeypatch.setattr(schedules, "step_errors", None)
    pd.testing.assert_frame_equal(find_schedules(str(golden / "main.pkl"), choice, out), found)
    before = out.read_bytes()
    with pytest.raises(InputError, match="name another file"):
        find_schedules(str(golden / "main.pkl"), replace(choice, grid=9), out)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": []}, "0 numbers of steps"),
        ({"steps": [1]}, "steps is"),
        ({"steps": [4], "grid": 10**9}, "grid is"),
        ({"steps": [4], "seeds": range(10**9)}, "1000000000 seeds"),
        ({"steps": [4], "sigma_min": math.nan}, "rising from above 0"),
        ({"steps": [4], "sigma_max": math.inf}, "rising from above 0"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(golden: Path, tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_schedules(str(golden / "main.pkl"), Choice(**settings), tmp_path / "schedule.yaml")


def test_a_name_that_the_figure_would_take_is_refused(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in \.yaml"):
        find_schedules(str(golden / "main.pkl"), Choice([4]), tmp_path / "schedule.png")
    assert not list(tmp_path.iterdir())
