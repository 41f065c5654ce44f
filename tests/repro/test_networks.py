"""The network against the authors' implementation, and the properties its layers promise."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repro import snapshots
from repro.encoders import RGBEncoder
from repro.inference import fold
from repro.networks import MPConv, Precond, mp_cat, mp_silu, mp_sum, normalize

NAMES = ["main", "guide", "uncond", "latent", "latent-guide"]


def tiny(label_dim: int = 10, **kwargs: object) -> Precond:
    torch.manual_seed(0)
    settings = dict(model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8], channels_per_head=8)
    network = Precond(16, 3, label_dim, **(settings | kwargs))  # type: ignore[arg-type]
    for name, p in network.named_parameters():
        if name.endswith("gain"):
            p.data.fill_(0.7)
    return network


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    want = torch.from_numpy(expected)
    return float((found - want).norm() / want.norm())


@pytest.mark.parametrize("prepared", [False, True], ids=["as loaded", "folded"])
@pytest.mark.parametrize("name", NAMES)
def test_output_agrees_with_the_golden_file(golden: Path, name: str, prepared: bool) -> None:
    network = snapshots.load(golden / f"{name}.pkl").network.eval()
    if prepared:
        network = fold(network)
    data = np.load(golden / f"{name}-forward.npz")
    labels = torch.from_numpy(data["labels"]) if "labels" in data and data["labels"].size else None
    with torch.no_grad():
        denoised, logvar = network(
            torch.from_numpy(data["x"]), torch.from_numpy(data["sigma"]), labels, return_logvar=True
        )
    assert relative(denoised, data["denoised"]) < 1e-5
    assert relative(logvar.flatten(), data["logvar"].flatten()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_float16_is_as_close_to_float32_as_the_published_arithmetic_in_float16(golden: Path, name: str) -> None:
    network = snapshots.load(golden / f"{name}.pkl").network
    network.precision = torch.float16  # as on CUDA
    network.encoder = RGBEncoder()
    folded = fold(network)
    assert folded.encoder is network.encoder  # a VAE is not copied
    half = {p.dtype for key, p in folded.unet.named_parameters() if p.ndim == 4}
    data = np.load(golden / f"{name}-forward.npz")
    labels = torch.from_numpy(data["labels"]) if "labels" in data and data["labels"].size else None
    with torch.no_grad():
        found = folded(torch.from_numpy(data["x"]), torch.from_numpy(data["sigma"]), labels)
    published = torch.from_numpy(np.load(golden / "fp16-forward.npz")[name]).float()
    assert half == {torch.float16}
    assert 1e-4 < relative(found, data["denoised"]) <= 1.25 * relative(published, data["denoised"])


def test_missing_labels_mean_the_zero_vector_as_published(golden: Path) -> None:
    network = snapshots.load(golden / "main.pkl").network.eval()
    data = np.load(golden / "main-forward-without-labels.npz")
    with torch.no_grad():
        denoised = network(torch.from_numpy(data["x"]), torch.from_numpy(data["sigma"]))
    assert relative(denoised, data["denoised"]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_golden_one(golden: Path, name: str) -> None:
    entry = json.loads((golden / "manifest.json").read_text())[name]
    with torch.device("meta"):
        network = Precond(**entry["kw"])
    assert sum(p.numel() for p in network.parameters()) == entry["params"]


def test_a_folded_network_computes_the_same_and_leaves_the_original_alone() -> None:
    network = tiny().eval()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    x, sigma, labels = torch.randn(4, 3, 16, 16), torch.rand(4) + 0.1, torch.eye(10)[:4]
    with torch.no_grad():
        expected = network(x, sigma, labels)
        found = fold(fold(network))(x, sigma, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())


def test_training_mode_overwrites_weights_with_their_normalised_value() -> None:
    conv = MPConv(3, 5, (3, 3)).train()
    conv.weight.data.mul_(7)
    conv(torch.randn(1, 3, 8, 8))
    magnitude = conv.weight.detach().square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(magnitude, torch.ones(5), rtol=1e-3, atol=1e-3)


def test_evaluation_mode_never_writes_to_weights() -> None:
    conv = MPConv(3, 5, (3, 3)).eval()
    before = conv.weight.detach().clone()
    conv(torch.randn(1, 3, 8, 8))
    assert torch.equal(conv.weight, before)


def test_the_gradient_is_orthogonal_to_a_normalised_weight() -> None:
    conv = MPConv(3, 5, (3, 3)).train()
    conv(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert conv.weight.grad is not None
    along = (conv.weight.grad * conv.weight).flatten(1).sum(dim=1)
    assert along.abs().max() < 1e-2 * conv.weight.grad.norm()


@given(t=st.floats(0, 1), seed=st.integers(0, 1000))
def test_sum_and_concatenation_preserve_magnitude(t: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 64, 16, 16, generator=generator), torch.randn(2, 32, 16, 16, generator=generator)
    assert mp_sum(a, torch.randn(a.shape, generator=generator), t).square().mean().sqrt() == pytest.approx(1, abs=0.03)
    assert mp_cat(a, b, t).square().mean().sqrt() == pytest.approx(1, abs=0.03)


def test_silu_preserves_magnitude() -> None:
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    assert mp_silu(x).square().mean().sqrt() == pytest.approx(1, abs=2e-3)


@given(scale=st.floats(1e-2, 1e4))
def test_normalize_is_invariant_to_scale(scale: float) -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(normalize(x * scale), normalize(x), rtol=2e-2, atol=1e-9)
    assert normalize(x).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_on_cuda_stays_close_to_float32() -> None:
    network = tiny(model_channels=64, channels_per_head=32).eval()
    x, sigma, labels = torch.randn(8, 3, 16, 16), torch.rand(8) + 0.1, torch.eye(10)[:8]
    with torch.no_grad():
        expected = network(x, sigma, labels)
        found = fold(network, "cuda")(x.cuda(), sigma.cuda(), labels.cuda()).cpu()
    assert (found - expected).norm() / expected.norm() < 5e-3
