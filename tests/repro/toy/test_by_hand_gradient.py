"""The hand-written score of the network and its derivative, against automatic differentiation in float64."""

import pytest
import torch
from torch import Tensor

from repro.toy.by_hand import InputGradient
from repro.toy.model import ToyNetwork


@pytest.fixture(params=[1, 3])
def network(request: pytest.FixtureRequest) -> ToyNetwork:
    torch.manual_seed(0)
    network = ToyNetwork(width=16, num_layers=request.param).double()
    network.gain.data.fill_(0.7)
    return network.eval()


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sigma = (torch.randn([20, 1], generator=generator, dtype=torch.float64) - 1).exp()
    return torch.randn([20, 2], generator=generator, dtype=torch.float64), sigma


def autograd_score(network: ToyNetwork, x: Tensor, sigma: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network.log_density(x, sigma).sum(), x, create_graph=True)[0]


def test_score_is_the_gradient_of_the_log_density(network: ToyNetwork, points: tuple[Tensor, Tensor]) -> None:
    expected = autograd_score(network, *points)
    torch.testing.assert_close(network.score(*points), expected, atol=1e-12, rtol=1e-10)


def test_loss_gradients_are_those_of_double_backward(network: ToyNetwork, points: tuple[Tensor, Tensor]) -> None:
    x, sigma = points
    found = []
    for score in (network.score(x, sigma), autograd_score(network, x, sigma)):
        network.zero_grad()
        (sigma * (score - x.flip(1))).square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(network.parameters()))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-9)


def test_input_gradient_passes_the_finite_difference_check() -> None:
    torch.manual_seed(2)
    weights = [torch.randn(5, 4), torch.randn(5, 5), torch.randn(5, 5)]
    arguments = [torch.rand(3, 1), torch.randn(3, 4), *weights]
    arguments = [a.double().requires_grad_(i != 1) for i, a in enumerate(arguments)]
    assert torch.autograd.gradcheck(InputGradient.apply, arguments)
