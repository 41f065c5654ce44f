"""Properties of the 2D example's network."""

import pytest
import torch
from torch import Tensor

from repro.networks import Denoiser
from repro.toy.model import InputGradient, ToyNetwork


@pytest.fixture
def network() -> ToyNetwork:
    torch.manual_seed(0)
    network = ToyNetwork(width=16, num_layers=3).double()
    network.gain.data.fill_(0.7)
    return network.eval()


def points(num: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sigma = (torch.randn([num, 1], generator=generator, dtype=torch.float64) - 1).exp()
    return torch.randn([num, 2], generator=generator, dtype=torch.float64), sigma


def autograd_score(network: ToyNetwork, x: Tensor, sigma: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network.log_density(x, sigma).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize(("width", "expected"), [(64, 16_641), (32, 4_225)])
def test_parameter_counts_are_the_paper_s(width: int, expected: int) -> None:
    assert sum(p.numel() for p in ToyNetwork(width).parameters()) == expected


def test_score_is_the_gradient_of_the_log_density(network: ToyNetwork) -> None:
    x, sigma = points()
    torch.testing.assert_close(network.score(x, sigma), autograd_score(network, x, sigma), atol=1e-12, rtol=1e-10)


def test_loss_gradients_are_those_of_double_backward(network: ToyNetwork) -> None:
    x, sigma = points()
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


def test_denoiser_follows_from_the_score(network: ToyNetwork) -> None:
    x, sigma = points()
    torch.testing.assert_close(network(x, sigma), x + sigma**2 * network.score(x, sigma))
    torch.testing.assert_close(network(x, 0.3), network(x, torch.full([len(x)], 0.3)))


def test_untrained_network_denoises_one_broad_gaussian() -> None:
    x, sigma = points()
    network = ToyNetwork(8).double()
    torch.testing.assert_close(network(x, sigma), x * 0.25 / (sigma**2 + 0.25))


def test_weights_are_normalised_in_training_and_left_alone_in_evaluation(network: ToyNetwork) -> None:
    x, sigma = points()
    network.requires_grad_(False)
    weight = network.layers[1].weight
    weight.mul_(3)
    before = weight.clone()
    expected = network.eval().score(x, sigma)
    assert torch.equal(weight, before)
    trained = network.train().score(x, sigma)
    torch.testing.assert_close(weight.square().mean(1), torch.ones(16).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(trained, expected, rtol=1e-2, atol=1e-2)  # the scale of a weight has no effect


def test_network_is_a_denoiser() -> None:
    assert isinstance(ToyNetwork(8), Denoiser)
