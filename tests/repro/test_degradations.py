"""Degradations: what they do, what they draw, and what they leave alone."""

from pathlib import Path

import pytest
import torch

from metrics.files import InputError
from repro import degradations, snapshots
from repro.degradations import GUIDE, MAIN, DroppedOut, RaisedNoise, degrade, seed_degradations
from repro.networks import Precond
from repro.sampler import SeedStreams, draw_inputs, sample


def load(golden: Path, name: str = "main") -> Precond:
    return snapshots.load(golden / f"{name}.pkl").network.eval()


def test_degradations_never_touch_the_weights_or_the_global_generator(golden: Path) -> None:
    network = load(golden)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    state = torch.get_rng_state()
    for degraded in (DroppedOut(network, 0.1), RaisedNoise(network, 0.2)):
        degraded.streams = SeedStreams("cpu", [0, 1])
        degraded(torch.zeros(2, 3, 16, 16), torch.tensor(1.0), torch.eye(10)[:2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())


@pytest.mark.parametrize("wanted", [{"dropout": 0.1}, {"input_noise": 0.2}, {"input_noise": 0.2, "dropout": 0.1}])
def test_draws_belong_to_the_image_s_own_seed(golden: Path, wanted: dict[str, float]) -> None:
    network = load(golden)

    def image(role: int, seeds: list[int]) -> torch.Tensor:
        """Of seed 5, among others of the batch."""
        degraded = degrade(network, wanted, role)
        noise, labels = draw_inputs(network, seeds)
        seed_degradations(degraded, SeedStreams("cpu", seeds))
        return sample(degraded, noise, labels, num_steps=4)[seeds.index(5)]

    assert torch.equal(image(MAIN, [5, 6]), image(MAIN, [5, 6]))
    assert torch.equal(image(MAIN, [5, 6]), image(MAIN, [9, 5]))
    assert not torch.equal(image(MAIN, [5, 6]), image(GUIDE, [5, 6]))


def test_several_are_applied_in_the_registry_s_order(golden: Path) -> None:
    network = load(golden)
    for wanted in ({"input_noise": 0.2, "dropout": 0.1}, {"dropout": 0.1, "input_noise": 0.2}):
        outer = degrade(network, wanted)
        assert isinstance(outer, RaisedNoise)
        assert isinstance(outer.network, DroppedOut)


def test_strength_zero_changes_nothing(golden: Path) -> None:
    network = load(golden)
    x, sigma, labels = torch.randn(2, 3, 16, 16), torch.tensor(0.7), torch.eye(10)[:2]
    with torch.no_grad():
        expected = network(x, sigma, labels)
        for name in degradations.DEGRADATIONS:
            degraded = degrade(network, {name: 0.0})
            seed_degradations(degraded, SeedStreams("cpu", [0, 1]))
            torch.testing.assert_close(degraded(x, sigma, labels), expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_drawn_without_the_seeds_of_the_batch(golden: Path) -> None:
    with pytest.raises(InputError, match="give it the seeds"):
        RaisedNoise(load(golden), 0.2)(torch.zeros(2, 3, 16, 16), torch.tensor(1.0), torch.eye(10)[:2])


def test_raised_noise_adds_the_missing_variance_and_raises_the_conditioning() -> None:
    seen: dict[str, torch.Tensor] = {}

    class Probe:
        img_resolution, img_channels, label_dim, sigma_data, encoder = 32, 1, 0, 0.5, None

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            seen.update(x=x, sigma=sigma)
            return x

    degraded = RaisedNoise(Probe(), 0.2)
    degraded.streams = SeedStreams("cpu", range(64))
    degraded(torch.zeros(64, 1, 32, 32), torch.tensor(2.0))
    assert float(seen["sigma"]) == pytest.approx(2.4)
    assert float(seen["x"].std()) == pytest.approx((2.4**2 - 2.0**2) ** 0.5, rel=0.01)
