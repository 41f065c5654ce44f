"""The training loop, with its snapshots, checkpoints and log, and what it does when it is asked to stop."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics import distributed
from metrics.files import InputError, atomic_write, explained, write_json, write_text
from metrics.progress import progress
from repro import snapshots
from repro.data.kinds import TrainingData
from repro.numerics import numerics
from repro.streams import mix
from repro.strict import build
from repro.training.config import TrainingConfig
from repro.training.trainer import Trainer, drawn_ahead, initial

CHECKPOINT = "checkpoint.pt"
LOG = "training.jsonl"
BESIDES = ("data", "numerics")  # what a run is, besides its configuration
Line = dict[str, Any]  # of a log, about the training up to `nimg` images
WATCHED = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


def train(
    config: TrainingConfig,
    dataset: TrainingData,
    folder: str | Path,
    device: torch.device | str | None = None,
    on_snapshot: Callable[[int, dict[float, Path]], None] | None = None,
    on_log: Callable[[Line], None] | None = None,
) -> Path:
    """Train, or go on from a checkpoint, and leave snapshots RUN-KIMG-STD.safetensors in `folder`, which is returned.

    Under torchrun the batch is shared among the processes. A run that was interrupted, at whatever moment, continues
    to the same bits on the same CPU as an undisturbed one. SIGTERM, SIGINT and SIGUSR1 let the step under way end,
    then a checkpoint is written and the process exits with 128 + the signal's number.

    Args:
        folder: receives snapshots, `training.jsonl`, `checkpoint.pt` and `config.json`.
        device: None: CUDA where there is one, else the CPU.
        on_snapshot: called in every process after snapshots are written, with the image count and the files by
            EMA length; what it draws at random does not touch the training.
        on_log: called in the first process with every line of the log.

    Raises:
        InputError: the folder holds another or a longer run, or the batch cannot be shared out.
    """
    folder, rank = Path(folder), distributed.rank()
    settings, pace = config.settings, config.pace
    trainer = initial(settings, dataset, distributed.device() if device is None else torch.device(device))
    identity = config.values() | {"data": dataset.digest} | numerics("training")
    _resume(trainer, folder, identity, pace.total_nimg)
    if trainer.cur_nimg == pace.total_nimg and not all(map(Path.exists, _snapshots(trainer, folder).values())):
        _save_snapshots(trainer, dataset, folder)

    loss, since = torch.zeros([], device=trainer.device), (trainer.cur_nimg, time.perf_counter())
    steps = range(trainer.cur_nimg, pace.total_nimg, settings.batch_size)
    bar = progress(settings.name, total=pace.total_nimg, initial=trainer.cur_nimg, hidden=rank > 0)
    with _kept_signals() as asked, bar:
        for drawn in drawn_ahead(config, dataset, steps):
            torch.manual_seed(int(mix(settings.seed, 2, trainer.cur_nimg, rank)))  # dropout only
            try:
                loss += trainer.step(d.encoded(dataset, settings.conditional, trainer.device) for d in drawn)
            except torch.OutOfMemoryError as err:
                count = pace.device_batch_size or trainer.share
                remedy = f"set device_batch_size to less than {count}, a power of 2"
                raise InputError(f"{count} images at once do not fit the GPU's memory; {remedy}") from err
            bar.update(settings.batch_size)
            nimg, finished = trainer.cur_nimg, trainer.cur_nimg == pace.total_nimg
            # In all processes or none.
            stopping = distributed.all_reduce_sum(np.array([len(asked)], float), together=True).item() > 0

            if finished or stopping or nimg % pace.log_nimg == 0:
                line = _line(trainer, loss, *since)
                loss, since = torch.zeros_like(loss), (nimg, time.perf_counter())
                if rank == 0:
                    append_lines(folder / LOG, [line])
                    if on_log is not None:
                        on_log(line)
            if finished or nimg % settings.snapshot_nimg == 0:
                files = _save_snapshots(trainer, dataset, folder)
                if on_snapshot is not None:
                    on_snapshot(nimg, files)
                distributed.barrier()
            if finished or stopping or nimg % pace.checkpoint_nimg == 0:
                if rank == 0:
                    with atomic_write(folder / CHECKPOINT) as temporary:
                        torch.save({"identity": identity, **trainer.state_dict()}, temporary)
                distributed.barrier()
            if stopping and not finished:
                bar.close()
                distributed.print0(f"{settings.name}: stopped at {nimg:,} images, where the next run goes on")
                raise SystemExit(128 + (asked[-1] if asked else signal.SIGTERM))  # as a shell reports a signal's victim
    return folder


@contextmanager
def _kept_signals() -> Iterator[list[int]]:
    """The numbers of the signals so far that asked to stop; a second one of a kind acts at once, as without this."""
    kept: list[int] = []

    def keep(number: int, _: object) -> None:
        kept.append(number)
        signal.signal(number, before[number])

    # Python hands signals to no other thread
    before = {n: signal.signal(n, keep) for n in WATCHED if threading.current_thread() is threading.main_thread()}
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _snapshots(trainer: Trainer, folder: Path) -> dict[float, Path]:
    """Files of the averages as they are now, by EMA length."""
    name, kimg = trainer.settings.name, trainer.cur_nimg // 1000
    return {std: folder / snapshots.format_name(name, kimg, std) for std in trainer.settings.ema_stds}


def _save_snapshots(trainer: Trainer, dataset: TrainingData, folder: Path) -> dict[float, Path]:
    """Write the averages as they are now; their files by EMA length."""
    files = _snapshots(trainer, folder)
    if distributed.rank() == 0:
        for std, network in trainer.ema.networks().items():
            metadata = {"nimg": trainer.cur_nimg, "ema_std": std, "run": trainer.settings.name}
            snapshots.save(snapshots.Snapshot(network, dataset.encoder, metadata), files[std])
    distributed.barrier()
    return files


def _resume(trainer: Trainer, folder: Path, identity: dict[str, Any], total_nimg: int) -> None:
    """Go on from the folder's checkpoint, if there is one, and say in the folder what is trained there."""
    path = folder / CHECKPOINT
    if path.exists():
        with explained(f"{path}: not a readable checkpoint", "remove it to start anew"):
            state = torch.load(path, map_location=trainer.device, weights_only=True)
            there = {key: state["identity"].pop(key, None) for key in BESIDES}
        try:
            there |= build(TrainingConfig, state["identity"]).settings.dotted()
        except InputError as err:
            raise InputError(f"{path}: belongs to a run of another form ({err}); train in another folder") from err
        for key, value in (trainer.settings.dotted() | {key: identity.get(key) for key in BESIDES}).items():
            if (other := there[key]) != value:
                found = f"{key} = {other!r}, this one has {value!r}"
                raise InputError(f"{path}: belongs to a run with {found}; train in another folder")
        with explained(f"{path}: not a sound checkpoint", "remove it to start anew"):
            trainer.load_state_dict(state)
        if trainer.cur_nimg > total_nimg:
            found = f"of {trainer.cur_nimg:,} images, expected at most total_nimg, {total_nimg:,}"
            raise InputError(f"{path}: belongs to a run {found}; train in another folder")
    if distributed.rank() == 0:
        write_json(folder / "config.json", identity)
        truncate_log(folder / LOG, trainer.cur_nimg)


def append_lines(path: Path, lines: Iterable[Line]) -> None:
    """Add lines to a log."""
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def truncate_log(path: Path, nimg: int) -> None:
    """Drop the lines beyond `nimg` images, which an interrupted run had written after its last checkpoint."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        with explained(f"{path}: not a sound log", "move it away"):
            kept = [line for line in lines if json.loads(line)["nimg"] <= nimg]
        write_text(path, "".join(kept))


def _line(trainer: Trainer, total: torch.Tensor, nimg: int, started: float) -> Line:
    """What to log of the training from `nimg` images on, which `started` then; every process must call this.

    `total` is the loss, summed over this process's images.
    """
    net, images = trainer.network, trainer.cur_nimg - nimg
    loss = distributed.all_reduce_sum(np.array(total.item()), together=True).item() / (
        images * net.img_channels * net.img_resolution**2
    )
    memory = torch.cuda.max_memory_allocated(trainer.device) if trainer.device.type == "cuda" else None
    return {
        "nimg": trainer.cur_nimg,
        "loss": loss if np.isfinite(loss) else None,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "images_per_second": round(images / (time.perf_counter() - started), 3),
    } | ({} if memory is None else {"peak_memory_gib": round(memory / 2**30, 3)})
