"""What this machine has and lacks for a study, checked by doing it."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch

from metrics.files import InputError
from repro import snapshots
from repro.networks import prepare
from repro.sampler import draw_inputs, sample

ADDRESSES = (
    "https://nvlabs-fi-cdn.nvidia.com",
    "https://github.com",
    "https://dl.fbaipublicfiles.com",
    "https://huggingface.co",
)
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"
SEEDS = (1, 2, 3, 4)  # those of the golden autoguidance samples

Finding = tuple[bool | None, str]  # passed, failed, or only worth knowing (None)


def report(echo: Callable[[str], None]) -> bool:
    """Print every finding; False where something is broken, rather than merely absent."""
    healthy = True
    for passed, text in findings():
        echo(f"{ {True: 'ok  ', False: 'FAIL', None: 'note'}[passed] } {text}")
        healthy = healthy and passed is not False
    return healthy


def findings() -> Iterator[Finding]:
    """Devices, TF32, disk, addresses, weights, and the four-seed sample, in this order."""
    yield True, f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} CPU threads"
    yield from _devices()
    free = shutil.disk_usage(".").free / 1e9
    yield free > 2, f"{free:.0f} GB free here (the default study takes 1 GB)"
    for address in ADDRESSES:
        yield _reachable(address)
    yield from _weights()
    yield _golden_sample("cpu")
    if torch.cuda.is_available():
        yield _golden_sample("cuda")


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield None, "no CUDA device: the default study needs none, the ImageNet studies do"
        return
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        yield True, f"cuda:{i} {torch.cuda.get_device_name(i)}, {memory:.0f} GiB"
    yield (
        None,
        (
            f"TF32 now: matmul {torch.backends.cuda.matmul.allow_tf32}, cuDNN {torch.backends.cudnn.allow_tf32}; "
            "the VAE and the detectors switch both off"
        ),
    )


def _reachable(address: str) -> Finding:
    host = urlparse(address).hostname or ""
    try:
        with socket.create_connection((host, 443), timeout=3):
            return True, f"{host} is reachable"
    except OSError as err:
        return None, f"{host} is out of reach ({err}): only the ImageNet studies download from it"


def _weights() -> Iterator[Finding]:
    from metrics.detectors import weights

    for name in ("inception", "dinov2"):
        found = weights.locate(name)
        yield (True, f"{name} weights: {found}") if found else (None, f"{name} weights: not here, fetched at first use")


def _golden_sample(device: str) -> Finding:
    """Sample four seeds of a small pair and compare with the authors' implementation (CPU noise on any device)."""
    if not GOLDEN.exists():
        return None, f"no golden sample at {GOLDEN}: run from a checkout"
    try:
        main, guide = (prepare(snapshots.load(GOLDEN / f"{name}.pkl").network, device) for name in ("main", "guide"))
        noise, labels = draw_inputs(main, SEEDS)
        found = sample(main, noise.to(device), None if labels is None else labels.to(device), guide, 2.1).cpu()
    except InputError as err:
        return False, f"golden sample on {device}: {err}"
    expected = torch.from_numpy(np.load(GOLDEN / "sampler-autoguidance.npz")["latents"])
    error = float((found - expected).norm() / expected.norm())
    limit = 1e-4 if device == "cpu" else 5e-2  # float16 on CUDA
    return error < limit, f"golden sample on {device}: relative difference {error:.1e} (limit {limit:.0e})"
