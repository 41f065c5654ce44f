"""The loss against its definition, and the learning rate."""

import math

import pytest
import torch

from repro.networks import Precond
from repro.training import EDM2Loss, learning_rate


def test_loss_without_noise_given_draws_sigma_then_noise():
    network = Precond(16, 1, 0, model_channels=8, channel_mult=[1], num_blocks=1, channels_per_head=8)
    network.eval()  # training mode normalises the weights at each call
    images, loss = torch.rand(4, 1, 16, 16), EDM2Loss(-0.8, 1.6, 0.5)
    torch.manual_seed(7)
    drawn = loss(network, images)
    torch.manual_seed(7)
    sigma = (torch.randn(4, 1, 1, 1) * 1.6 - 0.8).exp()
    assert torch.equal(drawn, loss(network, images, None, sigma, torch.randn_like(images)))


def test_loss_of_a_perfect_denoiser_is_the_log_variance_and_its_optimum_is_one():
    def off_by(error: float, logvar: float):
        return lambda x, sigma, labels, return_logvar: (images + error, torch.full([2, 1, 1, 1], logvar))

    images, sigma = torch.zeros(2, 3, 4, 4), torch.full([2, 1, 1, 1], 2.0)
    loss = EDM2Loss(sigma_data=0.5)
    args = (images, None, sigma, torch.zeros_like(images))
    assert torch.allclose(loss(off_by(0, 0.3), *args), torch.tensor(0.3))
    weight = (4 + 0.25) / 1.0**2
    best = math.log(weight * 0.1**2)  # the log variance that minimises the loss of this error
    values = [loss(off_by(0.1, best + shift), *args).mean().item() for shift in (-0.1, 0, 0.1)]
    assert values[1] == pytest.approx(1 + best, rel=1e-5)
    assert values[1] < min(values[0], values[2])


def test_learning_rate_ramps_up_and_decays():
    args = dict(batch_size=100, ref_lr=0.01, ref_batches=50, rampup_Mimg=0.002)
    assert learning_rate(0, **args) == 0
    assert learning_rate(1000, **args) == pytest.approx(0.005)
    assert learning_rate(5000, **args) == pytest.approx(0.01)
    assert learning_rate(20000, **args) == pytest.approx(0.005)
    assert learning_rate(0, 100, 0.01, 0, 0) == 0.01
