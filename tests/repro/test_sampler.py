"""The sampler against the authors' implementation, and its random streams."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics.files import InputError
from repro import snapshots
from repro.inference import fold
from repro.networks import Precond
from repro.sampler import NonFiniteError, SeedStreams, draw_inputs, sample

CASES = ["unguided", "autoguidance", "cfg", "churn", "sigma-range", "latent", "interval"]
SAMPLER_KEYS = ("num_steps", "S_churn", "S_min", "S_max", "S_noise", "sigma_min", "sigma_max", "rho", "guidance")


def load(golden: Path, name: str) -> Precond:
    snapshot = snapshots.load(golden / f"{name}.pkl")
    network = fold(snapshot.network)
    network.encoder = snapshot.encoder
    return network


def run(golden: Path, case: str, drop_guide_labels: bool = False) -> tuple[Any, torch.Tensor, dict[str, np.ndarray]]:
    entry = json.loads((golden / "manifest.json").read_text())[f"sampler-{case}"]
    main_name, guide_name = entry["networks"]
    main = load(golden, main_name)
    guide: Any = None if guide_name is None else load(golden, guide_name)
    if drop_guide_labels:
        guide = WithoutLabels(guide)
    expected = dict(np.load(golden / f"sampler-{case}.npz"))
    streams = SeedStreams("cpu", entry["seeds"])
    noise, labels = draw_inputs(main, streams)
    np.testing.assert_array_equal(noise.numpy(), expected["noise"])
    if labels is not None:
        np.testing.assert_array_equal(labels.numpy(), expected["labels"])
    settings = {key: entry[key] for key in SAMPLER_KEYS if key in entry}
    latents = sample(
        main,
        noise,
        labels,
        guide=guide,
        interval=tuple(entry["interval"]) if "interval" in entry else None,
        dtype=getattr(torch, entry.get("dtype", "float32")),
        randn_like=streams.randn_like,
        **settings,
    )
    return main, latents, expected


class WithoutLabels:
    """The bug of the first release: a conditional guide that never sees the labels."""

    def __init__(self, network: Precond) -> None:
        self.network = network
        self.label_dim = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.network(x, sigma)


@pytest.mark.parametrize("case", CASES)
def test_samples_agree_with_the_golden_file(golden: Path, case: str) -> None:
    main, latents, expected = run(golden, case)
    want = torch.from_numpy(expected["latents"])
    assert (latents - want).norm() / want.norm() < 1e-4
    if "images" in expected:
        images = main.encoder.decode(latents).numpy().astype(int)
        assert np.abs(images - expected["images"].reshape(images.shape)).max() <= 1


def test_a_guide_without_labels_would_be_noticed(golden: Path) -> None:
    _, latents, expected = run(golden, "autoguidance", drop_guide_labels=True)
    want = torch.from_numpy(expected["latents"])
    assert (latents - want).norm() / want.norm() > 0.1


class Gaussian:
    """Exact denoiser of N(0, s^2 I); counts its calls."""

    img_resolution, img_channels, label_dim, sigma_data, encoder = 4, 1, 0, 0.5, None

    def __init__(self, s: float = 0.5) -> None:
        self.s = s
        self.calls = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        return x * self.s**2 / (self.s**2 + sigma**2)


def test_heun_converges_to_the_exact_solution_of_a_gaussian() -> None:
    noise = torch.randn(64, 1, 4, 4, dtype=torch.float64)
    exact = noise * 80 * 0.5 / (0.5**2 + 80**2) ** 0.5
    errors = []
    for steps in (32, 64, 128):
        found = sample(Gaussian(), noise, num_steps=steps, sigma_min=1e-4, dtype=torch.float64)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


def test_weight_one_never_evaluates_the_guide() -> None:
    main, guide = Gaussian(), Gaussian(1.0)
    sample(main, torch.randn(2, 1, 4, 4), guide=guide, guidance=1, num_steps=8)
    assert (main.calls, guide.calls) == (15, 0)


def test_an_interval_evaluates_the_guide_twice_per_guided_step() -> None:
    main, guide = Gaussian(), Gaussian(1.0)
    sample(main, torch.randn(2, 1, 4, 4), guide=guide, guidance=2, interval=(2, 4), num_steps=8)
    assert (main.calls, guide.calls) == (15, 6)


def test_an_interval_over_all_steps_is_no_interval() -> None:
    noise = torch.randn(2, 1, 4, 4)
    whole = sample(Gaussian(), noise, guide=Gaussian(1.0), guidance=2, num_steps=8)
    same = sample(Gaussian(), noise, guide=Gaussian(1.0), guidance=2, interval=(0, 7), num_steps=8)
    assert torch.equal(whole, same)


def test_a_sample_depends_on_its_seed_alone() -> None:
    together, apart = SeedStreams("cpu", [3, 2**32 + 4]), SeedStreams("cpu", [4])
    assert torch.equal(together.randn([2, 5])[1], apart.randn([1, 5])[0])
    assert torch.equal(together.randint(10, [2])[1], apart.randint(10, [1])[0])


def test_a_size_that_is_not_one_per_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="one per seed"):
        SeedStreams("cpu", [1, 2]).randn([3, 5])


def test_a_conditional_network_without_labels_is_refused(golden: Path) -> None:
    with pytest.raises(InputError, match="labels are required"):
        sample(load(golden, "main"), torch.randn(1, 3, 16, 16))


def test_a_conditional_guide_of_an_unconditional_network_is_refused(golden: Path) -> None:
    with pytest.raises(InputError, match="conditional guide"):
        sample(load(golden, "uncond"), torch.randn(1, 3, 16, 16), guide=load(golden, "guide"), guidance=2)


def test_a_weight_without_a_guide_is_refused() -> None:
    with pytest.raises(InputError, match="without a guide"):
        sample(Gaussian(), torch.randn(1, 1, 4, 4), guidance=2)


def test_overflow_is_an_error_that_names_sample_and_step() -> None:
    class Overflowing(Gaussian):
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            denoised = super().__call__(x, sigma)
            denoised[1] = float("inf") if sigma < 1 else denoised[1]
            return denoised

    with pytest.raises(NonFiniteError) as caught:
        sample(Overflowing(), torch.randn(3, 1, 4, 4), num_steps=8)
    assert [index for index, _ in caught.value.failures] == [1]
    assert caught.value.failures[0][1] > 0


def test_an_overflow_of_many_is_told_of_a_few() -> None:
    told = str(NonFiniteError([(index, 7) for index in range(1, 1025)]))
    assert told.startswith("non-finite latents: sample 1 at step 7, sample 2 at step 7")
    assert told.endswith("sample 4 at step 7 and 1020 more")
