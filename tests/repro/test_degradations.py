"""Degradations: what they do, what they draw, and what they leave alone."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch

from metrics.files import InputError
from repro import degradations, snapshots
from repro.degradations import GUIDE, MAIN, DroppedOut, RaisedNoise, degrade, seed_degradations
from repro.inference import FoldedConv, fold
from repro.networks import MPConv, Precond
from repro.sampler import SeedStreams, draw_inputs, sample

WORSE: list[dict[str, Any]] = [
    {"dropout": 0.1},
    {"input_noise": 0.2},
    {"blurred_attention": 1.0},
    {"identity_attention": 1},
    {"quantised": 3},
    {"sliding_window": [8, 4]},
    {"random_label": 1},
    {"dropout": 0.1, "blurred_attention": math.inf, "random_label": 1, "quantised": 8},
]


def load(golden: Path, name: str = "main") -> Precond:
    return snapshots.load(golden / f"{name}.pkl").network.eval()


def test_degradations_never_touch_the_weights_or_the_global_generator(golden: Path) -> None:
    network = load(golden)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    state = torch.get_rng_state()
    for wanted in WORSE:
        degraded = degrade(network, wanted)
        seed_degradations(degraded, SeedStreams("cpu", [0, 1]))
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
            degraded = degrade(network, {name: [16, 4] if name == "sliding_window" else 0.0})
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


def answer(network: Any, seeds: list[int]) -> torch.Tensor:
    """At one noise level, of images that depend on their seeds alone."""
    seed_degradations(network, SeedStreams("cpu", seeds))
    noise, labels = draw_inputs(network, seeds)
    return network(2 * noise, torch.tensor(0.9), labels)


@pytest.mark.parametrize("wanted", WORSE, ids=str)
def test_each_makes_another_answer_that_belongs_to_the_image_s_own_seed(golden: Path, wanted: dict[str, Any]) -> None:
    network = load(golden)
    with torch.no_grad():
        plain, worse = answer(network, [5, 6]), answer(degrade(network, wanted), [5, 6])
        other = answer(degrade(network, wanted), [5, 9])
    assert (plain - worse).norm() > 1e-3 * plain.norm()
    torch.testing.assert_close(worse[0], other[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(worse, answer(degrade(network, wanted), [5, 6]))


@pytest.mark.parametrize("wanted", WORSE, ids=str)
def test_a_folded_network_is_made_as_bad_as_a_plain_one(golden: Path, wanted: dict[str, Any]) -> None:
    network = load(golden)
    with torch.no_grad():
        found = [answer(degrade(n, wanted), [5, 6]) for n in (network, fold(network))]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, math.inf])
@pytest.mark.parametrize("side", [4, 7, 8])
def test_blurred_queries_are_those_of_a_blurred_image(sigma: float, side: int) -> None:
    """Against SciPy's Gaussian filter with the stated kernel, whose `mirror` is reflection, in float64."""
    q, k, v = torch.randn(3, 2, 3, side * side, 5, dtype=torch.float64)
    image = q.reshape(2, 3, side, side, 5).numpy()
    if math.isinf(sigma):
        blurred = np.broadcast_to(image.mean(axis=(2, 3), keepdims=True), image.shape).copy()
    else:
        size = next(n for n in itertools.count(1, 2) if n >= math.ceil(6 * sigma))
        size = min(size, max(n for n in range(1, side + 2, 2)))
        blurred = scipy.ndimage.gaussian_filter(image, sigma, mode="mirror", axes=(2, 3), radius=size // 2)
    wanted = torch.from_numpy(blurred).reshape(q.shape)
    torch.testing.assert_close(degradations.blur(q, sigma), wanted, rtol=0, atol=1e-10)
    weights = (wanted @ k.transpose(2, 3) / 5**0.5).softmax(dim=-1)
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(degradations.blur(q, sigma), k, v), weights @ v, rtol=0, atol=1e-10)


def test_identity_attention_lets_the_values_out_and_spares_other_layers(golden: Path) -> None:
    network = load(golden)
    names = list(degradations.attention_blocks(fold(network)))
    assert len(names) > 1
    inner = degrade(network, {"identity_attention": {"strength": 1, "layers": names[:1]}}).inner()
    blocks = degradations.attention_blocks(inner)
    q, k, v = torch.randn(3, 1, 2, 16, 4)
    assert torch.equal(blocks[names[0]].attention(q, k, v), v)
    assert not torch.equal(blocks[names[1]].attention(q, k, v), v)
    with pytest.raises(InputError, match="did you mean"):
        degrade(network, {"identity_attention": {"strength": 1, "layers": [names[0] + "x"]}})


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_quantised_weights_are_the_stored_ones_rounded_and_then_normalised(golden: Path, bits: int) -> None:
    network = load(golden)
    found = degrade(network, {"quantised": bits}).inner()
    with torch.no_grad():
        for part in (network.unet.enc, network.unet.dec, network.unet.out_conv):
            for module in part.modules():
                if isinstance(module, MPConv):
                    w = module.weight.double().flatten(1)
                    scale = w.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
                    module.weight.copy_(((w / scale).round() * scale).view_as(module.weight))
        x, labels = torch.randn(2, 3, 16, 16), torch.eye(10)[:2]
        wanted, found_here = network(x, torch.tensor(0.7), labels), found(x, torch.tensor(0.7), labels)
        plain = load(golden)(x, torch.tensor(0.7), labels)
    # Rounding moves a weight's norm, which has an epsilon of 1e-4 beside it; and weights half way go either way.
    assert (found_here - wanted).norm() < 0.1 * (plain - wanted).norm()
    weight = next(m.weight for m in found.modules() if isinstance(m, FoldedConv) and m.weight.ndim == 4)
    assert max(len(row.unique()) for row in weight.flatten(1)) <= 2**bits - 1


def test_windows_cover_the_image_and_are_averaged() -> None:
    class Positions(Precond):
        """Answers with the mean of its crop, and remembers where it was asked."""

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            crops.append(x)
            return torch.zeros_like(x) + x.mean(dim=(2, 3), keepdim=True)

    crops: list[torch.Tensor] = []
    small = dict(model_channels=8, channel_mult=[1, 1], num_blocks=1, attn_resolutions=[], channels_per_head=8)
    network = Positions(10, 1, 0, **small)
    x = torch.arange(100.0).reshape(1, 1, 10, 10)
    found = degrade(network, {"sliding_window": [4, 4]})(x, torch.tensor(1.0))
    assert [crop[0, 0, 0, 0].item() for crop in crops] == [10 * i + j for i in (0, 4, 6) for j in (0, 4, 6)]
    at = {(i, j): x[..., i : i + 4, j : j + 4].mean() for i in (0, 4, 6) for j in (0, 4, 6)}
    assert found[0, 0, 0, 0] == at[0, 0]
    assert found[0, 0, 7, 0] == (at[4, 0] + at[6, 0]) / 2
    assert found[0, 0, 7, 7] == (at[4, 4] + at[4, 6] + at[6, 4] + at[6, 6]) / 4


def test_a_random_label_is_one_per_image_for_all_its_evaluations(golden: Path) -> None:
    network = load(golden)
    seen = []

    class Probe(degradations.Degraded):
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            assert labels is not None
            seen.append(labels.argmax(dim=1))
            return x

    seeds = list(range(400))
    degraded = degrade(Probe(network, 0), {"random_label": 1})
    for batch in (seeds, seeds[200:] + seeds[:200]):
        seed_degradations(degraded, SeedStreams("cpu", batch))
        for _ in range(2):
            degraded(torch.zeros(400, 3, 16, 16), torch.tensor(1.0), torch.eye(10)[[3] * 400])
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], torch.cat([seen[0][200:], seen[0][:200]]))
    assert seen[0].bincount(minlength=10).min() > 20  # about 40 of each


class Foreign:
    img_resolution, img_channels, label_dim, sigma_data, encoder = 16, 3, 0, 0.5, None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"dropout": 0.1}, "'dropout' needs one of this project's networks"),
        ({"quantised": 4}, "'quantised' needs one"),
        ({"sliding_window": [8, 4]}, "'sliding_window' needs one"),
        ({"identity_attention": 1}, "or a DiT or UNet2D of diffusers"),
        ({"null_class": 1}, "needs a foreign model that has a null label"),
        ({"sliding_window": [32, 4]}, "size 32, the image has 16"),
        ({"random_label": 1}, "the network has no labels"),
    ],
)
def test_what_a_network_cannot_have_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        degrade(Foreign(), wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"sliding_window": [4, 8]}, "1 <= stride <= size"),
        ({"sliding_window": 4}, "whole numbers"),
        ({"sliding_window": [4.5, 2]}, "whole numbers"),
        ({"sliding_window": [7, 3]}, "expected a multiple of"),
        ({"quantised": 1}, "2 to 16 bits"),
        ({"quantised": 2.5}, "2 to 16 bits"),
        ({"random_label": 0.5}, "1, or 0 for none"),
        ({"identity_attention": 2}, "1, or 0 for none"),
        ({"null_class": 3}, "1, or 0 for none"),
        ({"blurred_attention": -1}, "0 or more"),
        ({"blurred_attention": math.nan}, "0 or more"),
        ({"blurred_attention": {"strength": 1.0}}, "expected a strength and a list of layers"),
        ({"blurred_attention": {"strength": 1.0, "layer": ["a"]}}, "expected a strength and a list of layers"),
        ({"dropout": {"strength": 0.1, "layers": ["a"]}}, "expected 0.0 <= x < 1.0"),
        ({"dropout": [0.1]}, "expected 0.0 <= x < 1.0"),
    ],
)
def test_strengths_that_cannot_be_meant_are_refused(golden: Path, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        degrade(load(golden), wanted)
