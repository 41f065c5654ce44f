"""What a study will take: GPU time from counted arithmetic, downloads, and disk, before anything is spent."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from repro.networks import Precond
from repro.snapshots import Name, parse_name
from repro.study import Study, parse_seeds
from repro.training import TrainingConfig

COLUMNS = [
    *("stage", "images", "network_gflops", "tflops_per_image", "gpu_hours"),
    *("download_gb", "disk_gb", "basis"),
]
WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
LATENT = {512: (64, 4), 64: (64, 3)}  # image resolution -> resolution and channels that the network sees
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


@dataclass(frozen=True)
class Run:
    """What the name of a published training run says."""

    resolution: int
    size: str
    conditional: bool

    @classmethod
    def of(cls, name: str) -> "Run | None":
        """`edm2-img512-xs-uncond` -> its parts; None where a name is not of this form."""
        parts = name.split("-")
        if len(parts) < 3 or parts[0] != "edm2" or not parts[1].startswith("img") or parts[2] not in WIDTHS:
            return None
        return cls(int(parts[1][3:]), parts[2], "uncond" not in parts[3:])

    def arguments(self) -> dict[str, Any]:
        """Construction arguments of `repro.networks.Precond`."""
        resolution, channels = LATENT[self.resolution]
        label_dim = 1000 if self.conditional else 0
        return dict(
            img_resolution=resolution, img_channels=channels, label_dim=label_dim, model_channels=WIDTHS[self.size]
        )


@dataclass(frozen=True)
class Count:
    """Size and arithmetic of a network."""

    parameters: int
    gflops: float
    """Per evaluation of one image, a multiplication with addition counted once, as published."""


@cache
def count(run: Run) -> Count:
    """Parameters and Gflops of a published architecture, counted on the meta device: nothing is allocated.

    Published counts include the weight normalisation that the authors' networks repeat in every evaluation; ours
    fold it away.
    """
    return _count(run.arguments())


def _count(arguments: dict[str, Any]) -> Count:
    with torch.device("meta"):
        network = Precond(**arguments)
        x = torch.empty(1, network.img_channels, network.img_resolution, network.img_resolution)
        labels = torch.empty(1, network.label_dim) if network.label_dim else None
        gflops = counted_gflops(network, x, torch.empty(1), labels)
    parameters = sum(p.numel() for p in network.parameters())
    return Count(parameters, gflops + NORMALIZE * parameters / 1e9)


# Published training throughput (EDM2 table 6, 512 x 512): Gflops per evaluation, images/s of one A100.
TRAINING = np.array([(45.5, 258.3), (102.2, 147.4), (180.8, 100.2), (282.2, 66.8), (405.9, 49.9), (552.1, 37.2)])
CHECKPOINT_BYTES = 4 * (1 + 2 + 2)  # per parameter: weights, Adam's moments, two averages


def training(config: TrainingConfig, img_resolution: int, img_channels: int, label_dim: int) -> dict[str, Any]:
    """What a training run takes: size of the network, arithmetic, A100-days, disk.

    A step counts as three evaluations. Days rest on the published throughput, between whose sizes the rate of
    arithmetic is interpolated; smaller networks are assumed to run at the smallest published one's.
    """
    arguments = dict(img_resolution=img_resolution, img_channels=img_channels, **config.network)
    counted = _count(arguments | {"label_dim": label_dim if config.conditional else 0})
    gflops, speed = TRAINING.T
    rate = float(np.interp(counted.gflops, gflops, gflops * speed))
    snapshots = -(-config.total_nimg // config.snapshot_nimg) * len(config.ema_stds)
    return {
        "Mparameters": counted.parameters / 1e6,
        "Gflops per evaluation": counted.gflops,
        "Mimages": config.total_nimg / 1e6,
        "zettaflops": 3 * counted.gflops * config.total_nimg / 1e12,
        "A100-days": config.total_nimg * counted.gflops / rate / 86400,
        "GB of snapshots": snapshots * counted.parameters * 2 / 1e9,
        "GB of the checkpoint": counted.parameters * CHECKPOINT_BYTES / 1e9,
    }


def counted_gflops(network: torch.nn.Module, *arguments: torch.Tensor | None) -> float:
    """Multiply-additions of all convolutions and matrix products in one call, in units of 1e9."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*arguments)
    return counter.get_total_flops() / 2 / 1e9


def tflops_per_image(
    main: Run, guide: Run | None = None, num_steps: int = 32, guided_steps: int | None = None
) -> float:
    """Arithmetic of one image, VAE included, in Tflops; the guide is evaluated in `guided_steps` of the steps only."""
    evaluations = 2 * num_steps - 1  # the last Heun step has no second evaluation
    gflops = evaluations * count(main).gflops
    if guide is not None:
        guided = evaluations if guided_steps is None else min(2 * guided_steps, evaluations)
        gflops += guided * count(guide).gflops
    return (gflops + (VAE_GFLOPS if main.resolution == 512 else 0)) / 1e3


@cache
def _fit() -> tuple[float, float, float]:
    """Seconds per image on an A100 as a + b Tflops + c guided, in relative least squares over THROUGHPUT."""
    tflops, guided, rate = THROUGHPUT.T
    terms = np.stack([np.ones_like(tflops), tflops, guided], axis=1) * rate[:, None]
    a, b, c = np.linalg.lstsq(terms, np.ones_like(rate), rcond=None)[0]
    return float(a), float(b), float(c)


def seconds_per_image(tflops: float, guided: bool) -> float:
    """Estimate for one A100, within 3% of every published throughput."""
    a, b, c = _fit()
    return a + b * tflops + c * guided


def cost(study: Study, speed: float = 1.0) -> pd.DataFrame:
    """One row per costly stage of `study`, and their sum; columns `COLUMNS`.

    Args:
        study: whose published networks are recognised by name; other networks are counted as unknown (empty).
        speed: of one of your GPUs relative to an A100; a measured throughput divided by the estimate.
    """
    rows = [row for part in (_networks(study), _samples(study, speed)) for row in part]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    total = {name: table[name].sum() for name in ("images", "gpu_hours", "download_gb", "disk_gb")}
    return pd.concat([table, pd.DataFrame([{"stage": "total", **total}])], ignore_index=True)


def _networks(study: Study) -> Iterator[dict[str, object]]:
    for key, item in study.networks.items():
        files = [Path(name).stem for name in item.files()]
        runs = [Run.of(name.run) for name in map(parse_name, files) if name is not None]
        size = sum(count(run).parameters for run in runs if run is not None) * 2 / 1e9
        if files:
            basis = f"{len(files)} files"
            yield {"stage": f"networks@{key}", "download_gb": size, "disk_gb": size, "basis": basis}
    for key, wanted in study.reconstruct.items():
        run = _run_of_set(study, wanted.source)
        size = 0.0 if run is None else count(run).parameters * 2 * len(wanted.ema_stds) / 1e9
        yield {"stage": f"reconstruct@{key}", "disk_gb": size, "basis": f"{len(wanted.ema_stds)} EMA lengths"}


def _samples(study: Study, speed: float) -> Iterator[dict[str, object]]:
    for key, item in study.generate.items():
        pair = (item.main, item.guide)
        guided, number = item.guidance != 1, len(item.all_seeds())
        row = _sampling(study, f"generate@{key}", pair, item.interval, guided, number, speed)
        run = _run_of_set(study, item.main.split("/")[0])
        image = BYTES[run.resolution] if run is not None and study.sampler.keep_images else 0
        yield row | {"disk_gb": number * (image + FEATURE_BYTES) / 1e9}
    for key, sweep in study.sweeps.items():
        number = sum(len(parse_seeds(block)) for block in sweep.seeds) * len(sweep.values)
        pair = (f"{sweep.main_set}/", f"{sweep.guide_set}/")
        yield _sampling(study, f"sweep@{key}", pair, sweep.interval, True, number, speed)


def _sampling(
    study: Study,
    stage: str,
    pair: tuple[str, str],
    interval: list[int] | None,
    guided: bool,
    images: int,
    speed: float,
) -> dict[str, object]:
    main, guide = (_run_of_set(study, path.split("/")[0]) for path in pair)
    guide = guide if guided else None
    if main is None or (guided and guide is None):
        return {"stage": stage, "images": images, "basis": "networks without published size"}
    steps = None if interval is None else interval[1] - interval[0] + 1
    tflops = tflops_per_image(main, guide, study.sampler.num_steps, steps)
    return {
        "stage": stage,
        "images": images,
        "network_gflops": count(main).gflops + (0 if guide is None else count(guide).gflops),
        "tflops_per_image": tflops,
        "gpu_hours": images * seconds_per_image(tflops, guided) / 3600 / speed,
        "basis": "counted arithmetic, published A100 throughput" + ("" if speed == 1 else f" x {speed:g}"),
    }


def _run_of_set(study: Study, key: str) -> Run | None:
    """The published run behind a set of networks, post-hoc EMA included."""
    if key in study.reconstruct:
        return _run_of_set(study, study.reconstruct[key].source)
    files = study.networks[key].files()
    name: Name | None = parse_name(Path(files[0]).stem) if files else None
    return None if name is None else Run.of(name.run)
