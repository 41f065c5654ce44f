"""Pixels <-> latents: plain RGB, and the Stability VAE of the ImageNet-512 networks."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from metrics.files import InputError, cache_root, explained, on_one_line
from metrics.memory import Pieces
from metrics.precision import tf32

VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
#: Revisions of the VAEs that may be fetched from Hugging Face; `fetch.lock` has the digests of their files.
VAE_REVISIONS = {"stabilityai/sd-vae-ft-mse": "31f26fdeee1355a5c34592e401dd41e45d25a493"}


def vae_folder(name: str) -> Path:
    """Where the files of a VAE are: `name` itself if it is a folder, else its place in the cache of downloads."""
    return Path(name) if Path(name).is_dir() else cache_root() / "vae" / name.replace("/", "--")


def vae_revision(name: str) -> str:
    """The revision of a VAE; InputError for one that is not known here, since network files name what they like."""
    if name not in VAE_REVISIONS:
        known = " or ".join(VAE_REVISIONS)
        raise InputError(f"the VAE '{on_one_line(name, 80)}' is not fetched, only {known}; name a folder that holds it")
    return VAE_REVISIONS[name]


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


@dataclass(eq=False)
class StabilityVAEEncoder:
    """Latents of the Stability VAE, standardised to mean `final_mean` and deviation `final_std` per channel.

    The networks were trained on latents of pixels / 255 in [0, 1], although the VAE expects [-1, 1], and its
    output is likewise read as [0, 1]. The VAE runs in float32.
    """

    #: Hugging Face name or local folder of a diffusers `AutoencoderKL`; taken from the cache of downloads where
    #: `repro fetch` put it there, else fetched by diffusers.
    vae_name: str = "stabilityai/sd-vae-ft-mse"
    raw_mean: tuple[float, ...] = (5.81, 3.25, 0.12, -2.15)
    #: With `raw_mean`: per-channel moments of the raw latents.
    raw_std: tuple[float, ...] = (4.17, 4.62, 3.71, 3.28)
    final_mean: float = 0.0
    final_std: float = 0.5
    #: Images per call of the VAE, while the GPU's memory holds them.
    batch_size: int = 4
    kind: ClassVar = "vae"
    tf32 = True  # whether the VAE's convolutions may use TF32 on CUDA, as in the published runs

    def __post_init__(self) -> None:
        self.raw_mean, self.raw_std = tuple(map(float, self.raw_mean)), tuple(map(float, self.raw_std))
        self.final_mean, self.final_std = float(self.final_mean), float(self.final_std)
        self.batch_size = int(self.batch_size)
        self.scale = torch.tensor([self.final_std / s for s in self.raw_std])
        self.bias = self.final_mean - torch.tensor(self.raw_mean) * self.scale
        self._vae: Any = None
        self._pieces = Pieces("the VAE", self.batch_size)

    def config(self) -> dict[str, Any]:
        """Construction arguments, with `kind`."""
        return {"kind": self.kind, **asdict(self)}

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 8, H/8, W/8]: mean and deviation of the posterior, to be stored."""
        vae = self._load(pixels.device)

        def encoded(batch: Tensor) -> Tensor:
            posterior = vae.encode(batch.to(torch.float32) / 255)["latent_dist"]
            return torch.cat([posterior.mean, posterior.std], dim=1)

        with tf32(self.tf32):
            return self._pieces(encoded, pixels)

    def encode_latents(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored mean and deviation, float32 [N, 8, h, w] -> one standardised draw, float32 [N, 4, h, w].

        `noise` [N, 4, h, w] is unit normal; None takes it from the global generator.
        """
        mean, std = raw.to(torch.float32).chunk(2, dim=1)
        noise = torch.randn_like(mean) if noise is None else noise
        scale, bias = self._affine(raw.device)
        return (mean + std * noise) * scale + bias

    def decode(self, latents: Tensor) -> Tensor:
        """float [N, 4, h, w] -> uint8 [N, 3, 8h, 8w], clamped and truncated."""
        vae, (scale, bias) = self._load(latents.device), self._affine(latents.device)
        raw = (latents.to(torch.float32) - bias) / scale
        with tf32(self.tf32):
            pixels = self._pieces(lambda batch: vae.decode(batch)["sample"], raw)
        return (pixels.clamp(0, 1) * 255).to(torch.uint8)

    def _affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.scale.reshape(1, -1, 1, 1).to(device), self.bias.reshape(1, -1, 1, 1).to(device)

    def _load(self, device: torch.device) -> Any:
        if self._vae is None:
            with explained("the VAE needs diffusers", "pip install 'autoguidance-repro[vae]'", (ImportError,)):
                from diffusers import AutoencoderKL
            folder = vae_folder(self.vae_name)
            options = {} if folder.is_dir() else {"revision": vae_revision(self.vae_name)}
            place = folder if folder.is_dir() else self.vae_name
            with explained(f"cannot load the VAE '{self.vae_name}'", errors=(OSError,)):
                vae = AutoencoderKL.from_pretrained(place, use_safetensors=True, low_cpu_mem_usage=False, **options)
            self._vae = vae.eval().requires_grad_(False)
        return self._vae.to(device)


Encoder = RGBEncoder | StabilityVAEEncoder


def build(config: dict[str, Any]) -> Encoder:
    """An encoder from its `config()`; an unknown kind is a ValueError, an unknown argument a TypeError naming it."""
    kinds: dict[Any, type[Encoder]] = {kind.kind: kind for kind in (RGBEncoder, StabilityVAEEncoder)}
    if config.get("kind") not in kinds:
        raise ValueError(f"unknown encoder {config}; expected kind {' or '.join(map(repr, kinds))}")
    return kinds[config["kind"]](**{key: value for key, value in config.items() if key != "kind"})
