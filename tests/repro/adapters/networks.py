"""Small diffusers networks of random weights, and folders of pipelines as `save_pretrained` leaves them."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

CLASSES = 10


def transformer(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=CLASSES, norm_num_groups=4,
    )  # fmt: skip
    for parameter in network.parameters():  # its last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def unet(classes: int | None, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8, num_class_embeds=classes,
    ).eval()  # fmt: skip


def vae() -> Any:
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, scaling_factor=0.3,
    ).eval()  # fmt: skip


def saved(folder: Path, network: Any, scheduler: Any, decoder: Any = None) -> Path:
    """The folder of a pipeline."""
    name = "transformer" if decoder is not None else "unet"
    index = {"_class_name": "SomePipeline", name: ["diffusers", type(network).__name__]}
    network.save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    if decoder is not None:
        decoder.save_pretrained(folder / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
