"""Properties of the fractal mixture, against its definition written out in float64."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from repro.toy.mixture import Mixture, fractal
from tests.repro.toy.plain import component_covariances, moments


@pytest.fixture(scope="module")
def class_a() -> Mixture:
    return fractal("A")


def test_each_class_has_127_branches_of_8_components(class_a: Mixture) -> None:
    assert len(class_a.means) == len(fractal("B").means) == 1016
    assert len(fractal("AB").means) == 2032


def test_moments_are_the_published_ones(class_a: Mixture) -> None:
    mean, covariance = moments(fractal("AB"))
    torch.testing.assert_close(mean, torch.tensor([-0.00014, 0.00057]).double(), atol=6e-6, rtol=0)
    torch.testing.assert_close(covariance.diag().sqrt(), torch.tensor([0.49985, 0.49990]).double(), atol=6e-6, rtol=0)
    assert covariance[0, 1].item() == pytest.approx(0.0883, abs=6e-5)
    mean, covariance = moments(class_a)
    torch.testing.assert_close(mean, torch.tensor([0.37185, 0.36461]).double(), atol=6e-6, rtol=0)
    torch.testing.assert_close(covariance.diag().sqrt(), torch.tensor([0.33306, 0.34149]).double(), atol=6e-6, rtol=0)


def test_published_contour_level_holds_99_percent_of_the_mass(class_a: Mixture) -> None:
    log_density = class_a.log_density(class_a.sample(20_000, torch.Generator().manual_seed(0)))
    inside = -(log_density.max() - log_density).sqrt() > -2.12
    assert inside.double().mean().item() == pytest.approx(0.99, abs=0.005)


def test_weights_sum_to_one() -> None:
    for classes in ("A", "B", "AB"):
        mixture = fractal(classes)
        assert mixture.weights.sum().item() == pytest.approx(1)
        assert mixture.component_weights.sum().item() == pytest.approx(1)


def test_score_keeps_the_dtype_and_takes_sigma_in_any_shape(class_a: Mixture) -> None:
    x, sigma = torch.zeros(3, 2), torch.full([3], 0.5)
    assert class_a.score(x, 0.5).dtype == torch.float32
    assert class_a.score(x.double(), 0.5).dtype == torch.float64
    assert torch.equal(class_a.score(x, 0.5), class_a.score(x, sigma[:, None]))


def test_samples_have_the_moments_of_the_mixture(class_a: Mixture) -> None:
    x = class_a.sample(100_000, torch.Generator().manual_seed(1)).double()
    mean, covariance = moments(class_a)
    torch.testing.assert_close(x.mean(0), mean, atol=5e-3, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=3e-3, rtol=0)


def test_samples_repeat_with_the_seed(class_a: Mixture) -> None:
    a, b = (class_a.sample(10, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)


def test_a_component_s_mean_on_the_outer_twigs_is_assigned_to_that_component(class_a: Mixture) -> None:
    tips = torch.arange(len(class_a.means))[7::8]  # the last component of each branch
    assigned = class_a.assign(class_a.means[tips])
    assert (assigned == tips).double().mean() > 0.6  # where branches meet, a neighbour may be the more probable
    densities = torch.stack(
        [
            MultivariateNormal(mean, covariance).log_prob(class_a.means[tips]) + weight.log()
            for mean, covariance, weight in zip(
                class_a.means, component_covariances(class_a), class_a.component_weights, strict=True
            )
        ]
    )
    assert torch.equal(assigned, densities.argmax(0))
