"""The whole of `evaluate` against its detector alone, and its peak memory as the number of images grows.

The detector alone gets the same images decoded beforehand, in the same batches, before and after the
whole. Memory is that of a process of its own per size, with a cheap detector of as many features.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics import detectors
from metrics.evaluation import Extractor, evaluate
from metrics.references import Reference
from metrics.statistics import Statistics

COUNT, SIZE, BATCH = 512, 64, 64
DIM = 2048


class Projection:
    """A random projection of 8 x 8 images to as many features as Inception's."""

    name = "projection"
    dim = DIM
    tags: Mapping[str, Any] = MappingProxyType(
        {"detector": "projection", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}
    )

    def __init__(self) -> None:
        self.weight = torch.randn(192, DIM, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().flatten(1) / 128 @ self.weight


detectors.register("projection", lambda **_: Projection())


def write_images(path: Path, count: int, size: int) -> np.ndarray:
    """A zip of PNGs; returns their pixels [N, H, W, 3]."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(pixels):
            stream = BytesIO()
            Image.fromarray(image).save(stream, "png", compress_level=1)
            archive.writestr(f"{i:06d}.png", stream.getvalue())
    return pixels


def reference(detector: str) -> Reference:
    return Reference("standard", "", {detector: Statistics(50_000, np.zeros(DIM), np.eye(DIM), {"detector": detector})})


def peak_memory(path: Path) -> float:
    """Peak memory in GB of a process that evaluates the images."""
    extractor = Extractor(["projection"], cache=path.with_suffix(""), num_workers=1)
    evaluate(path, reference("projection"), extractor=extractor)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # First, since a process started from a large one inherits its peak on Linux.
        sizes = (2_000, 20_000)
        memory = {}
        for count in sizes:
            write_images(root / f"{count}.zip", count, 8)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memory[count] = pool.submit(peak_memory, root / f"{count}.zip").result()

        batches = torch.from_numpy(write_images(root / "x.zip", COUNT, SIZE)).permute(0, 3, 1, 2).split(BATCH)
        extractor = Extractor(["inception"], cache=root / "cache", batch_size=BATCH)
        detector = extractor.detectors["inception"]
        detector(batches[0])

        def alone(part: slice) -> tuple[float, np.ndarray]:
            start = time.perf_counter()
            features = torch.cat([detector(batch) for batch in batches[part]]).cpu().numpy()
            return time.perf_counter() - start, features

        half = len(batches) // 2
        before, first = alone(slice(half))
        start = time.perf_counter()
        report = evaluate(root / "x.zip", reference("inception"), extractor=extractor)
        whole = time.perf_counter() - start
        after, second = alone(slice(half, None))
        kept = extractor.read(root / "x.zip").features["inception"].gather()
        np.testing.assert_allclose(kept, np.concatenate([first, second]), rtol=1e-5, atol=1e-6)

    print(f"evaluate, {COUNT} PNGs of {SIZE} x {SIZE}, Inception on {detector.tags['dtype']}, {report.facts['device']}")
    print(f"{'':24}{'images/s':>9}")
    print(f"{'detector alone':24}{COUNT / (before + after):9.1f}")
    print(f"{'evaluate as a whole':24}{COUNT / whole:9.1f}   {(before + after) / whole:.0%} of the detector")
    for count in sizes:
        print(f"peak memory, {count:6} images {memory[count]:7.2f} GB")


if __name__ == "__main__":
    main()
