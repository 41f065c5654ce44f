"""The arithmetic of networks, counted without allocating them, and which networks a study has."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from repro.networks import Precond
from repro.snapshots import parse_name
from repro.strict import facts
from repro.study.schema import Study, Train
from repro.training.config import NetworkSettings
from repro.training.recipes import LABELS, RECIPES, Recipe

NORMALIZE = 3  # operations per weight of the published per-evaluation weight normalisation: square, divide, scale
VAE_SCALE = 8  # pixels along an axis, to one latent


class Count(NamedTuple):
    """Parameters of a network, and Gflops per evaluation of one image: a multiplication with addition counts once."""

    parameters: int
    gflops: float


@dataclass(frozen=True)
class Shape:
    """A network before there is one."""

    #: Its training run.
    name: str
    network: NetworkSettings
    #: Resolution and channels that it sees.
    data_shape: tuple[int, int]
    #: Number of classes; 0: unconditional.
    label_dim: int
    #: Whether it sees latents of the VAE.
    latent: bool = False

    @property
    def side(self) -> int:
        """Pixels along an axis of its images."""
        return self.data_shape[0] * (VAE_SCALE if self.latent else 1)

    @property
    def image_channels(self) -> int:
        """Channels of its images."""
        return 3 if self.latent else self.data_shape[1]

    def arguments(self) -> dict[str, Any]:
        """Arguments of `repro.networks.Precond`."""
        resolution, channels = self.data_shape
        return {"img_resolution": resolution, "img_channels": channels, "label_dim": self.label_dim} | facts(
            self.network
        )

    def count(self, window: int | None = None) -> Count:
        """Size and arithmetic; `window`: of one evaluation of a crop of so many values along an axis."""
        return count(self.network, self.data_shape, self.label_dim, window)


@cache
def count(
    network: NetworkSettings, data_shape: tuple[int, int], label_dim: int = LABELS, window: int | None = None
) -> Count:
    """Size and arithmetic of an architecture on data of a resolution and channels, without allocating it.

    As published, with the weight normalisation that the authors' networks repeat in every evaluation; ours fold it.
    """
    resolution, channels = data_shape
    side = window or resolution
    with torch.device("meta"):
        model = Precond(resolution, channels, label_dim, **facts(network))
        x, labels = torch.empty(1, channels, side, side), torch.empty(1, label_dim) if label_dim else None
        gflops = counted_gflops(model, x, torch.empty(1), labels)
    parameters = sum(p.numel() for p in model.parameters())
    return Count(parameters, gflops + NORMALIZE * parameters / 1e9)


def counted_gflops(network: torch.nn.Module, *arguments: torch.Tensor | None) -> float:
    """Multiply-additions of all convolutions and matrix products in one call, in units of 1e9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*arguments)
    return counter.get_total_flops() / 2 / 1e9


def shape_of(recipe: Recipe, name: str = "") -> Shape:
    """The network of a published recipe."""
    classes = LABELS if recipe.conditional else 0
    return Shape(name, recipe.network, recipe.data_shape, classes, latent=recipe.resolution == 512)


def published(file: str) -> Recipe | None:
    """The recipe behind a published network file: `.../edm2-img512-xs-uncond-2147483-0.130.pkl`; None for others."""
    name = parse_name(Path(file).name)
    run = name.run.removesuffix("-uncond") if name else ""
    return replace(RECIPES[run], conditional=run == name.run) if name and run in RECIPES else None


def trained(study: Study, item: Train) -> Shape | None:
    """The network of a training run; None where the shape of its data is not known before they are there."""
    data = study.datasets[item.data].made.data_shape()
    if data is None:
        return None
    (resolution, channels, classes), settings = data, item.config.settings
    return Shape(settings.name, settings.network, (resolution, channels), classes if settings.conditional else 0)


def behind(study: Study, network: str) -> Shape | None:
    """What is known of a network `SET/FILE` of a study, whose set may be post-hoc EMA of another."""
    key = network.split("/")[0]
    key = study.reconstruct[key].source if key in study.reconstruct else key
    if key in study.train:
        return trained(study, study.train[key])
    file = study.networks[key].files()[0] if key in study.networks else ""
    recipe, name = published(file), parse_name(Path(file).name)
    return shape_of(recipe, name.run.removeprefix("edm2-")) if recipe and name else None
