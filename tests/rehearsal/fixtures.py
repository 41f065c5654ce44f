"""What the ImageNet studies fetch, in the published formats and under the published names, but tiny and random."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from repro.encoders import VAE_FILES, VAE_REVISIONS, RGBEncoder, StabilityVAEEncoder
from repro.networks import Precond
from repro.snapshots import Snapshot, parse_name
from repro.study import Study
from tests.rehearsal import pickles
from tests.rehearsal.standin import DIMS, StandIn

VAE = StabilityVAEEncoder().vae_name
HUB = "/hub"
NETWORK = {"num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8, "logvar_channels": 8}
CHANNELS = {
    "xxs": (8, [1]),
    "xs": (8, [1]),
    "s": (16, [1]),
    "m": (8, [1, 2]),
    "xxl": (16, [1, 2]),
}  # model_channels, channel_mult
SIDE, CLASSES = 8, 10
NUM_REAL = 512  # images behind the reference statistics
DRIFT = 0.1  # how far a file's weights lie from those of its training run


def served(studies: Iterable[Study], folder: Path) -> dict[str, bytes]:
    """Path on the server -> content of everything that `studies` fetch; `folder` takes files on the way."""
    studies = list(studies)
    networks = dict.fromkeys(name for study in studies for item in study.networks.values() for name in item.files())
    files = {f"/{name}": network(name) for name in networks}
    for study in studies:
        for data in study.data.values():
            name = data.settings["statistics"]
            files[f"/{name}"] = reference(name)
    return files | (vae(folder) if any("img512" in name for name in networks) else {})


def network(name: str) -> bytes:
    """The file `name`: a training run has its architecture and weights, and its snapshots drift a little."""
    parts = parse_name(Path(name).name)
    assert parts is not None, name
    latent, size = "img512" in parts.run, parts.run.split("-")[2]
    channels, levels = CHANNELS[size]
    torch.manual_seed(zlib.crc32(parts.run.encode()))
    precond = Precond(
        img_resolution=SIDE,
        img_channels=4 if latent else 3,
        label_dim=0 if "uncond" in parts.run else CLASSES,
        model_channels=channels,
        channel_mult=levels,
        **NETWORK,
    )
    with torch.no_grad():
        for key, parameter in precond.named_parameters():
            if key.endswith("_gain"):  # they start at zero, which would leave nothing to see
                parameter.fill_(0.5)
        torch.manual_seed(zlib.crc32(name.encode()))
        for parameter in precond.parameters():
            parameter += DRIFT * torch.randn_like(parameter)
    encoder = StabilityVAEEncoder() if latent else RGBEncoder()
    return pickles.network(Snapshot(precond, encoder, {}))


def reference(name: str) -> bytes:
    """Statistics of noise images under the stand-in detectors, in the places of the real ones."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    images = torch.randint(256, [NUM_REAL, 3, 16, 16], generator=generator, dtype=torch.uint8)
    moments = {}
    for key, detector in zip(("fid", "fd_dinov2"), DIMS, strict=True):
        features = StandIn(detector)(images).numpy().astype(np.float64)
        moments[key] = (features.mean(axis=0), np.cov(features, rowvar=False))
    return pickles.statistics(NUM_REAL, **moments)


def vae(folder: Path) -> dict[str, bytes]:
    """A diffusers autoencoder of the Stability VAE's form, 8 x 8 latents of 4 channels to 64 x 64 pixels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=64,
    )
    with torch.no_grad():  # around mid-grey, so that little is clipped
        model.decoder.conv_out.bias.fill_(0.5)
    model.save_pretrained(folder, safe_serialization=True)
    return {f"{HUB}/{VAE}/resolve/{VAE_REVISIONS[VAE]}/{name}": (folder / name).read_bytes() for name in VAE_FILES}
