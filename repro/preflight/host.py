"""Does this machine have what a study needs? Devices and memory, space and speed of the disk."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from metrics.files import atomic_write
from metrics.files.reading import files_below
from metrics.machine import cores
from repro.guidance import Guided
from repro.preflight.checks import Setting, failed, passed, skipped
from repro.preflight.exactness import free_bytes
from repro.study import Study, cost
from repro.study.counting import behind
from repro.study.rates import Finding, Rates

NODES = Path("/dev")  # where a driver shows its devices
CAPABILITY = (7, 0)  # of GPUs whose float16 is fast
# Bytes of the machine's memory: a parameter in float16, once for all processes, as files are mapped; in float32 where
# there is no GPU; and what each process takes besides.
MAPPED, ON_CPU, PROCESS = 2, 4, 2e9
MARGIN = 1.05  # of space, for what is not counted
WRITTEN = 256 * 2**20  # bytes, at most, that measure the disk
PIECE = 4 * 2**20
SLOW = 30e6  # bytes a second of a disk that would hold up sampling
SPEED_SECONDS = 5.0  # to write or read for at most


def check_devices(setting: Setting) -> Iterator[Finding]:
    """GPUs with their driver and free memory, and the memory of the machine."""
    software = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, driver {_driver() or 'none'}"
    yield passed("software", f"{software}, {cores()} CPU cores")
    if torch.cuda.is_available():
        yield from map(_gpu, range(torch.cuda.device_count()))
    elif any(NODES.glob("nvidia[0-9]*")):
        remedy = "install a torch build with CUDA that fits the driver (nvidia-smi says which it has)"
        yield failed("GPU", "this machine has one, and PyTorch cannot use it", remedy)
    else:
        yield skipped("GPU", "there is none: all that follows is of the CPU")
    pairs = [item.guided for item in (*setting.study.sampled.values(), *setting.study.sweeps.values())]
    largest = max((_parameters(setting.study, pair) for pair in pairs), default=0)
    needed = largest * (MAPPED if setting.gpus else ON_CPU) + PROCESS * max(setting.gpus, 1)
    free = free_bytes(torch.device("cpu"))
    text = f"{free / 1e9:.1f} GB are free, {needed / 1e9:.1f} are needed"
    remedy = "more memory, or fewer processes (`launcher` in machine.yaml)"
    yield passed("memory", text) if needed <= free else failed("memory", text, remedy)


def _driver() -> str:
    """Version of NVIDIA's driver; empty where there is none that answers."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")[0]
    return ""


def _gpu(number: int) -> Finding:
    found = torch.cuda.get_device_properties(number)
    about = f"cuda:{number}"
    free, total = (x / 2**30 for x in torch.cuda.mem_get_info(number))
    text = f"{found.name}, {free:.0f} of {total:.0f} GiB free, compute capability {found.major}.{found.minor}"
    if (found.major, found.minor) < CAPABILITY:
        return failed(about, text, f"expected {CAPABILITY[0]}.{CAPABILITY[1]} or more, whose float16 is fast")
    return passed(about, text) if free > total / 2 else failed(about, text, "another process uses it; end that one")


def _parameters(study: Study, guided: Guided) -> int:
    networks = {*study.spelt_out(guided).networks}
    return sum(shape.count().parameters for network in networks if (shape := behind(study, network)))


def check_disk(setting: Setting) -> Iterator[Finding]:
    """Space for all that is kept, and speed, in the folder of the study's outputs."""
    folder = setting.study.out
    folder.mkdir(parents=True, exist_ok=True)
    needed = MARGIN * float(cost.cost(setting.study, Rates()).total["disk_gb"])
    free = (shutil.disk_usage(folder).free + sum(facts.st_size for facts in files_below(folder))) / 1e9
    text = f"{needed:,.1f} GB are needed, {free:,.1f} are free or hold what is made already"
    remedy = f"make room, put {folder.parent} on a larger disk, or set keep_images: false under shards"
    yield passed("space", text) if needed <= free else failed("space", text, remedy)
    for about, rate in zip(("writing", "reading"), disk_speed(folder), strict=True):
        text = f"{rate / 1e6:,.0f} MB a second"
        remedy = f"expected {SLOW / 1e6:.0f} or more: put {folder.parent} on a local disk"
        yield passed(about, text) if rate >= SLOW else failed(about, text, remedy)


def disk_speed(folder: Path) -> tuple[float, float]:
    """Bytes a second that are written to a disk, and read from it, where its cache can be told to forget them."""
    with atomic_write(folder / ".speed") as path:
        with open(path, "wb", buffering=0) as file:
            began, written, piece = time.perf_counter(), 0, os.urandom(PIECE)
            while written < WRITTEN and time.perf_counter() - began < SPEED_SECONDS:
                written += file.write(piece)
                os.fsync(file.fileno())
            writing = written / (time.perf_counter() - began)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with open(path, "rb", buffering=0) as file:
            began, read = time.perf_counter(), 0
            while (found := file.read(PIECE)) and time.perf_counter() - began < SPEED_SECONDS:
                read += len(found)
            reading = read / (time.perf_counter() - began)
    (folder / ".speed").unlink()
    return writing, reading
