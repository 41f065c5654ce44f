"""The whole of `evaluate` against its detector alone, and its peak memory as the number of images grows.

The detector alone gets the same images decoded beforehand, in the same batches, before and after the whole. Memory and
what the whole costs beyond the detector are those of a process of its own per size, with a cheap detector of as many
features; the sets are made of repeated small PNGs. Afterwards a subset is measured from the features that were kept.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics import detectors, features
from metrics.evaluation import Extractor, evaluate
from metrics.references import Reference
from metrics.statistics import Statistics

COUNT, SIZE, BATCH = 256, 64, 64
DIM = 2048
SETS, DISTINCT = (5_000, 50_000), 500
SUBSET = 10_000


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


def write_images(path: Path, count: int, size: int, distinct: int) -> np.ndarray:
    """A zip of `count` PNGs, some of them again and again; returns the pixels of the `distinct` ones [N, H, W, 3]."""
    pixels = np.random.default_rng(0).integers(0, 256, (distinct, size, size, 3), dtype=np.uint8)
    files = []
    for image in pixels:
        stream = BytesIO()
        Image.fromarray(image).save(stream, "png", compress_level=1)
        files.append(stream.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            archive.writestr(f"{i:06d}.png", files[i % distinct])
    return pixels


def reference(detector: str) -> Reference:
    return Reference("standard", "", {detector: Statistics(50_000, np.zeros(DIM), np.eye(DIM), {"detector": detector})})


class Cost(NamedTuple):
    """Of evaluating a set: peak memory in GB; seconds in all, of the detector alone, of subsets of kept features."""

    memory: float
    whole: float
    detector: float
    subset: float
    subset_of_file: float


def cost(path: Path, count: int) -> Cost:
    """What a process needs that evaluates the images, and then some of them again."""
    extractor = Extractor(["projection"], cache=path.with_suffix(""), num_workers=1)
    batch = torch.zeros(BATCH, 3, 8, 8, dtype=torch.uint8)
    detector = count / BATCH * min(seconds(lambda: extractor.detectors["projection"](batch)) for _ in range(20))
    whole = seconds(lambda: evaluate(path, reference("projection"), extractor=extractor))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    def subset(of: Path) -> float:
        chosen = {"num": min(SUBSET, count // 2), "seed": 1, "extractor": extractor}
        return seconds(lambda: evaluate(of, reference("projection"), **chosen))

    kept = path.with_suffix(".npz")
    features.save(extractor.read(path).features, kept)
    return Cost(memory, whole, detector, subset(path), subset(kept))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # First, since a process started from a large one inherits its peak on Linux.
        costs = {}
        for count in SETS:
            write_images(root / f"{count}.zip", count, 8, DISTINCT)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                costs[count] = pool.submit(cost, root / f"{count}.zip", count).result()

        batches = torch.from_numpy(write_images(root / "x.zip", COUNT, SIZE, COUNT)).permute(0, 3, 1, 2).split(BATCH)
        extractor = Extractor(["inception"], cache=root / "cache", batch_size=BATCH)
        detector = extractor.detectors["inception"]
        detector(batches[0])

        def alone(part: slice) -> tuple[float, np.ndarray]:
            start = time.perf_counter()
            found = torch.cat([detector(batch) for batch in batches[part]]).cpu().numpy()
            return time.perf_counter() - start, found

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
    alone = (before + after) / COUNT
    print(f"sets of repeated PNGs of 8 x 8, with a detector that costs next to nothing, {DIM} features:")
    for count, found in costs.items():
        beyond = (found.whole - found.detector) / count
        print(
            f"{count:7} images: {found.memory:.2f} GB at most, {found.whole:.1f} s, {1e3 * beyond:.2f} ms an image "
            f"beyond the detector (of {alone / (alone + beyond):.1%} of the time, were it Inception)"
        )
        number = min(SUBSET, count // 2)
        print(
            f"{'':7} {number} of them at random, from kept features: {found.subset:.1f} s, "
            f"from a file of features: {found.subset_of_file:.1f} s"
        )


if __name__ == "__main__":
    main()
