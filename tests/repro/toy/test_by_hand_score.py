"""The rearranged densities and scores of the mixture, against its definition in float64."""

import pytest
import torch
from torch import Tensor

from repro.toy.by_hand import CHUNK
from repro.toy.mixture import Mixture, fractal
from tests.repro.toy.plain import component_covariances, distribution, noisy_points


@pytest.fixture(scope="module")
def class_a() -> Mixture:
    return fractal("A")


def exact_score(mixture: Mixture, x: Tensor, sigma: float) -> Tensor:
    x = x.double().requires_grad_()
    return torch.autograd.grad(distribution(mixture, sigma).log_prob(x).sum(), x)[0]


@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.05, 1.0])
def test_log_density_equals_the_sum_over_normals(class_a: Mixture, sigma: float) -> None:
    x = noisy_points(class_a, torch.full([700], max(sigma, 0.02)))
    expected = distribution(class_a, sigma).log_prob(x.double())
    torch.testing.assert_close(class_a.log_density(x, sigma), expected, atol=1e-7, rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.1, 1.0, 5.0, 80.0])
def test_score_matches_the_float64_oracle(class_a: Mixture, sigma: float) -> None:
    x = noisy_points(class_a, torch.full([300], sigma))
    error = sigma * (class_a.score(x, sigma) - exact_score(class_a, x, sigma)).abs().max().item()
    assert error <= 1e-5


def test_score_of_a_training_batch_matches_the_float64_oracle() -> None:
    mixture = fractal("AB")
    sigma = (torch.randn(2048, generator=torch.Generator().manual_seed(3)) * 1.5 - 2.3).exp()
    x = noisy_points(mixture, sigma)
    apart = x.double()[:, None] - mixture.means
    S = component_covariances(mixture) + (sigma.double() ** 2)[:, None, None, None] * torch.eye(2, dtype=torch.float64)
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
