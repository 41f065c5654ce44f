"""What this machine has and lacks for any study, in seconds; `repro preflight` checks it for one, by doing it."""

import shutil
import socket
from collections.abc import Callable, Iterator

import numpy as np
import torch

from metrics.detectors import weights
from metrics.machine import FILE, machine
from repro.preflight.checks import PASS
from repro.preflight.exactness import golden

HOSTS = ("nvlabs-fi-cdn.nvidia.com", "github.com", "dl.fbaipublicfiles.com", "huggingface.co")

Finding = tuple[bool | None, str]  # passed, failed, or only worth knowing (None)


def report(echo: Callable[[str], None]) -> bool:
    """Print every finding; False where something is broken, rather than merely absent."""
    healthy = True
    for passed, text in findings():
        echo(f"{ {True: 'ok  ', False: 'FAIL', None: 'note'}[passed] } {text}")
        healthy = healthy and passed is not False
    return healthy


def findings() -> Iterator[Finding]:
    """Versions, machine settings, devices, TF32, disk, addresses, weights, golden sample and features."""
    yield True, f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} CPU threads"
    settings = vars(machine())
    yield True, f"{FILE} and variables: " + ", ".join(f"{key} {value}" for key, value in settings.items() if value)
    if torch.cuda.is_available():
        for i, device in enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))):
            yield True, f"cuda:{i} {device.name}, {device.total_memory / 2**30:.0f} GiB"
        now = f"matmul {torch.backends.cuda.matmul.allow_tf32}, cuDNN {torch.backends.cudnn.allow_tf32}"
        yield None, f"TF32 now: {now}; detectors switch both off, a study's vae_tf32 says it for the VAE"
    else:
        yield None, "no CUDA device: the default study needs none, the ImageNet studies do"
    free = shutil.disk_usage(".").free / 1e9
    yield free > 2, f"{free:.0f} GB free here (the default study takes 1 GB)"
    yield from [(None, "offline: nothing is downloaded")] if settings["offline"] else map(_reachable, HOSTS)
    for name in ("inception", "dinov2"):
        path = weights.locate(name)
        yield (True if path else None), f"{name} weights: {path or 'not here, fetched at first use'}"
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for found in golden(torch.device(name)):
            yield found.status == PASS, f"golden {found.about}: {found.text}"


def _reachable(host: str) -> Finding:
    try:
        with socket.create_connection((host, 443), timeout=3):
            return True, f"{host} is reachable"
    except OSError as err:
        return None, f"{host} is out of reach ({err}): only the ImageNet studies download from it"
