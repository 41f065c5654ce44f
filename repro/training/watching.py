"""Watching a training run: sample grids, distances to a reference, TensorBoard. Its random numbers stay untouched."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metrics import distributed
from metrics.evaluation import Extractor
from metrics.evaluator import Evaluator
from metrics.files import explained
from repro.data import ImageDataset
from repro.encoders import StabilityVAEEncoder
from repro.guidance import Guided
from repro.pixels import write_grid
from repro.sampling.batches import sample_images
from repro.sampling.pairs import Configuration, Solver, load_pair
from repro.strict import positive, within
from repro.training.config import MI, TrainingConfig
from repro.training.loop import Line, append_lines, train, truncate_log

SOLVER = Solver(batch_size=32)


@dataclass(frozen=True)
class Watch:
    """What is made besides the snapshots of a run."""

    #: Seeds in the sample grid of every snapshot; 0: none.
    grid: int = 0
    #: Write TensorBoard's event files.
    board: bool = False
    #: What distances are measured to, as `metrics evaluate --ref` takes it; None: nothing is measured.
    reference: str | None = None
    #: Samples of each evaluation: seeds 0 to num_images - 1.
    num_images: int = 5000
    #: Distance of evaluations in training images: at the first snapshot from each multiple on, and at the last one.
    every_nimg: int = 64 * MI
    detectors: tuple[str, ...] = ("inception",)

    def __post_init__(self) -> None:
        within(self, 0, math.inf, "grid")
        within(self, 2, math.inf, "num_images")
        positive(self, "every_nimg")


def train_watched(
    config: TrainingConfig, source: Path, vae: str, folder: Path, expected: tuple[int, int], watch: Watch
) -> None:
    """Train on an archive of pixels or latents, watched.

    `vae` decodes latents; `expected` is the data's resolution and channels that the recipe was made for, a difference
    is said. Raises InputError as `train`, `repro.data.ImageDataset` and `metrics.Evaluator` do.
    """
    dataset = ImageDataset(source)
    if dataset.dtype != "uint8":
        dataset = ImageDataset(source, StabilityVAEEncoder(vae))
    shape = dataset.img_resolution, dataset.img_channels
    if shape != expected:
        found, wanted = (f"{side} x {side}, {channels} channels" for side, channels in (shape, expected))
        distributed.print0(f"{source}: {found}; the recipe is for {wanted}")
    device = distributed.device()
    evaluation = None if watch.reference is None else Evaluation(watch, folder, device, config)
    writer = tensorboard(folder) if watch.board and distributed.rank() == 0 else None

    def show(line: Line) -> None:
        for name, value in line.items():
            if writer is not None and name != "nimg" and value is not None:
                writer.add_scalar(name, value, line["nimg"])

    def on_snapshot(nimg: int, files: dict[float, Path]) -> None:
        network = files[max(files)]
        if watch.grid and distributed.rank() == 0:
            images = [
                x for batch in samples(network, range(watch.grid), device) for x in batch.permute(0, 2, 3, 1).numpy()
            ]
            write_grid(folder / f"samples-{nimg // 1000:07d}.png", images, columns=math.ceil(len(images) ** 0.5))
        for line in [] if evaluation is None else evaluation(nimg, network):
            show({"nimg": nimg, line["metric"]: line["value"]})

    train(config, dataset, folder, device, on_snapshot, show)
    if writer is not None:
        writer.close()


def samples(network: Path, seeds: Iterable[int], device: torch.device) -> Iterator[torch.Tensor]:
    """Images of `seeds` from a network file, uint8 [n, C, H, W], batch by batch."""
    pair = load_pair(Configuration(Guided(str(network)), SOLVER), device)
    return (torch.from_numpy(images).permute(0, 3, 1, 2) for _, images, _ in sample_images(pair, list(seeds)))


class Evaluation:
    """Distances of fresh samples to a reference while a network trains; a line each in `evaluation.jsonl`."""

    def __init__(self, watch: Watch, folder: Path, device: torch.device, config: TrainingConfig) -> None:
        self.watch, self.path, self.device, self.config = watch, folder / "evaluation.jsonl", device, config
        self.extractor = Extractor(watch.detectors, device=str(device))
        self.reference = self.extractor.reference(str(watch.reference))

    def __call__(self, nimg: int, network: Path) -> list[Line]:
        """Evaluate a snapshot where it is due, under torchrun in shares; the lines, in the first process only."""
        every, before = self.watch.every_nimg, max(nimg - self.config.settings.snapshot_nimg, 0)
        if nimg // every == before // every and nimg < self.config.pace.total_nimg:
            return []
        evaluator = Evaluator(self.reference, extractor=self.extractor)
        rank, world, count = distributed.rank(), distributed.world_size(), self.watch.num_images
        mine = [seed for seed in range(count) if seed // SOLVER.batch_size % world == rank]  # whole batches
        for images in samples(network, mine, self.device):
            evaluator.update(images.expand(-1, 3, -1, -1))
        facts = {"nimg": nimg, "network": network.name, "num_images": count}
        lines = [facts | {"metric": m.metric, "detector": m.detector, "value": m.value} for m in evaluator.result()]
        if rank == 0:
            truncate_log(self.path, nimg - 1)  # what a run that was interrupted had found here already
            append_lines(self.path, lines)
        return lines


def tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard's event files in `folder`; raises InputError where TensorBoard is not installed."""
    with explained("TensorBoard is not installed", "pip install 'autoguidance-repro[train]'", (ImportError,)):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder))
