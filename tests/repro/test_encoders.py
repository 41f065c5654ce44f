"""Encoders against the golden file and their own rules."""

from pathlib import Path

import numpy as np
import pytest
import torch

from repro.encoders import RGBEncoder, StabilityVAEEncoder, build


def test_rgb_pixels_are_the_golden_ones(golden: Path) -> None:
    data, encoder = np.load(golden / "encoders.npz"), RGBEncoder()
    np.testing.assert_array_equal(encoder.encode_latents(torch.from_numpy(data["rgb_pixels"])), data["rgb_encoded"])
    np.testing.assert_array_equal(encoder.decode(torch.from_numpy(data["rgb_latents"])), data["rgb_decoded"])


def test_vae_latents_without_noise_are_the_golden_ones(golden: Path) -> None:
    data, encoder = np.load(golden / "encoders.npz"), StabilityVAEEncoder()
    np.testing.assert_allclose(encoder.scale, data["vae_scale"], rtol=1e-6)
    np.testing.assert_allclose(encoder.bias, data["vae_bias"], rtol=1e-6)
    mean = torch.from_numpy(data["vae_raw_mean"])
    latents = encoder.encode_latents(torch.cat([mean, torch.ones_like(mean)], dim=1), noise=torch.zeros_like(mean))
    np.testing.assert_allclose(latents, data["vae_latents_without_noise"], rtol=1e-5, atol=1e-6)


def test_every_pixel_value_survives_the_rgb_round_trip_within_one_level() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    back = RGBEncoder().decode(RGBEncoder().encode_latents(pixels))
    assert (back.int() - pixels.int()).abs().max() <= 1


def test_unknown_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown encoder"):
        build({"kind": "jpeg"})
    with pytest.raises(TypeError, match="colour"):
        build({"kind": "vae", "colour": 1})


def test_configuration_rebuilds_the_encoder() -> None:
    encoder = StabilityVAEEncoder(batch_size=2)
    assert build(encoder.config()).config() == encoder.config()
    assert isinstance(build(RGBEncoder().config()), RGBEncoder)


@pytest.mark.parametrize("allowed", [True, False])
def test_vae_decodes_with_tf32_as_asked_and_leaves_it_as_it_was(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class VAE:
        def decode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return {"sample": batch}

    encoder = StabilityVAEEncoder()
    assert encoder.tf32
    encoder.tf32 = allowed
    monkeypatch.setattr(encoder, "_load", lambda device: VAE())
    before = torch.backends.cudnn.allow_tf32
    encoder.decode(torch.zeros(5, 4, 2, 2))
    assert seen == [(allowed, "highest")] * 2
    assert torch.backends.cudnn.allow_tf32 == before
    assert "tf32" not in encoder.config()


def test_vae_halves_its_batch_where_the_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    class VAE:
        def decode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError
            return {"sample": batch}

    encoder = StabilityVAEEncoder()
    monkeypatch.setattr(encoder, "_load", lambda device: VAE())
    latents = torch.randn(6, 4, 2, 2)
    halved, config = encoder.decode(latents), encoder.config()
    assert seen == [4, 2, 2, 2]
    assert capsys.readouterr().err.startswith("the VAE: 4 images at once do not fit")
    whole = StabilityVAEEncoder(batch_size=3)
    monkeypatch.setattr(whole, "_load", lambda device: VAE())
    assert torch.equal(halved, whole.decode(latents))
    assert config == StabilityVAEEncoder().config()  # what it is has not changed
