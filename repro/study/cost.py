"""What a study will take: GPU time from counted arithmetic, downloads, and disk, before anything is spent."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from repro.guidance import Guided
from repro.networks import Precond
from repro.snapshots import parse_name
from repro.strict import facts
from repro.study.schema import Study, parse_seeds
from repro.training.config import NetworkSettings, TrainingConfig
from repro.training.recipes import LABELS, RECIPES, Recipe

COLUMNS = ["stage", "images", "network_gflops", "tflops_per_image", "gpu_hours", "download_gb", "disk_gb", "basis"]
VAE_GFLOPS = 1260.9  # decoding a 512 x 512 image
NORMALIZE = 3  # operations per weight of the published per-evaluation weight normalisation: square, divide, scale
BYTES = {512: 420_000, 64: 9_000}  # of a PNG, typical
FEATURE_BYTES = 4 * (2048 + 1024)  # of an image's features, Inception's and DINOv2's
# Published throughput in images/s of one A100 (EDM2 table 6): Tflops per image, guided, images/s.
THROUGHPUT = np.array(
    [
        *((4.13, 0, 8.9), (7.70, 0, 6.4), (12.65, 0, 4.8), (19.04, 0, 3.7), (26.83, 0, 2.9), (36.04, 0, 2.3)),
        *((6.99, 1, 6.0), (10.57, 1, 4.7), (15.52, 1, 3.8), (21.91, 1, 3.0), (29.70, 1, 2.5), (38.91, 1, 2.0)),
    ]
)
# Published training throughput (EDM2 table 6, 512 x 512): Gflops per evaluation, images/s of one A100.
TRAINING = np.array([(45.5, 258.3), (102.2, 147.4), (180.8, 100.2), (282.2, 66.8), (405.9, 49.9), (552.1, 37.2)])
CHECKPOINT_BYTES = 4 * (1 + 2 + 2)  # per parameter: weights, Adam's moments, two averages


class Count(NamedTuple):
    """Parameters of a network, and Gflops per evaluation of one image: a multiplication with addition counts once."""

    parameters: int
    gflops: float


@cache
def count(network: NetworkSettings, data_shape: tuple[int, int], conditional: bool) -> Count:
    """The same of an architecture on data of a resolution and channels, without allocating it.

    As published, with the weight normalisation that the authors' networks repeat in every evaluation; ours fold it.
    """
    resolution, channels = data_shape
    with torch.device("meta"):
        model = Precond(resolution, channels, LABELS if conditional else 0, **facts(network))
        x, labels = torch.empty(1, channels, resolution, resolution), torch.empty(1, LABELS) if conditional else None
        gflops = counted_gflops(model, x, torch.empty(1), labels)
    parameters = sum(p.numel() for p in model.parameters())
    return Count(parameters, gflops + NORMALIZE * parameters / 1e9)


def count_published(recipe: Recipe) -> Count:
    """The same of a published architecture."""
    return count(recipe.network, recipe.data_shape, recipe.conditional)


def counted_gflops(network: torch.nn.Module, *arguments: torch.Tensor | None) -> float:
    """Multiply-additions of all convolutions and matrix products in one call, in units of 1e9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*arguments)
    return counter.get_total_flops() / 2 / 1e9


def training(config: TrainingConfig, recipe: Recipe) -> dict[str, float]:
    """What a training run takes on the recipe's data: size of the network, arithmetic (a step counts as three
    evaluations), A100-days, disk.

    Days rest on the published rates of arithmetic, interpolated between the networks and constant below the smallest.
    """
    settings, nimg = config.settings, config.pace.total_nimg
    counted = count(settings.network, recipe.data_shape, settings.conditional)
    gflops, speed = TRAINING.T
    rate = float(np.interp(counted.gflops, gflops, gflops * speed))
    return {
        "Mparameters": counted.parameters / 1e6,
        "Gflops per evaluation": counted.gflops,
        "Mimages": nimg / 1e6,
        "zettaflops": 3 * counted.gflops * nimg / 1e12,
        "A100-days": nimg * counted.gflops / rate / 86400,
        "GB of snapshots": -(-nimg // settings.snapshot_nimg) * len(settings.ema_stds) * counted.parameters * 2 / 1e9,
        "GB of the checkpoint": counted.parameters * CHECKPOINT_BYTES / 1e9,
    }


def describe(config: TrainingConfig, recipe: Recipe) -> str:
    """The full configuration of a training run and what it costs on the recipe's data, as lines of text."""
    lines = [f"{key:26} {value}" for key, value in (config.settings.dotted() | asdict(config.pace)).items()]
    return "\n".join([*lines, "", *(f"{key:26} {value:,.4g}" for key, value in training(config, recipe).items())])


def tflops_per_image(main: Recipe, guide: Recipe | None = None, steps: int = 32, guided_steps: float = np.inf) -> float:
    """Arithmetic of one image, VAE included, in Tflops; the guide is evaluated in `guided_steps` of the steps only."""
    evaluations = 2 * steps - 1  # the last Heun step has no second evaluation
    guiding = 0 if guide is None else min(2 * guided_steps, evaluations) * count_published(guide).gflops
    return (evaluations * count_published(main).gflops + guiding + VAE_GFLOPS * (main.resolution == 512)) / 1e3


def seconds_per_image(tflops: float, guided: bool) -> float:
    """Estimate for one A100, a + b Tflops + c guided, within 3% of every published throughput."""
    known, known_guided, rate = THROUGHPUT.T
    terms = np.stack([np.ones_like(known), known, known_guided], axis=1) * rate[:, None]  # relative least squares
    a, b, c = np.linalg.lstsq(terms, np.ones_like(rate), rcond=None)[0]
    return float(a + b * tflops + c * guided)


def cost(study: Study, speed: float = 1.0) -> pd.DataFrame:
    """One row per costly stage of `study`, and their sum; columns `COLUMNS`, empty for what is not known.

    Published networks are recognised by name. `speed` is that of one of your GPUs relative to an A100: a measured
    throughput divided by the estimate.
    """
    table = pd.DataFrame(_stages(study, speed), columns=COLUMNS)
    total = {name: table[name].sum() for name in ("images", "gpu_hours", "download_gb", "disk_gb")}
    return pd.concat([table, pd.DataFrame([{"stage": "total", **total}])], ignore_index=True)


def _stages(study: Study, speed: float) -> Iterator[dict[str, object]]:
    for key, item in study.networks.items():
        size = sum(_gigabytes(published(name)) for name in item.files())
        yield {"stage": f"networks@{key}", "download_gb": size, "disk_gb": size, "basis": f"{len(item.files())} files"}
    for key, wanted in study.reconstruct.items():
        size, lengths = _gigabytes(_behind(study, key)), len(wanted.ema_stds)
        yield {"stage": f"reconstruct@{key}", "disk_gb": size * lengths, "basis": f"{lengths} EMA lengths"}
    for key, sampled in study.generate.items():
        number, main = len(sampled.all_seeds()), _behind(study, sampled.guided.main)
        size = FEATURE_BYTES + (BYTES[main.resolution] if main is not None and study.shards.keep_images else 0)
        row = {"stage": f"generate@{key}", "disk_gb": number * size / 1e9}
        yield row | _sampling(study, sampled.guided.active, number, speed)
    for key, tuned in study.tuned.items():
        number = len(tuned.all_seeds()) + (
            study.tuning.trials * len(parse_seeds(study.tuning.seeds)) if study.tuning else 0
        )
        yield {"stage": f"tune@{key}"} | _sampling(study, tuned.at([1.0] * len(tuned.over)), number, speed)
    for key, sweep in study.sweeps.items():
        number = sum(len(parse_seeds(block)) for block in sweep.seeds) * len(sweep.values)
        yield {"stage": f"sweep@{key}"} | _sampling(study, sweep.at(max(sweep.values)).active, number, speed)


def _sampling(study: Study, guided: Guided, images: int, speed: float) -> dict[str, object]:
    main = _behind(study, guided.main)
    guide = None if guided.guide is None else _behind(study, guided.guide)
    if main is None or (guided.guide is not None and guide is None):
        return {"images": images, "basis": "networks without published size"}
    steps = np.inf if guided.interval is None else guided.interval[1] - guided.interval[0] + 1
    tflops = tflops_per_image(main, guide, study.sampler.num_steps, steps)
    return {
        "images": images,
        "network_gflops": sum(count_published(recipe).gflops for recipe in (main, guide) if recipe),
        "tflops_per_image": tflops,
        "gpu_hours": images * seconds_per_image(tflops, guide is not None) / 3600 / speed,
        "basis": "counted arithmetic, published A100 throughput" + ("" if speed == 1 else f" x {speed:g}"),
    }


def published(file: str) -> Recipe | None:
    """The recipe behind a published network file: `.../edm2-img512-xs-uncond-2147483-0.130.pkl`; None for others."""
    name = parse_name(Path(file).name)
    run = name.run.removesuffix("-uncond") if name else ""
    return replace(RECIPES[run], conditional=run == name.run) if name and run in RECIPES else None


def _behind(study: Study, network: str) -> Recipe | None:
    """The published recipe of a network `SET/FILE` of a study, whose set may be post-hoc EMA of another."""
    key = network.split("/")[0]
    key = study.reconstruct[key].source if key in study.reconstruct else key
    return published(study.networks[key].files()[0]) if key in study.networks else None


def _gigabytes(recipe: Recipe | None) -> float:
    return 0.0 if recipe is None else count_published(recipe).parameters * 2 / 1e9
