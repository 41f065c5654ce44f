"""Is the arithmetic of this device what it should be? Golden files, and float16 beside float32 in published shapes."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metrics.detectors.dinov2 import DINOv2
from metrics.files import InputError, load_npz
from metrics.files.tensors import load_state_dict
from repro import snapshots
from repro.inference import fold
from repro.preflight.checks import Setting, failed, passed, skipped
from repro.preflight.standins import random_network
from repro.sampler import draw_inputs, sample
from repro.study.counting import shape_of
from repro.study.rates import Finding
from repro.training.recipes import RECIPES

#: Oracles that come with the package, made with the authors' implementation on random weights.
GOLDEN = Path(__file__).with_name("golden")
# Relative differences. Samples on CUDA are of float16 networks; DINOv2's features would be off by 1e-3 with TF32.
SAMPLES, FLOAT16_SAMPLES, FEATURES = 1e-4, 5e-2, 1e-4
#: Of one evaluation in float16: the published arithmetic has 2.2e-3 at most on the golden networks.
FLOAT16 = 5e-3
SIZES = ("xxs", "xs", "s", "m", "l", "xl", "xxl")
SIGMAS = (0.2, 5.0)  # noise levels of the evaluations
#: Bytes a parameter: of float32 weights, of float16 ones, and of what is folded in between.
BYTES = 4 + 2 + 1
ACTIVATIONS = 2e9  # bytes, at most, of two latents
CPU_SECONDS = 20  # that one size may take at most where there is no GPU


def golden_sample(device: torch.device) -> float:
    """Relative difference of the latents of four guided seeds of a small pair from the authors' implementation.

    The noise is the CPU's on any device. Raises InputError where a file is missing or broken.
    """
    main, guide = (fold(snapshots.load(GOLDEN / f"{name}.pkl").network, device) for name in ("main", "guide"))
    noise, labels = draw_inputs(main, range(1, 5))
    found = sample(main, noise.to(device), None if labels is None else labels.to(device), guide, 2.1)
    return _difference(found, load_npz(GOLDEN / "sampler-autoguidance.npz")["latents"])


def golden_features(device: torch.device) -> float:
    """The same of the features of a small DINOv2."""
    kept = load_npz(GOLDEN / "dinov2-tiny.npz")
    detector = DINOv2(load_state_dict(GOLDEN / "dinov2-tiny.pth"), num_heads=2, device=device)
    return _difference(detector(torch.from_numpy(kept["images0"])), kept["features_torch0"])


def _difference(found: Tensor, expected: "np.ndarray | Tensor") -> float:
    wanted = torch.as_tensor(expected).double()
    return float((found.cpu().double() - wanted).norm() / wanted.norm())


def check_golden(setting: Setting) -> Iterator[Finding]:
    """Golden samples and features on every device that is used."""
    devices = [torch.device("cuda", i) for i in range(setting.gpus)] if setting.device.type == "cuda" else []
    for device in [torch.device("cpu"), *devices]:
        yield from golden(device)


def golden(device: torch.device) -> Iterator[Finding]:
    """The same on one device."""
    for what, measure, limit in (
        ("sample", golden_sample, FLOAT16_SAMPLES if device.type == "cuda" else SAMPLES),
        ("features", golden_features, FEATURES),
    ):
        about = f"{what} on {device}"
        try:
            error = measure(device)
        except InputError as err:
            yield failed(about, str(err), "install the package again")
            continue
        text = f"relative difference {error:.1e} (limit {limit:.0e})"
        remedy = "no result of this device can be trusted: try another version of PyTorch or of the driver"
        yield passed(about, text) if error < limit else failed(about, text, remedy)


def float16_error(size: str, device: torch.device) -> float:
    """Largest relative difference of the answers of a network of random weights in float16 from those in float32."""
    network = random_network(shape_of(RECIPES[f"edm2-img512-{size}"]).arguments(), 0, device)
    noise, labels = draw_inputs(network, range(len(SIGMAS)), device)
    sigma = torch.tensor(SIGMAS, device=device)
    x = (0.25 + sigma**2).sqrt().reshape(-1, 1, 1, 1) * noise  # as large as data and noise are together
    with torch.no_grad():
        expected = network(x, sigma, labels, force_fp32=True).double()
        network.precision = torch.float16
        found = fold(network, device)(x, sigma, labels).double()
    errors = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return float(errors.max()) if bool(found.isfinite().all()) else math.inf


def free_bytes(device: torch.device) -> float:
    """Memory that is free: of a GPU, or of this machine."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    found = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
    return 1024.0 * float(found["MemAvailable"]) if "MemAvailable" in found else math.inf


def check_float16(setting: Setting) -> Iterator[Finding]:
    """Every published size that fits."""
    pace = 0.0  # seconds a Gflop
    for size in SIZES:
        count = shape_of(RECIPES[f"edm2-img512-{size}"]).count()
        about, needed, free = f"EDM2-{size.upper()}", count.parameters * BYTES + ACTIVATIONS, free_bytes(setting.device)
        if needed > free:
            yield skipped(about, f"needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} are free")
            continue
        if setting.device.type == "cpu" and pace * count.gflops > CPU_SECONDS:
            yield skipped(
                about, f"would take {pace * count.gflops:.0f} s on this CPU, which computes in float32 anyway"
            )
            continue
        began = time.monotonic()
        error = float16_error(size, setting.device)
        pace = (time.monotonic() - began) / count.gflops
        text = f"float16 differs from float32 by {error:.1e} (limit {FLOAT16:.0e})"
        remedy = "sampling in float16 cannot be trusted here: try another version of PyTorch or of the driver"
        yield passed(about, text) if error < FLOAT16 else failed(about, text, remedy)
