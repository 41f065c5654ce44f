"""`metrics evaluate` as a command: its time against its detector alone, its peak memory, and subsets of what it kept.

`python -m benchmarks.evaluate --count 50000` is the published number of images: PNGs of 32 x 32 whose pixels repeat and
whose bytes do not, so that no image is another's in the cache. The detector alone gets the same pixels decoded
beforehand, in the same batches, half of them before the whole and half after it; of many, no more than `ALONE`.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from metrics import detectors, distributed, features, references
from metrics.statistics import Statistics

DETECTOR, BATCH = "inception", 64
SIZE, TILE, DISTINCT = 32, 8, 2500  # more different images than features, for a covariance of full rank
ALONE = 4096  # images of the detector alone, where there are more
SUBSETS = (10_000, 5_000)


def pixels(rows: range) -> NDArray[np.uint8]:
    """Images [n, 32, 32, 3] of coloured tiles, the same again after `DISTINCT`."""
    tiles = np.random.default_rng(0).integers(0, 256, (DISTINCT, SIZE // TILE, SIZE // TILE, 3), dtype=np.uint8)
    return tiles[np.array(rows) % DISTINCT].repeat(TILE, axis=1).repeat(TILE, axis=2)


def write_images(folder: Path, count: int) -> None:
    """`count` PNGs, of different bytes: behind its end each has its number."""
    encoded = []
    for image in pixels(range(min(count, DISTINCT))):
        stream = BytesIO()
        Image.fromarray(image).save(stream, "png")
        encoded.append(stream.getvalue())
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:06d}.png").write_bytes(encoded[i % DISTINCT] + i.to_bytes(4, "big"))


class Alone(NamedTuple):
    """Of the detector alone: seconds, and features [n, D] of the first batch."""

    seconds: float
    first: NDArray[np.float32]
    dtype: str
    device: str


def alone(rows: range) -> Alone:
    """The detector on images that are decoded already."""
    detector = detectors.load(DETECTOR, device=distributed.device())
    batches = [torch.from_numpy(pixels(rows[i : i + BATCH])).permute(0, 3, 1, 2) for i in range(0, len(rows), BATCH)]
    first = detector(batches[0]).cpu().numpy()
    start = time.perf_counter()
    for batch in batches:
        detector(batch).cpu()
    return Alone(time.perf_counter() - start, first, detector.tags["dtype"], str(distributed.device()))


def fresh(rows: range) -> Alone:
    """`alone` in a process of its own, since on Linux what one is started from counts in its peak memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(alone, rows).result()


def command(*arguments: str | Path) -> tuple[float, float]:
    """Seconds and peak memory in GB of a command of metrics, from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "metrics", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"metrics {' '.join(map(str, arguments))} ended with status {status}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="images to evaluate")
    count = parser.parse_args().count
    if count < 2 * BATCH:
        parser.error(f"--count is {count}, expected at least {2 * BATCH}, two batches")
    with tempfile.TemporaryDirectory() as folder:
        images, cache, kept, reference = (Path(folder, x) for x in ("images", "cache", "kept.npz", "reference.npz"))
        write_images(images, count)
        half = min(count, ALONE) // (2 * BATCH) * BATCH
        before = fresh(range(half))
        dim = before.first.shape[1]
        standard = Statistics(50_000, np.zeros(dim), np.eye(dim), {"detector": DETECTOR})
        references.save({DETECTOR: standard}, reference)
        options = "--ref", reference, "--detectors", DETECTOR, "--batch-size", str(BATCH), "--cache", cache
        whole, memory = command("evaluate", images, *options)
        after = fresh(range(count - half, count))
        rate = 2 * half / (before.seconds + after.seconds)

        print(f"metrics evaluate, {count} PNGs of {SIZE} x {SIZE}, {DETECTOR} on {before.dtype}, {before.device}")
        print(f"{'':44}{'seconds':>9}{'images/s':>10}{'peak GB':>9}")
        print(f"{f'detector alone, {2 * half} of them':44}{2 * half / rate:9.1f}{rate:10.1f}")
        told = f"{count / whole / rate:.1%} of the detector's rate"
        print(f"{'evaluate, from start to end':44}{whole:9.1f}{count / whole:10.1f}{memory:9.2f}  {told}", flush=True)

        command("features", images, "--out", kept, *options[2:])
        found = features.load(kept)[DETECTOR].gather()
        np.testing.assert_allclose(found[:BATCH], before.first, rtol=1e-4, atol=1e-5)
        for number in sorted({min(number, count // 2) for number in SUBSETS}, reverse=True):
            for source, what in ((images, "the images, whose features are kept"), (kept, "a file of features")):
                seconds, memory = command("evaluate", source, *options, "--num", str(number), "--seed", "1")
                print(f"{f'{number} of {what}':44}{seconds:9.1f}{'':10}{memory:9.2f}", flush=True)


if __name__ == "__main__":
    main()
