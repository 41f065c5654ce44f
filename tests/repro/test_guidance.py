"""Guidance: its algebra, the published intervals, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.files import InputError
from repro import guidance, schedules
from repro.degradations import Truncated
from repro.guidance import Guided, check_pair, combine, guided, guided_steps


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
    return float(guided(main, labels, guides, weights, dtype=torch.float64)(X, SIGMA).mean())


@given(w=st.floats(0, 5), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_one_guide_is_the_weighted_difference(w: float, a: float, b: float) -> None:
    assert answer(Constant(a), [Constant(b)], [w]) == pytest.approx(w * a + (1 - w) * b, abs=1e-6)


@given(w=st.floats(0, 5), v=st.floats(0, 5), a=st.floats(-3, 3), u=st.floats(-3, 3), c=st.floats(-3, 3))
def test_several_guides_are_equation_6(w: float, v: float, a: float, u: float, c: float) -> None:
    expected = a + (w - 1) * (a - u) + (v - 1) * (a - c)
    assert answer(Constant(a), [Constant(u), Constant(c)], [w, v]) == pytest.approx(expected, abs=1e-6)


def test_rules_are_named_and_made_anew_for_every_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counting() -> guidance.Rule:
        made.append(None)
        return lambda D_main, D_guide, w: D_main - D_guide

    monkeypatch.setattr(guidance, "RULES", {**guidance.RULES, "difference": counting})
    for _ in range(2):
        denoise = guided(Constant(3), None, [Constant(1)], [2.0], "difference", torch.float64)
        assert float(denoise(X, SIGMA).mean()) == 2.0
    assert len(made) == 2
    assert float(combine(torch.tensor(3.0), torch.tensor(1.0), 2.0)) == 5.0


def test_a_rule_for_one_guide_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "RULES", {**guidance.RULES, "other": guidance.linear})
    with pytest.raises(InputError, match="takes one guide, found 2"):
        guided(Constant(1), None, [Constant(2), Constant(3)], [2.0, 2.0], "other")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": float("nan")}, "expected a finite number"),
        ({"guidance": 2.0, "guide": None}, "guidance 2.0 needs a guide"),
        ({"guidance": 2.0, "guide": "a"}, "does nothing"),
        ({"interval": (3, 1)}, "first <= last"),
        ({"rule": "linaer"}, "did you mean 'linear'"),
        ({"guide_degradations": {"blur": 1.0}}, "degradation 'blur' is unknown"),
        ({"main_degradations": {"dropout": 1.0}}, "strength 1.0, expected 0.0 <= x < 1.0"),
    ],
)
def test_what_cannot_guide_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Guided(**{"main": "a", "guide": "b", **settings})  # type: ignore[arg-type]


def test_weight_one_means_no_guide() -> None:
    named = Guided("a", "b", 1.0, (1, 2), "linear", {"dropout": 0.1}, {"dropout": 0.2})
    assert named.active == Guided("a", main_degradations={"dropout": 0.1})
    assert replace(named, guidance=2.0).active == replace(named, guidance=2.0)


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
    levels = schedules.edm(32)
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
