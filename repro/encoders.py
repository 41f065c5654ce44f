"""Pixels <-> latents: plain RGB, and the Stability VAE of the ImageNet-512 networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.files import InputError, downloads

VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def vae_folder(name: str) -> Path:
    """Where the files of a VAE are: `name` itself if it is a folder, else its place in the cache of downloads."""
    return Path(name) if Path(name).is_dir() else downloads.cache_root() / "vae" / name.replace("/", "--")


class RGBEncoder:
    """Pixels scaled to [-1, 1]; there is no latent space."""

    kind = "rgb"

    def encode_latents(self, raw: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 in [-1, 1]."""
        return raw.to(torch.float32) / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """float [N, C, H, W] -> uint8, truncated, not rounded, as published."""
        return (latents.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)

    def config(self) -> dict[str, Any]:
        """Construction arguments, with `kind`."""
        return {"kind": self.kind}


class StabilityVAEEncoder:
    """Latents of the Stability VAE, standardised to mean `final_mean` and deviation `final_std` per channel.

    The networks were trained on latents of pixels / 255 in [0, 1], although the VAE expects [-1, 1], and its
    output is likewise read as [0, 1]. The VAE runs in float32 with TF32 off.

    Args:
        vae_name: Hugging Face name or local folder of a diffusers `AutoencoderKL`; taken from the cache of downloads
            where `repro fetch` put it there, else fetched by diffusers.
        raw_mean, raw_std: per-channel moments of the raw latents.
        final_mean, final_std: moments of the standardised latents.
        batch_size: images per call of the VAE.
    """

    kind = "vae"

    def __init__(
        self,
        vae_name: str = "stabilityai/sd-vae-ft-mse",
        raw_mean: Sequence[float] = (5.81, 3.25, 0.12, -2.15),
        raw_std: Sequence[float] = (4.17, 4.62, 3.71, 3.28),
        final_mean: float = 0.0,
        final_std: float = 0.5,
        batch_size: int = 4,
    ) -> None:
        self.vae_name = vae_name
        self.raw_mean = tuple(float(v) for v in raw_mean)
        self.raw_std = tuple(float(v) for v in raw_std)
        self.final_mean = float(final_mean)
        self.final_std = float(final_std)
        self.batch_size = int(batch_size)
        self.scale = torch.tensor([self.final_std / s for s in self.raw_std])
        self.bias = self.final_mean - torch.tensor(self.raw_mean) * self.scale
        self._vae: Any = None

    def config(self) -> dict[str, Any]:
        """Construction arguments, with `kind`."""
        names = ("vae_name", "raw_mean", "raw_std", "final_mean", "final_std", "batch_size")
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 8, H/8, W/8]: mean and deviation of the posterior, to be stored."""
        vae = self._load(pixels.device)
        parts = []
        for batch in pixels.split(self.batch_size):
            posterior = vae.encode(batch.to(torch.float32) / 255)["latent_dist"]
            parts.append(torch.cat([posterior.mean, posterior.std], dim=1))
        return torch.cat(parts)

    def encode_latents(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored mean and deviation, float32 [N, 8, h, w] -> one standardised draw, float32 [N, 4, h, w].

        `noise` is the unit normal noise of the draw, [N, 4, h, w]; None takes it from the global generator.
        """
        mean, std = raw.to(torch.float32).chunk(2, dim=1)
        noise = torch.randn_like(mean) if noise is None else noise
        scale, bias = self._affine(raw.device)
        return (mean + std * noise) * scale + bias

    def decode(self, latents: Tensor) -> Tensor:
        """float [N, 4, h, w] -> uint8 [N, 3, 8h, 8w], clamped and truncated."""
        vae = self._load(latents.device)
        scale, bias = self._affine(latents.device)
        raw = (latents.to(torch.float32) - bias) / scale
        parts = [vae.decode(batch)["sample"] for batch in raw.split(self.batch_size)]
        return (torch.cat(parts).clamp(0, 1) * 255).to(torch.uint8)

    def _affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.scale.reshape(1, -1, 1, 1).to(device), self.bias.reshape(1, -1, 1, 1).to(device)

    def _load(self, device: torch.device) -> Any:
        if self._vae is None:
            try:
                from diffusers import AutoencoderKL
            except ImportError as err:
                raise InputError("the Stability VAE needs diffusers: pip install 'autoguidance-repro[vae]'") from err
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
            folder = vae_folder(self.vae_name)
            place = str(folder) if folder.is_dir() else self.vae_name
            try:
                vae = AutoencoderKL.from_pretrained(place, use_safetensors=True, low_cpu_mem_usage=False)
            except OSError as err:
                raise InputError(f"cannot load the VAE '{self.vae_name}': {str(err).splitlines()[0]}") from err
            self._vae = vae.eval().requires_grad_(False)
        return self._vae.to(device)


Encoder = RGBEncoder | StabilityVAEEncoder


def build(config: dict[str, Any]) -> Encoder:
    """An encoder from its `config()`; an unknown kind or argument is a ValueError naming it."""
    arguments = {key: value for key, value in config.items() if key != "kind"}
    kind = config.get("kind")
    if kind == "rgb" and not arguments:
        return RGBEncoder()
    if kind == "vae":
        try:
            return StabilityVAEEncoder(**arguments)
        except TypeError as err:
            raise ValueError(f"encoder 'vae': {err}") from err
    raise ValueError(f"unknown encoder {config}; expected kind 'rgb' or 'vae'")
