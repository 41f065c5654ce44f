"""Pipelines of diffusers, randomly initialised and saved to disk, against diffusers' own arithmetic."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics.files import InputError
from repro.adapters import from_diffusers, null_class
from repro.guidance import guided
from repro.sampler import draw_inputs, sample

diffusers = pytest.importorskip("diffusers")
from tests.repro.adapters.networks import CLASSES, saved, transformer, unet, vae  # noqa: E402


@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_d_is_what_its_own_scheduler_takes_for_the_clean_image(
    tmp_path: Path, kind: str, prediction: str, betas: str
) -> None:
    options = {"clip_sample": False} if kind == "DDIMScheduler" else {}
    scheduler = getattr(diffusers, kind)(beta_schedule=betas, prediction_type=prediction, **options)
    network = unet(CLASSES)
    denoiser = from_diffusers(saved(tmp_path, network, scheduler))
    scheduler.set_timesteps(4)  # whole ones: 999, 666, 333, 0 of Euler, too
    noise, labels = torch.randn(2, 3, 8, 8), torch.eye(CLASSES)[[3, 7]]
    for i, t in enumerate(scheduler.timesteps):
        if kind == "DDIMScheduler":
            ratio = (1 - scheduler.alphas_cumprod[t]) / scheduler.alphas_cumprod[t]
            sigma = float(ratio.double().sqrt())
            x_t = noise * sigma / (1 + sigma**2) ** 0.5
            given = x_t
        else:
            sigma = float(scheduler.sigmas[i])
            given = noise * sigma
            x_t = scheduler.scale_model_input(given, t)
        with torch.no_grad():
            answer = network(x_t, t, class_labels=labels.argmax(1)).sample
            wanted = scheduler.step(answer, t, given).pred_original_sample
            found = denoiser(noise * sigma, sigma, labels)
        assert (found - wanted).abs().max() <= 1e-5 * max(1, sigma, float(wanted.abs().max()))


def test_a_dit_with_its_vae_samples_as_with_diffusers_parts_alone(tmp_path: Path) -> None:
    """Heun's method written with diffusers' own network, schedule and decoder; classifier-free guidance included."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    network, decoder = transformer(), vae()
    denoiser = from_diffusers(saved(tmp_path, network, scheduler, decoder))
    assert (denoiser.label_dim, denoiser.img_resolution, denoiser.img_channels) == (CLASSES, 8, 4)
    noise, labels = draw_inputs(denoiser, range(3))
    assert labels is not None
    steps, w = 6, 1.7
    with torch.no_grad():
        found = sample(denoiser, noise, labels, guide=null_class(denoiser), guidance=w, num_steps=steps)
    images = denoiser.encoder.decode(found).numpy().astype(int)

    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt().log().numpy()
    ends = np.exp(table[[-1, 0]]) ** (1 / 7)
    levels = [*((ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** 7 for i in range(steps)), 0.0]

    def clean(x: torch.Tensor, sigma: float) -> torch.Tensor:
        t = torch.full([len(x)], float(np.interp(np.log(sigma), table, np.arange(len(table)))))
        a = (1 + sigma**2) ** -0.5
        noises = []
        for numbers in (labels.argmax(1), torch.full([len(x)], CLASSES)):
            noises.append(network(a * x, timestep=t, class_labels=numbers).sample[:, :4])
        return x - sigma * (noises[1] + w * (noises[0] - noises[1]))  # diffusers' own guidance

    x = noise * levels[0]
    with torch.no_grad():
        for i in range(steps):
            d = (x - clean(x, levels[i])) / levels[i]
            euler = x + (levels[i + 1] - levels[i]) * d
            if levels[i + 1]:
                d = (d + (euler - clean(euler, levels[i + 1])) / levels[i + 1]) / 2
            x = x + (levels[i + 1] - levels[i]) * d
        pixels = decoder.decode(x / decoder.config.scaling_factor).sample
    wanted = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(int)
    assert wanted.std() > 1
    assert np.abs(images - wanted).max() <= 1


def test_null_class_is_diffusers_own_guidance(tmp_path: Path) -> None:
    network = transformer()
    denoiser = from_diffusers(saved(tmp_path, network, diffusers.DDIMScheduler(clip_sample=False), vae()))
    x, labels, w = torch.randn(2, 4, 8, 8), torch.eye(CLASSES)[[1, 2]], 4.0
    with torch.no_grad():
        found = guided(denoiser, labels, [null_class(denoiser)])(x, torch.tensor(2.0), [w])
        t, a = denoiser.time(torch.tensor([2.0, 2.0])), 5**-0.5  # type: ignore[attr-defined]
        cond, uncond = (
            network(a * x, timestep=t, class_labels=numbers).sample[:, :4]
            for numbers in (torch.tensor([1, 2]), torch.tensor([CLASSES, CLASSES]))
        )
    torch.testing.assert_close(found, x - 2.0 * (uncond + w * (cond - uncond)), rtol=1e-5, atol=1e-5)


def test_an_unconditional_unet_in_memory_and_on_disk(tmp_path: Path) -> None:
    network, scheduler = unet(None), diffusers.DDPMScheduler(clip_sample=True, thresholding=True)
    pipeline = diffusers.DDPMPipeline(network, scheduler)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        found = [from_diffusers(source)(x, 0.5) for source in (pipeline, saved(tmp_path, network, scheduler))]
    torch.testing.assert_close(*found)  # of equal weights that lie elsewhere in memory
    assert from_diffusers(pipeline).label_dim == 0
    with pytest.raises(InputError, match="no null label"):
        null_class(from_diffusers(saved(tmp_path / "classes", unet(CLASSES), scheduler)))


def test_no_signal_at_the_end_is_left_out(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    denoiser = from_diffusers(saved(tmp_path, unet(None), scheduler))
    assert float(scheduler.alphas_cumprod[-1]) < 1e-10
    assert denoiser(torch.randn(1, 3, 8, 8), denoiser.sigma_max).isfinite().all()


def edited(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | change).items() if v != "absent"}))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "conditioned on text"),
        ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]}, "expected a pipeline of"),
        ("model_index.json", {"unet": ["my_code", "Network"]}, "found unet Network"),
        ("model_index.json", {"vae": ["diffusers", "VQModel"]}, "the VAE is VQModel"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilno"}, "did you mean 'epsilon'"),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "absent", "trained_betas": "absent", "_class_name": "FlowMatchEulerDiscreteScheduler"},
            "FlowMatchEulerDiscreteScheduler has no betas",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "steep"}, "betas are not understood"),
        ("unet/config.json", {"sample_size": "absent", "in_channels": 5}, "cannot load UNet2DModel"),
        ("unet/config.json", {"sample_size": None}, "sample_size is None, expected the side"),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10**10, "beta_schedule": "squaredcos_cap_v2"},
            "num_train_timesteps is 10000000000, expected 2 to 100000",
        ),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": -1}, "num_train_timesteps is -1, expected"),
    ],
)
def test_pipelines_that_are_not_understood_are_refused(
    tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = saved(tmp_path, unet(None), diffusers.DDIMScheduler())
    edited(folder / file, change)
    with pytest.raises(InputError, match=message) as caught:
        from_diffusers(folder)
    assert "\n" not in str(caught.value)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index\.json: no such file"):
        from_diffusers(tmp_path)
    folder = saved(tmp_path / "pickled", unet(None), diffusers.DDIMScheduler())
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="cannot load UNet2DModel"):
        from_diffusers(folder)
