"""Pipelines of diffusers as Denoisers: class-conditional DiT, and UNet2D with or without classes.

Of a folder only JSON and safetensors are read, by classes that are named here; no code that it brings runs, and
nothing is fetched.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metrics.files import InputError, explained, nearest
from metrics.memory import Pieces
from metrics.precision import tf32
from repro.adapters.parameterisations import Adapted, VariancePreserving
from repro.encoders import RGBEncoder

#: What the network of a pipeline is called, by its class.
NETWORKS = {"DiTTransformer2DModel": "transformer", "UNet2DModel": "unet"}
PREDICTIONS: dict[str, Literal["epsilon", "v", "x0"]] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
MOST_STEPS = 100_000
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


class DiffusersVAE:
    """Pixels <-> scaled latents of an `AutoencoderKL`, whose pixels are in [-1, 1]; in float32."""

    tf32 = True  # whether its convolutions may use TF32 on CUDA, as those of other VAEs here

    def __init__(self, vae: Any) -> None:
        self.vae = vae.float().eval().requires_grad_(False)
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self._pieces = Pieces("the VAE")

    def encode_latents(self, raw: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> the posterior's mean, scaled, float32 [N, 4, h, w]."""
        vae, pixels = self.vae.to(raw.device), RGBEncoder().encode_latents(raw)
        with tf32(self.tf32):
            mean = self._pieces(lambda batch: vae.encode(batch)["latent_dist"].mean, pixels)
        return (mean - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """float [N, 4, h, w] -> uint8 [N, 3, H, W]."""
        vae = self.vae.to(latents.device)
        with tf32(self.tf32):
            raw = latents.float() / self.scale + self.shift
            decoded = self._pieces(lambda batch: vae.decode(batch)["sample"], raw)
        return RGBEncoder().decode(decoded)

    def config(self) -> dict[str, Any]:
        """What it is, to be compared with a guide's."""
        return {"kind": "diffusers", **{k: v for k, v in self.vae.config.items() if not k.startswith("_")}}


def from_diffusers(
    source: str | Path | Any, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Adapted:
    """A saved pipeline (a folder), or a pipeline in memory, as a Denoiser; see `NETWORKS` for what is taken.

    Noise levels and parameterisation come from the pipeline's scheduler; its clipping and thresholding belong to its
    sampler and are not used. Raises InputError, with the reason, for pipelines that are conditioned on something else
    than classes, and for predictions and files that are not understood.
    """
    with explained("pipelines need diffusers", "pip install 'autoguidance-repro[vae]'", (ImportError,)):
        import diffusers as library

        diffusers: Any = library
    if isinstance(source, str | Path):
        network, vae, scheduler = _read(Path(source), diffusers)
    else:
        if "text_encoder" in getattr(source, "components", {}):
            raise InputError(f"{type(source).__name__} is conditioned on text; expected class labels, or none")
        found = [part for name in NETWORKS.values() if (part := getattr(source, name, None)) is not None]
        if not found or type(found[0]).__name__ not in NETWORKS:
            raise InputError(f"{type(source).__name__} has none of {', '.join(NETWORKS)}")
        network, vae, scheduler = found[0], getattr(source, "vae", None), dict(source.scheduler.config)

    where = source if isinstance(source, str | Path) else type(source).__name__
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise InputError(f"{where}: prediction_type '{prediction}' is unknown{nearest(str(prediction), PREDICTIONS)}")
    if "beta_schedule" not in scheduler and "trained_betas" not in scheduler:
        raise InputError(f"{where}: scheduler {scheduler.get('_class_name')} has no betas; expected one that has")
    betas = {name: scheduler[name] for name in BETAS if scheduler.get(name) is not None}
    steps = betas.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 < steps <= MOST_STEPS:
        raise InputError(f"{where}: the scheduler's num_train_timesteps is {steps!r}, expected 2 to {MOST_STEPS}")
    with explained(f"{where}: the scheduler's betas are not understood"):
        alphas_cumprod = diffusers.DDIMScheduler(**betas).alphas_cumprod

    config = network.config
    if type(config.sample_size) is not int:
        raise InputError(f"{where}: sample_size is {config.sample_size!r}, expected the side of square images")
    facts: dict[str, Any] = {"img_resolution": config.sample_size, "img_channels": int(config.in_channels)}
    if type(network).__name__ == "DiTTransformer2DModel":
        facts |= {"label_dim": int(config.num_embeds_ada_norm), "null_label": int(config.num_embeds_ada_norm)}
        facts["learned_variance"] = config.out_channels == 2 * config.in_channels
    else:
        facts["label_dim"] = int(config.num_class_embeds or 0)
    encoder = RGBEncoder() if vae is None else DiffusersVAE(vae)
    adapted = VariancePreserving(
        Answer(network), alphas_cumprod, PREDICTIONS[prediction], encoder=encoder, dtype=dtype, device=device, **facts
    )
    return adapted


class Answer(torch.nn.Module):
    """A diffusers network called as `Adapted` calls: tensors in, a tensor out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, numbers: Tensor | None = None) -> Tensor:
        labels = {} if numbers is None else {"class_labels": numbers}
        answer: Tensor = self.network(x, timestep=t, return_dict=False, **labels)[0]
        return answer


def _read(folder: Path, diffusers: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Network, VAE (or None) and the scheduler's settings of a saved pipeline."""
    index = _json(folder / "model_index.json")
    if texts := [name for name in index if name.startswith(("text_encoder", "tokenizer"))]:
        raise InputError(f"{folder}: the pipeline is conditioned on text ({texts[0]}); expected class labels, or none")
    named = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    found = [(name, kind) for name, kind in named.items() if NETWORKS.get(str(kind)) == name]
    if len(found) != 1:
        kinds = ", ".join(f"{name} {kind}" for name, kind in named.items()) or "nothing"
        raise InputError(f"{folder}: expected a pipeline of {' or '.join(NETWORKS)}, found {kinds}")
    ((name, kind),) = found

    def load(kind: str, part: str) -> Any:
        with explained(f"{folder / part}: cannot load {kind}", errors=(OSError, ValueError, KeyError, RuntimeError)):
            return getattr(diffusers, kind).from_pretrained(
                folder / part, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )

    if named.get("vae") not in (None, "AutoencoderKL"):
        raise InputError(f"{folder}: the VAE is {named['vae']}, expected AutoencoderKL")
    vae = load("AutoencoderKL", "vae") if named.get("vae") else None
    return load(str(kind), name), vae, _json(folder / "scheduler" / "scheduler_config.json")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the folder of a saved diffusers pipeline")
    if path.stat().st_size > 2**20:
        raise InputError(f"{path}: {path.stat().st_size} bytes, expected a small JSON file")
    with explained(f"{path}: not valid JSON", errors=(ValueError, RecursionError)):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a mapping")
    return found
