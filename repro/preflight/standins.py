"""Things of the shape of the real ones, made on the spot: speed does not depend on what a network has learned."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metrics.files import explained
from repro.encoders import StabilityVAEEncoder
from repro.networks import Precond

#: Of the Stability VAE, as its published `config.json` has them.
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}


def random_network(arguments: dict[str, Any], seed: int, device: torch.device | str) -> Precond:
    """Random weights; the gains that start at zero are set, or half of the arithmetic would go unnoticed."""
    torch.manual_seed(seed)
    with torch.device(device):
        network = Precond(**arguments).eval().requires_grad_(False)
    for name, p in network.named_parameters():
        if name.endswith("gain"):
            p.data.fill_(0.5)
    return network


def random_vae() -> StabilityVAEEncoder:
    """A VAE of the Stability VAE's shape."""
    with explained("the VAE needs diffusers", "pip install 'autoguidance-repro[vae]'", (ImportError,)):
        from diffusers import AutoencoderKL
    encoder = StabilityVAEEncoder()
    vae: Any = AutoencoderKL(**VAE)
    encoder._vae = vae.eval().requires_grad_(False)
    return encoder


def random_vit(width: int = 1024, depth: int = 24) -> dict[str, Tensor]:
    """A state dict of DINOv2's names for a ViT/14, by default of ViT-L's shape."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1370, width), "norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        for key, out, inside in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes |= {
                f"blocks.{i}.{key}.weight": (out * width, inside * width),
                f"blocks.{i}.{key}.bias": (out * width,),
            }
        for key in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{key}"] = (width,)
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shapes.items()}


def photographs(count: int, side: int = 256, channels: int = 3) -> NDArray[np.uint8]:
    """Smooth random images with some noise, [count, side, side, channels]: they compress about as photographs do."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 16, 16, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic") * 220 + 16
    noisy = smooth + 6 * torch.randn(smooth.shape, generator=generator)
    return noisy.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
