"""How fast does each part of a study's work go here? What `repro cost` counts, in the study's configuration."""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.detectors import Detector, load
from metrics.detectors.dinov2 import DINOv2
from metrics.detectors.weights import WEIGHTS, locate
from metrics.features import detect
from metrics.files import InputError
from metrics.machine import cores, machine
from repro.data.digits import NAME as DIGITS
from repro.data.digits import Classifier
from repro.degradations import GUIDE, MAIN, degrade
from repro.guidance import Blend
from repro.inference import fold
from repro.networks import Denoiser
from repro.preflight.checks import MEASURED_FOR, Setting, passed, per_second, skipped, timed
from repro.preflight.standins import photographs, random_network, random_vae, random_vit
from repro.sampling.batches import sample_batch
from repro.sampling.features import BATCH
from repro.sampling.pairs import Configuration, Pair
from repro.sampling.shards import IMAGES, Manifest, read_shard
from repro.study import cost
from repro.study.counting import VAE_SCALE, Shape
from repro.study.rates import PARTS, THREADS, Finding, Measured, Sampled, Task
from repro.training.config import PRECISIONS, TrainingConfig
from repro.training.trainer import Batch, Trainer, channels_last

VIT_L = {"dinov2": "torch", "dinov2-pil": "pil"}  # detectors of random weights where theirs are not here, and resize
PNGS = 32  # images of a shard that is written and read
Rate = tuple[float, str]  # and how it differs from the study's configuration


def tasks(setting: Setting, part: str) -> list[Task]:
    """What a study has of a part of the work."""
    return [task for task in cost.work(list(cost.stages(setting.study))) if task.part == part]


def measured(
    part: str, rate: Callable[[Setting, Any, float], Rate]
) -> Callable[[Setting], Iterator[Finding | Measured]]:
    """The check of a part: its tasks one by one, each by `rate` of what it is and of the seconds that it may take."""

    def check(setting: Setting) -> Iterator[Finding | Measured]:
        wanted = tasks(setting, part)
        if not wanted:
            yield skipped("none", "the study has no such work, or its networks are not known before they are there")
        for number, task in enumerate(wanted):
            try:
                found, note = rate(setting, task.what, setting.share(len(wanted) - number))
            except MissingError as err:
                yield skipped(task.subject, str(err))
                continue
            yield Measured(part, task.subject, found, note)
            yield passed(task.subject, f"{found:,.4g} {PARTS[part]} a second{note and f' ({note})'}")

    return check


class MissingError(Exception):
    """What would be measured is not here."""


def grown(
    make: Callable[[int], Callable[[], object]], most: int, seconds: float, device: torch.device
) -> tuple[float, int]:
    """How many a second `make(n)` does, which does n, and the n: doubled up to `most` as long as time allows."""
    began, n = time.monotonic(), 1
    while True:
        call = make(n)
        once, left = timed(call, device), seconds - (time.monotonic() - began)
        if n == most or 4 * once > left:
            break
        n = min(2 * n, most)
    if 2 * once > left:
        return n / once, n
    return per_second(call, n, device, min(left / 2, MEASURED_FOR)), n


def _batch(found: int, wanted: int) -> str:
    return "" if found == wanted else f"batch of {found}"


def sampling_rate(setting: Setting, sampled: Sampled, seconds: float) -> Rate:
    """Evaluations of an image a second by the sampler, with networks of the study's shapes and random weights.

    The batch and the number of steps are the study's where time allows.
    """
    began, device, solver = time.monotonic(), setting.device, setting.study.sampler
    pair = Pair(Configuration(replace(sampled.guided, interval=None), solver), *_networks(setting, sampled), device)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def sampler(images: int, steps: int) -> Callable[[], object]:
        short = replace(solver, schedule=None, num_steps=steps, batch_size=images)
        some = replace(pair, configuration=replace(pair.configuration, solver=short))
        return lambda: sample_batch(some, range(images))

    steps, whole = 1, 2 * solver.num_steps - 1
    rate, images = grown(lambda n: sampler(n, 1), solver.batch_size, seconds - (time.monotonic() - began), device)
    left = seconds - (time.monotonic() - began)
    if images == solver.batch_size and 3 * images * whole / rate < left:
        rate = per_second(sampler(images, solver.num_steps), images * whole, device, min(left / 2, MEASURED_FOR))
        steps = solver.num_steps
    notes = [_batch(images, solver.batch_size), "" if steps == solver.num_steps else "one step"]
    if device.type == "cuda":
        notes.append(f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at most")
    return rate, ", ".join(filter(None, notes))


def _networks(setting: Setting, sampled: Sampled) -> tuple[Denoiser, Denoiser | None, str, str | None]:
    """Main network and guide, made worse as the study has it, with what stands for their digests."""

    def made(shape: Shape, seed: int) -> Any:
        network = fold(random_network(shape.arguments(), seed, setting.device), setting.device)
        if setting.study.sampler.compile:
            network.compile()
        return network

    main = degrade(made(sampled.main, 0), sampled.guided.main_degradations, MAIN)
    if sampled.guide is None:
        return main, None, "random", None
    guides = [
        degrade(made(shape, 1 + number), worse, GUIDE + number) for number, (shape, worse) in enumerate(sampled.guides)
    ]
    guide = guides[0] if len(guides) == 1 else Blend(guides, sampled.guided.shares)
    return main, guide, "random", "random"


def vae_rate(setting: Setting, what: tuple[int, int], seconds: float) -> Rate:
    """Images a second that a VAE of the published shape decodes, in the study's batches.

    A CPU, which would take a minute for one, decodes pieces of images; the work goes with the pixels.
    """
    encoder, size, device = random_vae(), setting.study.sampler.batch_size, setting.device
    encoder.tf32 = setting.study.sampler.vae_tf32
    cut = 4 if device.type == "cpu" else 1
    latents = torch.randn(4, what[0] // VAE_SCALE // cut, what[0] // VAE_SCALE // cut, device=device)
    rate, n = grown(lambda n: lambda: encoder.decode(latents.expand(n, -1, -1, -1)), size, seconds, device)
    return rate / cut**2, ", ".join(filter(None, [_batch(n, size), "sixteenths of images" if cut > 1 else ""]))


def features_rate(setting: Setting, what: tuple[str, int, int], seconds: float) -> Rate:
    """Images a second of a detector, from pixels in memory, in the batches of the stage `features`."""
    name, side, channels = what
    detector, note = _detector(setting, name)
    image = np.repeat(photographs(1, side, channels)[0], 3 // channels, axis=2)
    rate, n = grown(lambda n: lambda: detect([[image] * n], {name: detector}), BATCH, seconds, setting.device)
    return rate, ", ".join(filter(None, [note, _batch(n, BATCH)]))


def _detector(setting: Setting, name: str) -> tuple[Detector, str]:
    device = str(setting.device)
    if name == DIGITS:
        return Classifier().eval().requires_grad_(False), "random weights"
    if name in VIT_L and locate(name) is None:
        return DINOv2(random_vit(), resize=VIT_L[name], device=device), "random weights"
    if name in WEIGHTS and locate(name) is None:
        raise MissingError("its weights are not here; `repro fetch` brings them")
    try:
        return load(name, device=device), ""
    except InputError as err:
        if name in WEIGHTS:  # which are here, and not sound
            raise
        raise MissingError(str(err)) from None


def png_rate(setting: Setting, what: tuple[int, int], seconds: float) -> Rate:
    """Images a second that the threads of one process write as PNGs of a shard."""
    images, threads = photographs(PNGS, *what), min(THREADS, _threads(setting))
    batches = np.array_split(images, threads)
    with tempfile.TemporaryDirectory(dir=_folder(setting)) as folder, ThreadPoolExecutor(threads) as pool:

        def write() -> None:
            IMAGES.keep(Path(folder) / "shard.zip", _manifest(setting), list(pool.map(IMAGES.encode, batches)))

        rate = per_second(write, PNGS, torch.device("cpu"), min(seconds / 2, MEASURED_FOR))
    return rate, "" if threads == THREADS else f"{threads} thread, as there are no more cores"


def decoding_rate(setting: Setting, what: tuple[int, int], seconds: float) -> Rate:
    """Images a second that one process reads from a shard, times the processes that read ahead of a GPU."""
    readers = int(machine().workers or max(_threads(setting) - 1, 1))
    with tempfile.TemporaryDirectory(dir=_folder(setting)) as folder:
        path = Path(folder) / "shard.zip"
        IMAGES.keep(path, _manifest(setting), [IMAGES.encode(photographs(PNGS, *what))])
        rate = per_second(lambda: read_shard(path), PNGS, torch.device("cpu"), min(seconds / 2, MEASURED_FOR))
    return max(readers, 1) * rate, f"{readers} processes" if readers > 1 else ""


def _folder(setting: Setting) -> Path:
    setting.study.out.mkdir(parents=True, exist_ok=True)
    return setting.study.out


def _threads(setting: Setting) -> int:
    """Cores that each process has."""
    return max(cores() // max(setting.gpus, 1), 1)


def _manifest(setting: Setting) -> Manifest:
    configuration = next(iter(setting.study.sampled.values())).guided
    return Manifest(
        "preflight", Configuration(configuration, setting.study.sampler), "", None, "cpu", {}, list(range(PNGS))
    )


def training_rate(setting: Setting, what: tuple[Shape, TrainingConfig], seconds: float) -> Rate:
    """Images a second of training steps, on random data; the batch is the study's where time allows, on one device."""
    shape, config = what
    resolution, channels = shape.data_shape
    settings, device = config.settings, setting.device
    torch.manual_seed(0)
    network = channels_last(random_network(shape.arguments(), 0, device))
    network.precision = PRECISIONS[settings.precision]
    share = settings.batch_size // max(setting.gpus, 1)
    size = min(share, config.pace.device_batch_size or share)

    def batch(images: int) -> Batch:
        x = torch.randn(images, channels, resolution, resolution, device=device) / 2
        sigma = (torch.randn(images, 1, 1, 1, device=device) * settings.P_std + settings.P_mean).exp()
        return Batch(x, _labels(images, shape.label_dim, device), sigma, torch.randn_like(x))

    def steps(images: int) -> Callable[[], object]:
        trainer, pieces = Trainer(network, replace(settings, batch_size=images)), [batch(images)]
        return lambda: trainer.step(pieces)

    rate, images = grown(steps, size, seconds, device)
    return rate, _batch(images, share)


def _labels(images: int, classes: int, device: torch.device) -> Tensor | None:
    if not classes:
        return None
    return torch.eye(classes, device=device)[torch.arange(images, device=device) % classes]


RATES: dict[str, Callable[[Setting, Any, float], Rate]] = {
    "training": training_rate,
    "sampling": sampling_rate,
    "vae": vae_rate,
    "png": png_rate,
    "decoding": decoding_rate,
    "features": features_rate,
}
#: Part of the work -> its check.
SPEEDS = {part: measured(part, rate) for part, rate in RATES.items()}
