"""Guidance: its algebra, the published intervals, and what is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.files import InputError
from repro import snapshots
from repro.guidance import (
    Dropped,
    RaisedNoise,
    Truncated,
    check_pair,
    guided,
    guided_steps,
    noise_levels,
    split_weight,
)
from repro.networks import Precond
from repro.sampler import draw_inputs, sample


class Constant:
    """Denoiser that always answers `value`, and remembers the labels it was given."""

    img_resolution, img_channels, sigma_data, encoder = 4, 1, 0.5, None

    def __init__(self, value: float, label_dim: int = 0) -> None:
        self.value = value
        self.label_dim = label_dim
        self.labels: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        self.labels = labels
        return torch.full_like(x, self.value)


X, SIGMA = torch.zeros(2, 1, 4, 4, dtype=torch.float64), torch.tensor(1.0)


def answer(main: Constant, guides: list[Constant], weights: list[float], labels: torch.Tensor | None = None) -> float:
    return float(guided(main, labels, guides, weights, torch.float64)(X, SIGMA).mean())


@given(w=st.floats(0, 5), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_one_guide_is_the_weighted_difference(w: float, a: float, b: float) -> None:
    assert answer(Constant(a), [Constant(b)], [w]) == pytest.approx(w * a + (1 - w) * b, abs=1e-6)


@given(w=st.floats(1.1, 5), alpha=st.floats(0, 1), a=st.floats(-3, 3), u=st.floats(-3, 3), c=st.floats(-3, 3))
def test_several_guides_are_equation_6(w: float, alpha: float, a: float, u: float, c: float) -> None:
    weight_u, weight_c = split_weight(w, alpha)
    expected = a + (weight_u - 1) * (a - u) + (weight_c - 1) * (a - c)
    assert answer(Constant(a), [Constant(u), Constant(c)], [weight_u, weight_c]) == pytest.approx(expected, abs=1e-6)


@given(w=st.floats(0, 5))
def test_the_blend_ends_in_pure_cfg_and_pure_autoguidance(w: float) -> None:
    assert split_weight(w, 0) == pytest.approx((w, 1))
    assert split_weight(w, 1) == pytest.approx((1, w))


def test_a_conditional_guide_receives_the_labels_and_an_unconditional_one_none() -> None:
    labels = torch.eye(3)[:2]
    conditional, unconditional = Constant(0, label_dim=3), Constant(0)
    answer(Constant(1, label_dim=3), [conditional, unconditional], [2.0, 2.0], labels)
    assert conditional.labels is labels
    assert unconditional.labels is None


@pytest.mark.parametrize(
    ("interval", "steps"), [((0.19, 1.61), (17, 22)), ((0.60, 5.00), (13, 19)), ((0.28, 2.90), (15, 21))]
)
def test_published_intervals_are_the_published_steps(interval: tuple[float, float], steps: tuple[int, int]) -> None:
    assert guided_steps(*interval, num_steps=32, sigma_min=0.002, sigma_max=80, rho=7) == steps


def test_noise_levels_are_the_published_ones() -> None:
    levels = noise_levels(32)
    expected = {0: 80, 13: 4.99911, 15: 2.90153, 17: 1.60857, 20: 0.59770, 22: 0.28304, 23: 0.18860, 31: 0.002, 32: 0}
    for i, sigma in expected.items():
        assert float(levels[i]) == pytest.approx(sigma, abs=6e-6)


@pytest.mark.parametrize("bounds", [(1.0, 0.5), (0.0, 1.0), (2.85, 2.95)])
def test_empty_intervals_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="interval"):
        guided_steps(*bounds, num_steps=32)


def test_truncation_multiplies_the_score() -> None:
    x = torch.ones(1, 1, 4, 4)
    denoised = Truncated(Constant(0.25), 1.4)(x, SIGMA)
    assert torch.allclose(denoised - x, 1.4 * (0.25 - x))


@pytest.mark.parametrize("key", ["img_resolution", "img_channels", "sigma_data", "label_dim", "encoder"])
def test_a_pair_that_does_not_fit_is_refused_by_key(key: str) -> None:
    main, guide = Constant(0, label_dim=3), Constant(0, label_dim=3)
    setattr(guide, key, 7)
    with pytest.raises(InputError, match=key):
        check_pair(main, guide)


def test_an_unconditional_guide_fits_a_conditional_network() -> None:
    check_pair(Constant(0, label_dim=3), Constant(0, label_dim=0))


def load(golden: Path, name: str = "main") -> Precond:
    return snapshots.load(golden / f"{name}.pkl").network.eval()


def test_corruptions_never_touch_the_weights_or_the_global_generator(golden: Path) -> None:
    network = load(golden)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    state = torch.get_rng_state()
    for corrupted in (Dropped(network, 0.1), RaisedNoise(network, 0.2)):
        corrupted.reseed([0], "cpu")
        corrupted(torch.zeros(2, 3, 16, 16), torch.tensor(1.0), torch.eye(10)[:2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())


def test_corruptions_repeat_with_the_seeds_and_differ_between_main_and_guide(golden: Path) -> None:
    network = load(golden)
    noise, labels = draw_inputs(network, [5, 6])

    def images(stream: int, first: int = 5) -> torch.Tensor:
        corrupted = Dropped(network, 0.1, stream)
        corrupted.reseed([first, 6], "cpu")
        return sample(corrupted, noise, labels, num_steps=4)

    assert torch.equal(images(0), images(0))
    assert not torch.equal(images(0), images(1))
    assert not torch.equal(images(0), images(0, first=7))


def test_dropout_of_zero_and_noise_raised_by_zero_change_nothing(golden: Path) -> None:
    network = load(golden)
    x, sigma, labels = torch.randn(2, 3, 16, 16), torch.tensor(0.7), torch.eye(10)[:2]
    with torch.no_grad():
        expected = network(x, sigma, labels)
        for corrupted in (Dropped(network, 0.0), RaisedNoise(network, 0.0)):
            torch.testing.assert_close(corrupted(x, sigma, labels), expected, rtol=1e-5, atol=1e-5)


def test_raised_noise_adds_the_missing_variance_and_raises_the_conditioning() -> None:
    seen: dict[str, torch.Tensor] = {}

    class Probe(Constant):
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            seen.update(x=x, sigma=sigma)
            return x

    corrupted = RaisedNoise(Probe(0), 0.2)
    corrupted.reseed([0], "cpu")
    corrupted(torch.zeros(64, 1, 32, 32), torch.tensor(2.0))
    assert float(seen["sigma"]) == pytest.approx(2.4)
    assert float(seen["x"].std()) == pytest.approx((2.4**2 - 2.0**2) ** 0.5, rel=0.01)
