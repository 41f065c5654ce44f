"""Guidance: its algebra, the published intervals, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.files import InputError
from repro import guidance, schedules
from repro.degradations import Truncated
from repro.guidance import Blend, Guided, OtherGuide, check_pair, combine, guided, guided_steps


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
    return float(guided(main, labels, guides, dtype=torch.float64)(X, SIGMA, weights).mean())


@given(w=st.floats(0, 5), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_one_guide_is_the_weighted_difference(w: float, a: float, b: float) -> None:
    assert answer(Constant(a), [Constant(b)], [w]) == pytest.approx(w * a + (1 - w) * b, abs=1e-6)


@given(w=st.floats(0, 5), v=st.floats(0, 5), a=st.floats(-3, 3), u=st.floats(-3, 3), c=st.floats(-3, 3))
def test_several_guides_are_equation_6(w: float, v: float, a: float, u: float, c: float) -> None:
    expected = a + (w - 1) * (a - u) + (v - 1) * (a - c)
    assert answer(Constant(a), [Constant(u), Constant(c)], [w, v]) == pytest.approx(expected, abs=1e-6)


@given(w=st.floats(-1, 5), share=st.floats(-1, 2), u=st.floats(-3, 3), c=st.floats(-3, 3))
def test_a_blend_is_several_guides_with_a_total_weight(w: float, share: float, u: float, c: float) -> None:
    """w_u = (1 - alpha)(w - 1) + 1 and w_c = alpha (w - 1) + 1 (arXiv:2406.02507 appendix B.2)."""
    settings = Guided("m", "u", w, other_guides=[OtherGuide("c", share)])
    assert settings.weights == pytest.approx([(1 - share) * (w - 1) + 1, share * (w - 1) + 1])
    several = answer(Constant(1.5), [Constant(u), Constant(c)], settings.weights)
    assert answer(Constant(1.5), [Blend([Constant(u), Constant(c)], settings.shares)], [w]) == pytest.approx(
        several, abs=1e-5
    )  # type: ignore[list-item]


def test_a_blend_gives_each_guide_the_labels_that_it_takes_and_asks_none_without_a_share() -> None:
    labels = torch.eye(3)[:2]
    conditional, unconditional, silent = Constant(4, label_dim=3), Constant(8), Constant(math.nan)
    blend = Blend([unconditional, conditional, silent], [0.25, 0.75, 0.0])
    assert blend.label_dim == 3
    assert float(blend(X, SIGMA, labels).mean()) == 5.0
    assert conditional.labels is labels
    assert unconditional.labels is None
    with pytest.raises(InputError, match=r"2 guides with shares \[0.5, 0.4\]: expected one for each, 1 in all"):
        Blend([conditional, unconditional], [0.5, 0.4])


def test_rules_are_named_and_made_anew_for_every_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counting() -> guidance.Rule:
        made.append(None)
        return lambda D_main, D_guide, w: D_main - D_guide

    monkeypatch.setattr(guidance, "RULES", {**guidance.RULES, "difference": counting})
    for _ in range(2):
        denoise = guided(Constant(3), None, [Constant(1)], "difference", dtype=torch.float64)
        assert float(denoise(X, SIGMA, [2.0]).mean()) == 2.0
    assert len(made) == 2
    assert float(combine(torch.tensor(3.0), torch.tensor(1.0), 2.0)) == 5.0


def test_a_rule_for_one_guide_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "RULES", {**guidance.RULES, "other": guidance.linear})
    with pytest.raises(InputError, match="takes one guide, found 2"):
        guided(Constant(1), None, [Constant(2), Constant(3)], "other")


def answers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    found = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return found[0], found[1]


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 1.7, 5.0])
def test_rules_with_nothing_to_do_are_the_linear_one(w: float) -> None:
    D_main, D_guide = answers()
    plain = combine(D_main, D_guide, w)
    torch.testing.assert_close(combine(D_main, D_guide, w, "apg", beta=0, eta=1), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(combine(D_main, D_guide, w, "rescaled", phi=0), plain, rtol=0, atol=1e-12)


def test_projected_guidance_splits_the_difference_in_two_orthogonal_parts() -> None:
    D_main, D_guide = answers()
    across, along = (combine(D_main, D_guide, 2.0, "apg", beta=0, eta=eta) - D_main for eta in (0, 1))
    along = along - across
    assert (across * D_main).sum(dim=(1, 2, 3)).abs().max() < 1e-12
    torch.testing.assert_close(across + along, D_main - D_guide, rtol=0, atol=1e-12)
    ratio = along / D_main
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-9, atol=0)
    halved = combine(D_main, D_guide, 2.0, "apg", beta=0, eta=0.5) - D_main
    torch.testing.assert_close(halved, across + 0.5 * along, rtol=0, atol=1e-12)


def test_projected_guidance_bounds_each_samples_step() -> None:
    D_main, D_guide = answers()
    step = combine(D_main, D_guide, 2.0, "apg", beta=0, eta=1, r=0.1) - D_main
    torch.testing.assert_close(
        step.flatten(1).norm(dim=1), torch.full([3], 0.1, dtype=torch.float64), rtol=1e-9, atol=0
    )
    near = combine(D_main, D_main - 1e-3, 2.0, "apg", beta=0, eta=1, r=100) - D_main
    torch.testing.assert_close(near, torch.full_like(near, 1e-3), rtol=1e-6, atol=0)


def test_projected_guidance_remembers_the_differences_of_its_batch() -> None:
    """running <- delta + beta running, kept before it is bounded; a step of weight 1 does not touch it."""
    first, second = answers(1), answers(2)
    rule = guidance.apg(beta=-0.5, r=1.0, eta=1)
    rule(*first, 2.0)
    found = rule(*second, 2.0) - second[0]
    running = (second[0] - second[1]) - 0.5 * (first[0] - first[1])
    expected = running / running.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(guidance.apg(beta=-0.5)(*second, 2.0), found + second[0])


@pytest.mark.parametrize("rule", ["apg", "rescaled"])
def test_rules_meet_zeros(rule: str) -> None:
    D_main, D_guide = answers()
    for pair in (
        (torch.zeros_like(D_main), D_guide),
        (D_main, D_main),
        (torch.zeros_like(D_main), torch.zeros_like(D_main)),
    ):
        assert combine(*pair, 2.0, rule).isfinite().all()
    torch.testing.assert_close(combine(D_main, D_main, 2.0, rule), D_main)


def test_a_rescaled_answer_has_the_deviation_of_the_main_one() -> None:
    D_main, D_guide = answers()
    found = combine(D_main, D_guide, 3.0, "rescaled", phi=1)
    torch.testing.assert_close(found.flatten(1).std(dim=1), D_main.flatten(1).std(dim=1))
    plain = combine(D_main, D_guide, 3.0)
    mixed = combine(D_main, D_guide, 3.0, "rescaled", phi=0.25)
    torch.testing.assert_close(mixed, 0.25 * found + 0.75 * plain)


@pytest.mark.parametrize("rule", ["linear", "apg", "rescaled"])
def test_a_sample_is_not_touched_by_the_others_of_its_batch(rule: str) -> None:
    D_main, D_guide = answers()
    alone = combine(D_main[1:2], D_guide[1:2], 2.5, rule)
    torch.testing.assert_close(combine(D_main, D_guide, 2.5, rule)[1:2], alone, rtol=1e-12, atol=0)


def test_ramps_are_the_published_ones() -> None:
    assert guidance.step_weights([3.0], 5) == [[3.0]] * 5
    assert guidance.step_weights([3.0], 5, (1, 3)) == [[1.0], [3.0], [3.0], [3.0], [1.0]]
    assert guidance.step_weights([3.0, 2.0], 3, None, "linear") == [[1.0, 1.0], [3.0, 2.0], [5.0, 3.0]]
    cosine = [w for (w,) in guidance.step_weights([3.0], 5, None, "cosine")]
    assert cosine == pytest.approx([1 + 2 * (1 - math.cos(math.pi * i / 4)) for i in range(5)])
    assert sum(cosine) / 5 == pytest.approx(3.0)
    assert guidance.step_weights([3.0], 4, (2, 2), "linear") == [[1.0], [1.0], [3.0], [1.0]]  # N = 1: w itself


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": float("nan")}, "expected a finite number"),
        ({"guidance": 2.0, "guide": None}, "guidance 2.0 needs a guide"),
        ({"guidance": 2.0, "guide": "a"}, "does nothing"),
        ({"interval": (3, 1)}, "first <= last"),
        ({"rule": "linaer"}, "did you mean 'linear'"),
        ({"rule": "apg", "rule_settings": {"bteta": 1.0}}, "no setting 'bteta'; did you mean 'beta'"),
        ({"rule": "apg", "rule_settings": {"r": float("nan")}}, "r of guidance rule apg"),
        ({"rule_settings": {"phi": 1.0}}, "guidance rule linear has no setting 'phi'"),
        ({"ramp": "lienar"}, "did you mean 'linear'"),
        ({"guide_degradations": {"blur": 1.0}}, "degradation 'blur' is unknown"),
        ({"main_degradations": {"dropout": 1.0}}, "strength 1.0, expected 0.0 <= x < 1.0"),
        ({"guidance": 2.0, "other_guides": [OtherGuide("a", 0.5)]}, "as its own guide does nothing"),
        ({"rule": "apg", "other_guides": [OtherGuide("c", 0.5)]}, "rule 'apg' takes one guide, found 2"),
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
