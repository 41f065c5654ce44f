"""What a convention costs in FID and KID, on real images: resizers, crops, JPEG, the number of images, bfloat16.

    python -m benchmarks.conventions --images cifar10-train.zip --weights inception.pth --out folder

writes the table of docs/comparable.md, and keeps features in the folder, in files of 250 images or fewer: the same
command again, after --seconds of work too, goes on where the last one ended. `repro.data.cifar10` makes the zip. Images
are taken at random. The first ones, treated as the row says, are measured against all others, untreated; the change is
that against the same images untreated, so that the choice of images is common to both.
"""

import io
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks._hardware import hardware
from metrics.detectors.inception import InceptionV3
from metrics.detectors.weights import build
from metrics.features import FeatureFile, detect, read, write
from metrics.frechet import frechet_distance, jackknife, leave_one_out
from metrics.images import open_images
from metrics.kernel import unbiased_mmd2
from metrics.statistics import Statistics, from_features

COUNT = 12_000  # images that are measured, in a random order
TREATED, ROUGH = 500, 64  # of these, the first, and of what is slow; all but TREATED are the reference
REFERENCE = 2000  # images, the last, that samples of the sizes NUMBERS are measured against
NUMBERS = (1000, 2000, 5000, 10_000)
PIECE, BATCH = 250, 16  # images in a file of features, and in a batch
BLOCKS = 10  # of the jackknife

Pixels = NDArray[np.uint8]
Filter = Image.Resampling


def resized(pixels: Pixels, size: int, resampling: Filter) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((size, size), resampling))


def doubled_and_back(resampling: Filter) -> Callable[[Pixels], Pixels]:
    return lambda x: resized(resized(x, 2 * len(x), resampling), len(x), resampling)


def doubled(resampling: Filter) -> Callable[[Pixels], Pixels]:
    return lambda x: resized(x, 2 * len(x), resampling)


def jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    def treated(pixels: Pixels) -> Pixels:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "jpeg", quality=quality)
        return np.asarray(Image.open(stream))

    return treated


def cropped(pixels: Pixels) -> Pixels:
    margin = len(pixels) // 16
    return pixels[margin:-margin, margin:-margin]


#: Row of the table -> what is done to an image.
TREATMENTS: dict[str, Callable[[Pixels], Pixels]] = {
    "up by 2 and back, bilinear": doubled_and_back(Filter.BILINEAR),
    "up by 2 and back, bicubic": doubled_and_back(Filter.BICUBIC),
    "up by 2 and back, Lanczos": doubled_and_back(Filter.LANCZOS),
    "up by 2, then compared, bilinear": doubled(Filter.BILINEAR),
    "up by 2, then compared, bicubic": doubled(Filter.BICUBIC),
    "central 28 x 28 of 32 x 32": cropped,
    "JPEG, quality 95": jpeg(95),
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 75": jpeg(75),
}
UNTREATED, BFLOAT16 = "untreated", "Inception in bfloat16"
Features = NDArray[np.float32]


class Inception(InceptionV3):
    """Features in float32, whatever they were computed in, since NumPy has no bfloat16."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return super().__call__(images).float()


def kid(x: Features, y: Features) -> float:
    """KID of all images at once, without subsets."""
    return unbiased_mmd2(torch.from_numpy(x).double(), torch.from_numpy(y).double())


def measured(x: Features, others: Features, target: Statistics) -> tuple[list[float], float]:
    """FID of all images, and with each of the blocks left out; KID x 1000. `target` are statistics of `others`."""
    blocks = [torch.from_numpy(block) for block in np.array_split(x, BLOCKS)]
    return [value for value, _ in leave_one_out(blocks, target)], kid(x, others) * 1000


def table(found: dict[str, Features]) -> str:
    plain = found[UNTREATED]
    others, low = plain[TREATED:], plain[-REFERENCE:]
    target, low_target = from_features(others), from_features(low)
    lines = ["| treated | images | FID | change | KID x 1000 | change |", "|---|---|---|---|---|---|"]
    same: dict[int, tuple[list[float], float]] = {}
    for name in [name for name in found if name != UNTREATED]:
        number = len(found[name])
        if number not in same:
            same[number] = measured(plain[:number], others, target)
            lines.append(f"| nothing | {number} | {same[number][0][0]:.2f} | | {same[number][1]:.2f} | |")
        (fid, *left_out), kernel = same[number]
        (value, *without), moved = measured(found[name], others, target)
        change, error = jackknife(value - fid, np.subtract(without, left_out).tolist())
        row = f"| {name} | {number} | {value:.2f} | {change:+.2f} ± {error:.2f} | {moved:.2f} | {moved - kernel:+.2f} |"
        lines.append(row)
    lines += ["", f"| N, against {REFERENCE} | FID | KID x 1000 |", "|---|---|---|"]
    for number in NUMBERS:
        x = plain[:number]
        distance = frechet_distance(from_features(x), low_target)
        lines.append(f"| {number} | {distance:.2f} | {kid(x, low) * 1000:.2f} |")
    return "\n".join(lines)


@click.command()
@click.option("--images", type=click.Path(path_type=Path), help="Square images of one size, without loss.")
@click.option("--weights", type=click.Path(path_type=Path), help="Of Inception; default: as `metrics` finds them.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of kept features and of the table.")
@click.option("--seconds", type=float, default=float("inf"), help="Begin no further piece after so long.")
@click.option("--device", default="cpu")
def main(images: Path | None, weights: Path | None, out: Path | None, seconds: float, device: str) -> None:
    """Measure the table of docs/comparable.md."""
    if images is None or out is None:
        click.echo("takes most of an hour and a set of images: python -m benchmarks.conventions --help")
        return
    began = time.monotonic()
    whole = open_images(images).subset(COUNT, seed=0)
    order = np.random.default_rng(0).permutation(COUNT)
    wanted = {UNTREATED: COUNT} | dict.fromkeys(TREATMENTS, TREATED) | {BFLOAT16: ROUGH}
    pieces = [(name, start) for name, count in wanted.items() for start in range(0, count, PIECE)]
    pieces.sort(key=lambda piece: (piece[0] != UNTREATED, piece[1]))
    paths = {(name, i): out / f"{''.join(c if c.isalnum() else '-' for c in name)}-{i:05d}.npz" for name, i in pieces}
    networks = {
        dtype: build(Inception, "inception", weights, device=device, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    for piece in (piece for piece in pieces if not paths[piece].exists()):
        if time.monotonic() - began > seconds:
            raise SystemExit("to be continued: give the same command again")
        name, start = piece
        members = order[start : min(start + PIECE, wanted[name])].tolist()
        pixels = [image for (image,) in whole.batches([[i] for i in members], 0)]
        treated = [np.ascontiguousarray(TREATMENTS.get(name, lambda x: x)(x)) for x in pixels]
        network = networks[torch.bfloat16 if name == BFLOAT16 else torch.float32]
        batches = [treated[i : i + BATCH] for i in range(0, len(treated), BATCH)]
        features = detect(batches, {"inception": network}, name)
        write(paths[piece], FeatureFile(features, {"inception": network.tags}))
        click.echo(f"{paths[piece].name} after {time.monotonic() - began:.0f} s")
    found = {
        name: np.concatenate([read(paths[piece]).features["inception"] for piece in pieces if piece[0] == name])
        for name in wanted
    }
    text = f"{TREATED} images against {COUNT - TREATED}\n\n{table(found)}\n\n{hardware()}\n"
    (out / "table.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
