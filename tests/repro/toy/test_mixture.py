"""Properties of the fractal mixture, against its definition written out in float64."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from repro.toy.mixture import CHUNK, OFFSETS, Mixture, fractal


@pytest.fixture(scope="module")
def class_a() -> Mixture:
    return fractal("A")


def oracle(mixture: Mixture, sigma: float) -> MixtureSameFamily:
    covariances = mixture.covariances.repeat_interleave(len(OFFSETS), dim=0)
    normals = MultivariateNormal(mixture.means, covariances + sigma**2 * torch.eye(2, dtype=torch.float64))
    return MixtureSameFamily(Categorical(mixture.component_weights), normals)


def oracle_score(mixture: Mixture, x: Tensor, sigma: float) -> Tensor:
    x = x.double().requires_grad_()
    return torch.autograd.grad(oracle(mixture, sigma).log_prob(x).sum(), x)[0]


def noisy_points(mixture: Mixture, sigma: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mixture.sample(len(sigma), generator) + sigma[:, None] * torch.randn([len(sigma), 2], generator=generator)


def test_each_class_has_127_branches_of_8_components(class_a: Mixture) -> None:
    assert class_a.num_components == fractal("B").num_components == 1016
    assert fractal("AB").num_components == 2032


def test_moments_are_the_published_ones(class_a: Mixture) -> None:
    mean, covariance = fractal("AB").moments()
    torch.testing.assert_close(mean, torch.tensor([-0.00014, 0.00057]).double(), atol=6e-6, rtol=0)
    torch.testing.assert_close(covariance.diag().sqrt(), torch.tensor([0.49985, 0.49990]).double(), atol=6e-6, rtol=0)
    assert covariance[0, 1].item() == pytest.approx(0.0883, abs=6e-5)
    mean, covariance = class_a.moments()
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


@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.05, 1.0])
def test_log_density_equals_the_sum_over_normals(class_a: Mixture, sigma: float) -> None:
    x = noisy_points(class_a, torch.full([700], max(sigma, 0.02)))
    expected = oracle(class_a, sigma).log_prob(x.double())
    torch.testing.assert_close(class_a.log_density(x, sigma), expected, atol=1e-7, rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.1, 1.0, 5.0, 80.0])
def test_score_matches_the_float64_oracle(class_a: Mixture, sigma: float) -> None:
    x = noisy_points(class_a, torch.full([300], sigma))
    error = sigma * (class_a.score(x, sigma) - oracle_score(class_a, x, sigma)).abs().max().item()
    assert error <= 1e-5


def test_score_of_a_training_batch_matches_the_float64_oracle() -> None:
    mixture = fractal("AB")
    sigma = (torch.randn(2048, generator=torch.Generator().manual_seed(3)) * 1.5 - 2.3).exp()
    x = noisy_points(mixture, sigma)
    apart = x.double()[:, None] - mixture.means
    covariances = mixture.covariances.repeat_interleave(len(OFFSETS), dim=0)
    S = covariances + (sigma.double() ** 2)[:, None, None, None] * torch.eye(2, dtype=torch.float64)
    solved = torch.linalg.solve(S, apart[..., None])[..., 0]  # S^-1 (x - mean), [N, K, 2]
    exponent = -0.5 * (apart * solved).sum(2) - 0.5 * S.det().log()
    expected = -((exponent + mixture.component_weights.log()).softmax(1)[..., None] * solved).sum(1)
    assert (sigma[:, None] * (mixture.score(x, sigma) - expected)).abs().max().item() <= 1e-5


def test_score_is_the_gradient_of_the_log_density(class_a: Mixture) -> None:
    x = noisy_points(class_a, torch.full([600], 0.1)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(class_a.log_density(x, 0.1).sum(), x)
    assert 0.1 * (class_a.score(x, 0.1) - gradient).abs().max().item() <= 1e-5


def test_score_far_from_all_components_points_back_and_stays_finite(class_a: Mixture) -> None:
    x = torch.tensor([[50.0, -80.0], [-300.0, 10.0]])
    for sigma in (0.002, 0.1):
        score = class_a.score(x, sigma)
        assert score.isfinite().all()
        assert ((score * x).sum(1) < 0).all()


def test_score_of_a_point_does_not_depend_on_its_company(class_a: Mixture) -> None:
    sigma = torch.linspace(0.01, 2, CHUNK + 1)
    x = noisy_points(class_a, sigma)
    together = class_a.score(x, sigma)
    for i in (0, CHUNK - 1, CHUNK):
        alone = class_a.score(x[i : i + 1], sigma[i].item())
        assert sigma[i] * (together[i] - alone[0]).abs().max() <= 2e-6


def test_score_keeps_the_dtype_and_takes_sigma_in_any_shape(class_a: Mixture) -> None:
    x, sigma = torch.zeros(3, 2), torch.full([3], 0.5)
    assert class_a.score(x, 0.5).dtype == torch.float32
    assert class_a.score(x.double(), 0.5).dtype == torch.float64
    assert torch.equal(class_a.score(x, 0.5), class_a.score(x, sigma[:, None]))


def test_samples_have_the_moments_of_the_mixture(class_a: Mixture) -> None:
    x = class_a.sample(100_000, torch.Generator().manual_seed(1)).double()
    mean, covariance = class_a.moments()
    torch.testing.assert_close(x.mean(0), mean, atol=5e-3, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=3e-3, rtol=0)


def test_samples_repeat_with_the_seed(class_a: Mixture) -> None:
    a, b = (class_a.sample(10, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)


def test_a_component_s_mean_on_the_outer_twigs_is_assigned_to_that_component(class_a: Mixture) -> None:
    tips = torch.arange(class_a.num_components)[7::8]  # the last component of each branch
    assigned = class_a.assign(class_a.means[tips])
    assert (assigned == tips).double().mean() > 0.6  # where branches meet, a neighbour may be the more probable
    densities = torch.stack(
        [
            MultivariateNormal(mean, covariance).log_prob(class_a.means[tips]) + weight.log()
            for mean, covariance, weight in zip(
                class_a.means, class_a.covariances.repeat_interleave(8, dim=0), class_a.component_weights, strict=True
            )
        ]
    )
    assert torch.equal(assigned, densities.argmax(0))
