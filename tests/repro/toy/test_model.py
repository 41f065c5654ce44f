"""Properties of the 2D example's network."""

import pytest
import torch
from torch import Tensor

from repro.networks import Denoiser
from repro.toy.model import ToyNetwork


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


@pytest.mark.parametrize(("width", "expected"), [(64, 16_641), (32, 4_225)])
def test_parameter_counts_are_the_paper_s(width: int, expected: int) -> None:
    assert sum(p.numel() for p in ToyNetwork(width).parameters()) == expected


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
