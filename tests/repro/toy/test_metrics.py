"""The 2D example's measures on cases worked by hand."""

import math

import pytest
import torch

from repro.toy.metrics import contour_level, coverage_jsd, measure, measure_without, sliced_wasserstein
from repro.toy.mixture import fractal


def test_contour_level_leaves_the_remaining_mass_below_it() -> None:
    log_density = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).double()
    level = contour_level(log_density)
    assert level == 10
    assert (log_density < level).double().mean() == 0.01


def test_coverage_is_0_for_shares_as_weighted_and_ln_2_where_every_sample_is_in_parts_of_no_weight() -> None:
    weights = torch.tensor([0.5, 0.25, 0.25, 0, 0]).double()
    assert coverage_jsd(torch.tensor([0, 2, 1, 0]), weights) == 0
    assert coverage_jsd(torch.tensor([3, 4, 4, 4]), weights) == pytest.approx(math.log(2))


def test_coverage_of_a_half_overlap() -> None:
    expected = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert coverage_jsd(torch.tensor([0, 0]), torch.tensor([0.5, 0.5]).double()) == pytest.approx(expected)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    x = torch.randn([500, 2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert sliced_wasserstein(x, x.flip(0), 64) == pytest.approx(0, abs=1e-12)
    # the mean of |cos| over all directions is 2 / pi
    assert sliced_wasserstein(x, x + shift, 256) == pytest.approx(0.5 * 2 / math.pi, rel=1e-3)


def test_sliced_wasserstein_of_one_dimension_is_the_mean_distance_of_sorted_points() -> None:
    a, b = torch.tensor([[0.0, 9.0], [1.0, 9.0]]), torch.tensor([[3.0, 9.0], [1.0, 9.0]])
    assert sliced_wasserstein(a, b, 1) == pytest.approx((1 + 2) / 2)


def test_true_samples_measure_as_such_and_a_collapse_does_not() -> None:
    mixture = fractal("A")
    true, fresh = (mixture.sample(4096, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    level = contour_level(mixture.log_density(mixture.sample(20_000, torch.Generator().manual_seed(2))))
    good = measure(mixture, fresh, true, level, 64)
    assert good["outliers"] == pytest.approx(0.01, abs=0.005)
    assert good["branch_jsd"] < 0.006
    assert good["sliced_wasserstein"] < 0.03
    collapsed = measure(mixture, fresh[:1].expand(4096, 2), true, level, 64)
    assert collapsed["component_jsd"] > 0.5
    assert collapsed["sliced_wasserstein"] > 0.2
    shifted = measure(mixture, fresh + 5, true, level, 64)
    assert shifted["outliers"] == 1
    assert shifted["log_density"] < -1000


def test_samples_left_out_are_as_if_they_had_never_been() -> None:
    mixture = fractal("A")
    true, found = (mixture.sample(900, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    groups = [slice(0, 0), slice(0, 100), slice(300, 450)]
    without = measure_without(mixture, found, true, 1.0, 40, groups)
    for group, values in zip(groups, without, strict=True):
        kept = [torch.cat([points[: group.start], points[group.stop :]]) for points in (found, true)]
        assert values == pytest.approx(measure(mixture, *kept, 1.0, 40), rel=1e-6)
