"""Watching a training run: sample grids, distances to a reference, TensorBoard. Its random numbers stay untouched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics import distributed
from metrics.evaluation import Evaluator, Extractor
from metrics.files import InputError, atomic_write
from repro import training
from repro.data import ImageDataset
from repro.encoders import StabilityVAEEncoder
from repro.sampling.shards import Configuration, image_grid, load_pair, sample_images
from repro.study import Sampler
from repro.training import TrainingConfig

EVALUATION = "evaluation.jsonl"
SAMPLER = Sampler(batch_size=32)


@dataclass(frozen=True)
class Watch:
    """What is made besides the snapshots of a run."""

    folder: Path
    """Of the run."""
    grid: int = 0
    """Seeds in the sample grid of every snapshot; 0: none."""
    board: bool = False
    """Write TensorBoard's event files."""
    reference: str | None = None
    """What distances are measured to, as `metrics evaluate --ref` takes it; None: nothing is measured."""
    num_images: int = 5000
    """Samples of each evaluation: seeds 0 to num_images - 1."""
    every_nimg: int = 64 << 20
    """Distance of evaluations in training images; those at which a snapshot is written count."""
    detectors: Sequence[str] = ("inception",)


def train(config: TrainingConfig, source: Path, vae: str, expected: tuple[int, int], watch: Watch) -> None:
    """Train on an archive, watched. `vae` decodes latents; `expected` is the data's resolution and channels that the
    recipe was made for, a difference is said.

    Raises:
        InputError: see `repro.training.train`, `repro.data.ImageDataset` and `metrics.evaluate.Evaluator`.
    """
    dataset = open_dataset(source, vae)
    found = (dataset.img_resolution, dataset.img_channels)
    if found != expected:
        distributed.print0(
            f"{source}: {found[0]} x {found[0]}, {found[1]} channels; the recipe is for {expected[0]} x {expected[0]}, "
            f"{expected[1]} channels"
        )
    device = distributed.device()
    evaluation = None if watch.reference is None else Evaluation(watch, device)
    writer = tensorboard(watch.folder) if watch.board and distributed.rank() == 0 else None

    def on_log(line: dict[str, Any]) -> None:
        _add_scalars(writer, line)

    def on_snapshot(nimg: int, files: dict[float, Path]) -> None:
        network = files[max(files)]
        if watch.grid and distributed.rank() == 0:
            sample_grid(network, watch.folder / f"samples-{nimg // 1000:07d}.png", range(watch.grid), device)
        for line in [] if evaluation is None else evaluation(nimg, network):
            _add_scalars(writer, {"nimg": nimg, f"{line['metric']}": line["value"]})

    training.train(config, dataset, watch.folder, device, on_snapshot, on_log)
    if writer is not None:
        writer.close()


def open_dataset(source: Path, vae: str) -> ImageDataset:
    """An archive of pixels, or of latents of the VAE, as what is in it tells."""
    dataset = ImageDataset(source)
    return dataset if dataset.dtype == np.uint8 else ImageDataset(source, StabilityVAEEncoder(vae))


def sample_grid(network: Path, target: Path, seeds: Sequence[int], device: torch.device) -> None:
    """Images of `seeds` from a network file, side by side, as a PNG."""
    pair = load_pair(Configuration(str(network), sampler=SAMPLER), device)
    images = [image for _, batch, _ in sample_images(pair, seeds) for image in batch]
    with atomic_write(target) as temporary:
        image_grid(images, columns=math.ceil(len(images) ** 0.5)).save(temporary, format="png")


class Evaluation:
    """Distances of fresh samples to a reference while a network trains; a line each in `evaluation.jsonl`."""

    def __init__(self, watch: Watch, device: torch.device) -> None:
        if watch.num_images < 2:
            raise InputError(f"{watch.num_images} images to evaluate, expected 2 or more")
        self.watch, self.device = watch, device
        self.extractor = Extractor(watch.detectors, device=str(device))
        self.reference = self.extractor.reference(str(watch.reference))

    def __call__(self, nimg: int, network: Path) -> list[dict[str, Any]]:
        """Evaluate a snapshot where it is due, under torchrun in shares; the lines, in the first process only."""
        if nimg % self.watch.every_nimg:
            return []
        pair = load_pair(Configuration(str(network), sampler=SAMPLER), self.device)
        evaluator = Evaluator(self.reference, self.extractor)
        size = SAMPLER.batch_size
        batches = [range(i, min(i + size, self.watch.num_images)) for i in range(0, self.watch.num_images, size)]
        for batch in batches[distributed.rank() :: distributed.world_size()]:
            for _, images, _ in sample_images(pair, batch):
                evaluator.add(torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
        facts = {"nimg": nimg, "network": network.name, "num_images": self.watch.num_images}
        lines = [facts | {"metric": m.metric, "detector": m.detector, "value": m.value} for m in evaluator.result()]
        if distributed.rank() == 0:
            path = self.watch.folder / EVALUATION
            training.truncate_log(path, nimg - 1)  # what a run that was interrupted had found here already
            for line in lines:
                training.append_line(path, line)
        return lines


def tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard's event files in `folder`; raises InputError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise InputError("TensorBoard is not installed: pip install 'autoguidance-repro[train]'") from err
    return SummaryWriter(str(folder))


def _add_scalars(writer: Any, line: dict[str, Any]) -> None:
    for name, value in line.items():
        if writer is not None and name != "nimg" and value is not None:
            writer.add_scalar(name, value, line["nimg"])
