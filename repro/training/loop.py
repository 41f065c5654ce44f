"""Training EDM2 networks: loss, learning rate, the optimiser step, and the loop with snapshots and checkpoints.

Whatever is drawn for an image (its transformation, noise level, noise) depends on the seed and its position in the
stream alone. Number of processes, gradient accumulation and interruptions therefore change no draw.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from metrics import distributed
from metrics.files import InputError, atomic_write, write_json, write_text
from repro import snapshots
from repro.data import TrainingData, mix
from repro.ema import PowerFunctionEMA
from repro.networks import Precond
from repro.training.signals import Interrupts

CHECKPOINT = "checkpoint.pt"
LOG = "training.jsonl"
PRECISIONS: dict[str, torch.dtype | None] = {"fp16": None, "bf16": torch.bfloat16, "fp32": torch.float32}
"""By name, the U-Net's dtype; None: what the network has for its device."""
Line = dict[str, Any]
"""A line of the log."""


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. Counts are in images (nimg) unless a name says otherwise."""

    name: str
    """Run name, the first part of its snapshots' file names."""
    network: dict[str, Any]
    """Arguments of `Precond` apart from those the data settle: model_channels, channel_mult, num_blocks, ..."""
    total_nimg: int
    """Length of training."""
    batch_size: int = 2048
    """Images per optimiser step, over all processes."""
    conditional: bool = True
    """Whether the network sees the labels."""
    seed: int = 0
    """Settles initial weights, data order, noise and dropout."""
    ref_lr: float = 0.01
    """Peak learning rate alpha_ref."""
    ref_batches: float = 70_000
    """Steps t_ref after which the learning rate decays as 1/sqrt; 0: constant."""
    rampup_Mimg: float = 10
    """Length of the linear ramp-up, in millions of images; 0: none."""
    P_mean: float = -0.4
    """Mean of ln(sigma) in training."""
    P_std: float = 1.0
    """Standard deviation of ln(sigma) in training."""
    ema_stds: tuple[float, ...] = (0.05, 0.10)
    """Lengths (sigma_rel) of the tracked averages."""
    snapshot_nimg: int = 8 << 20
    """Distance of the snapshots of the averages; one is always written at the end."""
    checkpoint_nimg: int = 128 << 20
    """Distance of the checkpoints, from which an interrupted run goes on; one is always written at the end."""
    log_nimg: int = 128 << 10
    """Distance of the lines in the log."""
    device_batch_size: int | None = None
    """Most images that a process takes at once; a larger share is accumulated. None: no limit."""
    precision: str = "fp16"
    """Arithmetic of the U-Net: fp16 as published (on CUDA; float32 elsewhere), bf16, or fp32."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"training run '{self.name}': precision is '{self.precision}', expected {', '.join(PRECISIONS)}"
            )
        for key in ("total_nimg", "snapshot_nimg", "checkpoint_nimg", "log_nimg"):
            value = getattr(self, key)
            if value <= 0 or value % self.batch_size != 0:
                raise InputError(
                    f"training run '{self.name}': {key} is {value}, expected a positive multiple of "
                    f"batch_size ({self.batch_size})"
                )
        if self.snapshot_nimg < min(1000, self.total_nimg):
            raise InputError(
                f"training run '{self.name}': snapshot_nimg is {self.snapshot_nimg}, expected 1000 or more, since "
                f"snapshots are named by thousands of images"
            )


class EDM2Loss:
    """Denoising loss with learned uncertainty (EDM2 eq. 21), per pixel.

    Args:
        P_mean, P_std: mean and standard deviation of ln(sigma).
        sigma_data: expected standard deviation of the data.
    """

    def __init__(self, P_mean: float = -0.4, P_std: float = 1.0, sigma_data: float = 0.5) -> None:
        self.P_mean = P_mean
        self.P_std = P_std
        self.sigma_data = sigma_data

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Loss [N, C, H, W] of latents `images` [N, C, H, W] with one-hot `labels` [N, label_dim].

        `sigma` [N, 1, 1, 1] and unit-variance `noise` [N, C, H, W], in this order, come from the global generator
        when None.
        """
        if sigma is None:
            normal = torch.randn([images.shape[0], 1, 1, 1], device=images.device)
            sigma = (normal * self.P_std + self.P_mean).exp()
        if noise is None:
            noise = torch.randn_like(images)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        denoised, logvar = network(images + noise * sigma, sigma, labels, return_logvar=True)
        return (weight / logvar.exp()) * (denoised - images) ** 2 + logvar


def learning_rate(cur_nimg: int, batch_size: int, ref_lr: float, ref_batches: float, rampup_Mimg: float) -> float:
    """Learning rate of the step that starts at `cur_nimg` images: linear ramp-up, then 1/sqrt decay (EDM2 eq. 67)."""
    lr = ref_lr
    if ref_batches > 0:
        lr /= math.sqrt(max(cur_nimg / (ref_batches * batch_size), 1))
    if rampup_Mimg > 0:
        lr *= min(cur_nimg / (rampup_Mimg * 1e6), 1)
    return lr


class Batch(NamedTuple):
    """Latents [N, C, H, W], one-hot labels [N, label_dim] or None, sigma [N, 1, 1, 1], unit noise like the latents."""

    images: Tensor
    labels: Tensor | None
    sigma: Tensor
    noise: Tensor


class Trainer:
    """A network with its optimiser and averages, and the step that moves all three."""

    def __init__(self, network: Precond, config: TrainingConfig) -> None:
        self.config = config
        self.network = network.train().requires_grad_(True)
        self.loss = EDM2Loss(config.P_mean, config.P_std, network.sigma_data)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.ref_lr, betas=(0.9, 0.99), fused=True)
        self.ema = PowerFunctionEMA(network, config.ema_stds)
        self.cur_nimg = 0
        self._wrapped: nn.Module = network
        if distributed.world_size() > 1:
            self._wrapped = DistributedDataParallel(network, broadcast_buffers=False)

    def step(self, batches: Iterable[Batch]) -> Tensor:
        """One optimiser step on this process's share of the batch, in pieces; returns the summed loss, on the device.

        The loss is summed over pixels and averaged over all images of all processes: its scale matters to Adam's
        epsilon. Gradients that are not finite count as 0.
        """
        c = self.config
        share = c.batch_size // distributed.world_size()
        total = torch.zeros([], device=next(self.network.parameters()).device)
        self.optimizer.zero_grad(set_to_none=True)
        seen = 0
        for batch in batches:
            seen += len(batch.images)
            with self._accumulate(last=seen == share):
                loss = self.loss(self._wrapped, *batch).sum()
                (loss / share).backward()
            total += loss.detach()
        assert seen == share, f"got {seen} of {share} images"

        self.apply_gradients()
        self.ema.update(self.cur_nimg, c.batch_size)
        return total

    def apply_gradients(self) -> None:
        """Move the weights by the gradients at hand; `cur_nimg` then counts their images as seen."""
        c = self.config
        lr = learning_rate(self.cur_nimg, c.batch_size, c.ref_lr, c.ref_batches, c.rampup_Mimg)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for p in self.network.parameters():
            if p.grad is not None:
                torch.nan_to_num(p.grad, nan=0, posinf=0, neginf=0, out=p.grad)
        self.optimizer.step()
        self.cur_nimg += c.batch_size

    def _accumulate(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients in the last piece of a step only."""
        if isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        return contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {
            "nimg": self.cur_nimg,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cur_nimg = state["nimg"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])


def channels_last(network: Precond) -> Precond:
    """Lay out convolution weights with channels innermost, which convolutions run faster on; returns `network`."""
    for p in network.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return network


class _Drawn(NamedTuple):
    raw: Tensor
    labels: Tensor
    sigma: Tensor
    noise: Tensor  # [N, 2, C, H, W]: of the diffusion, and of the encoder


def draw(config: TrainingConfig, dataset: TrainingData, positions: np.ndarray) -> _Drawn:
    """What the images at `positions` of the stream are trained with, on the CPU so that devices agree."""
    raw, labels = dataset.batch(config.seed, positions)
    shape = (2, dataset.img_channels, dataset.img_resolution, dataset.img_resolution)
    size = math.prod(shape)
    normal = torch.empty([len(positions), 1 + size])
    generator = torch.Generator()
    for row, key in zip(normal, mix(config.seed, 1, positions), strict=True):
        row.normal_(generator=generator.manual_seed(int(key)))
    sigma = (normal[:, 0] * config.P_std + config.P_mean).exp().reshape(-1, 1, 1, 1)
    return _Drawn(raw, labels, sigma, normal[:, 1:].reshape(-1, *shape))


def train(
    config: TrainingConfig,
    dataset: TrainingData,
    folder: str | Path,
    device: torch.device | str | None = None,
    on_snapshot: Callable[[int, dict[float, Path]], None] | None = None,
    on_log: Callable[[Line], None] | None = None,
    stop_nimg: int | None = None,
) -> Path:
    """Train, or go on from the folder's checkpoint, and leave snapshots RUN-KIMG-STD.safetensors in `folder`.

    Under torchrun the batch is shared among the processes. A run that was interrupted, at whatever moment, continues
    to the same bits on the same CPU as an undisturbed one. SIGTERM, SIGINT and SIGUSR1 let the step under way end,
    then a checkpoint is written and the process exits with 128 + the signal's number.

    Args:
        config: the run.
        dataset: the images.
        folder: receives snapshots, `training.jsonl`, `checkpoint.pt` and `config.json`.
        device: None: CUDA where there is one, else the CPU.
        on_snapshot: called in every process after snapshots are written, with the image count and the files by
            EMA length; what it draws at random does not touch the training.
        on_log: called in the first process with every line of the log.
        stop_nimg: stop there with a checkpoint, as an interruption would; None: train to the end.

    Returns:
        `folder`.

    Raises:
        InputError: the folder holds another run, or the batch cannot be shared out.
    """
    folder = Path(folder)
    device = distributed.device() if device is None else torch.device(device)
    world, rank = distributed.world_size(), distributed.rank()
    if config.batch_size % world != 0:
        raise InputError(f"batch_size {config.batch_size} cannot be shared among {world} processes")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True

    torch.manual_seed(config.seed)
    network = Precond(
        img_resolution=dataset.img_resolution,
        img_channels=dataset.img_channels,
        label_dim=dataset.label_dim if config.conditional else 0,
        **config.network,
    )
    network.precision = PRECISIONS[config.precision]
    trainer = Trainer(channels_last(network.to(device)), config)
    identity = _identity(config, dataset)
    _resume(trainer, folder, identity, device)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", identity)
        truncate_log(folder / LOG, trainer.cur_nimg)
    end = config.total_nimg if stop_nimg is None else min(stop_nimg, config.total_nimg)

    loss_sum, logged_nimg, started = torch.zeros([], device=device), trainer.cur_nimg, time.perf_counter()
    steps = range(trainer.cur_nimg, end, config.batch_size)
    progress = tqdm(
        total=config.total_nimg,
        initial=trainer.cur_nimg,
        desc=config.name,
        unit="img",
        disable=None if rank == 0 else True,
    )
    with Interrupts() as interrupts:
        for drawn in _prefetch(config, dataset, steps, rank, world):
            torch.manual_seed(int(mix(config.seed, 2, trainer.cur_nimg, rank)))  # dropout only
            loss_sum += trainer.step(_to_device(piece, config, dataset, device) for piece in drawn)
            cur_nimg = trainer.cur_nimg
            progress.update(config.batch_size)
            stopping = interrupts.anywhere()

            if cur_nimg % config.log_nimg == 0 or cur_nimg == end or stopping:
                pixels = (cur_nimg - logged_nimg) * dataset.img_channels * dataset.img_resolution**2
                loss = float(distributed.all_reduce_sum(np.array([loss_sum.item()]))[0]) / pixels
                if rank == 0:
                    seconds = time.perf_counter() - started
                    line = _log_line(config, trainer, loss, (cur_nimg - logged_nimg) / seconds, device)
                    append_line(folder / LOG, line)
                    if on_log is not None:
                        on_log(line)
                loss_sum, logged_nimg, started = torch.zeros_like(loss_sum), cur_nimg, time.perf_counter()
            if cur_nimg % config.snapshot_nimg == 0 or cur_nimg == config.total_nimg:
                files = _snapshot_files(trainer, folder)
                if rank == 0:
                    _save_snapshots(trainer, dataset, files)
                distributed.barrier()
                if on_snapshot is not None:
                    on_snapshot(cur_nimg, files)
                distributed.barrier()
            if cur_nimg % config.checkpoint_nimg == 0 or cur_nimg == end or stopping:
                if rank == 0:
                    with atomic_write(folder / CHECKPOINT) as temporary:
                        torch.save({"identity": identity, **trainer.state_dict()}, temporary)
                distributed.barrier()
            if stopping and cur_nimg < end:
                progress.close()
                interrupts.leave(f"{config.name}: stopped at {cur_nimg:,} images, where the next run goes on")
    progress.close()
    return folder


def _identity(config: TrainingConfig, dataset: TrainingData) -> dict[str, Any]:
    """What two runs must share for one to continue the other, in JSON's types."""
    return json.loads(json.dumps(asdict(config) | {"data": dataset.digest}))


MAY_DIFFER = ("total_nimg", "checkpoint_nimg", "log_nimg", "device_batch_size")


def _resume(trainer: Trainer, folder: Path, identity: dict[str, Any], device: torch.device) -> None:
    path = folder / CHECKPOINT
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as err:
        raise InputError(f"{path}: not a readable checkpoint ({err}); remove it to start this run anew") from err
    for key in sorted(identity.keys() | state["identity"].keys()):
        here, there = identity.get(key), state["identity"].get(key)
        if here != there and key not in MAY_DIFFER:
            raise InputError(
                f"{path}: belongs to a run with {key} = {there!r}, this one has {here!r}; train in another folder"
            )
    trainer.load_state_dict(state)


def _prefetch(
    config: TrainingConfig, dataset: TrainingData, steps: range, rank: int, world: int
) -> Iterator[list[_Drawn]]:
    """This process's share of each step's batch, in pieces, drawn one step ahead in the background."""
    share = config.batch_size // world
    size = share if config.device_batch_size is None else config.device_batch_size

    def pieces(nimg: int) -> list[_Drawn]:
        positions = np.arange(nimg + rank * share, nimg + (rank + 1) * share)
        return [draw(config, dataset, positions[i : i + size]) for i in range(0, share, size)]

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(pieces, steps.start) if steps else None
        for nimg in steps:
            assert ahead is not None
            drawn = ahead.result()
            ahead = pool.submit(pieces, nimg + steps.step) if nimg + steps.step in steps else None
            yield drawn


def _to_device(drawn: _Drawn, config: TrainingConfig, dataset: TrainingData, device: torch.device) -> Batch:
    if device.type == "cuda":
        drawn = _Drawn(*(t.pin_memory().to(device, non_blocking=True) for t in drawn))
    noise, encoder_noise = drawn.noise.unbind(1)
    if dataset.encoder.kind == "rgb":
        images = dataset.encoder.encode_latents(drawn.raw)
    else:
        images = dataset.encoder.encode_latents(drawn.raw, encoder_noise)
    return Batch(images, drawn.labels if config.conditional else None, drawn.sigma, noise)


def _snapshot_files(trainer: Trainer, folder: Path) -> dict[float, Path]:
    name, kimg = trainer.config.name, trainer.cur_nimg // 1000
    return {std: folder / snapshots.format_name(name, kimg, std) for std in trainer.config.ema_stds}


def _save_snapshots(trainer: Trainer, dataset: TrainingData, files: dict[float, Path]) -> None:
    for std, network in trainer.ema.networks().items():
        metadata = {"nimg": trainer.cur_nimg, "ema_std": std, "run": trainer.config.name}
        snapshots.save(snapshots.Snapshot(network, dataset.encoder, metadata), files[std])


def _log_line(config: TrainingConfig, trainer: Trainer, loss: float, speed: float, device: torch.device) -> Line:
    before = trainer.cur_nimg - config.batch_size
    line: Line = {
        "nimg": trainer.cur_nimg,
        "loss": loss if math.isfinite(loss) else None,
        "lr": learning_rate(before, config.batch_size, config.ref_lr, config.ref_batches, config.rampup_Mimg),
        "images_per_second": round(speed, 3),
    }
    if device.type == "cuda":
        line["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return line


def append_line(path: Path, line: Line) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def truncate_log(path: Path, nimg: int) -> None:
    """Drop the lines of steps that an interrupted run had taken after its last checkpoint."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_text(path, "".join(line for line in lines if json.loads(line)["nimg"] <= nimg))
