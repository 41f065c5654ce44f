"""Training data: images from anywhere -> centre-cropped PNGs -> VAE latents, as zips in the layout of the EDM2 tools.

Such a zip is uncompressed and holds `00000/img00000000.png` ... (or .npy) and `dataset.json` with the labels; ours also
says in `preparation.json` how it was made. The same images give the same bytes, whatever the number of processes.

What happens to images that are not plain RGB: grey is repeated in the three channels, palettes and CMYK are converted,
an alpha channel is dropped, EXIF orientations are not applied, smaller images are enlarged: all as ADM's preparation,
which the published reference statistics rest on, does it. Broken ones, and those with 16 bits or several frames, are an
error that names them all, before anything is written, or are left out and listed. Other files are counted and named.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metrics.files import InputError, atomic_write, folder_lock, write_json
from metrics.images import ImageSet, decode, open_images
from repro.data import LABELS, ImageDataset, center_crop_dhariwal
from repro.encoders import StabilityVAEEncoder

PREPARATION = "preparation.json"
PART = 1000  # images that an interruption can cost
BATCH = 50  # images that a worker process takes at once


def convert(
    source: str | Path, target: str | Path, size: int, skip_bad: bool = False, num_workers: int | None = None
) -> Path:
    """A zip of `size` x `size` PNGs with labels, from whatever `metrics.images.open_images` reads.

    Labels come from `dataset.json`, an npz's `arr_1`, or one folder per class, numbered in sorted order. An
    interrupted conversion goes on where it stopped.

    Args:
        source: a folder of class folders (ImageNet's `train`, say), any folder, zip, tar or npz of images.
        target: the zip to make.
        size: side of the images, by ADM's centre crop.
        skip_bad: leave out images that cannot be used, listed in `preparation.json`, instead of raising.
        num_workers: processes that decode; None: one per core but one.

    Raises:
        InputError: nothing to read, unusable images, `target` is there already or was begun from something else.
    """
    target = Path(target)
    _check_target(target)
    images = open_images(source, skip_bad)
    facts = {"made_from": images.digest, "images": len(images), "size": size, "crop": "center_crop_dhariwal"}
    facts |= {"skipped": images.skipped, "ignored_files": images.ignored, "notes": images.warnings}
    names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(images))]

    def encoded(items: range) -> Iterator[bytes]:
        batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
        for part in images.map(partial(prepare, size=size), batches, num_workers):
            yield from part

    _write(target, names, _labels(images), facts, encoded, bytes_per_item=0.5 * 3 * size**2)
    return target


def prepare(content: bytes | NDArray[np.uint8], size: int) -> bytes:
    """An encoded image, or pixels, as a PNG of its centre, `size` x `size`, RGB."""
    pixels = center_crop_dhariwal(decode(content), size)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "png", compress_level=1)
    return stream.getvalue()


def _labels(images: ImageSet) -> list[int] | None:
    return None if images.labels is None else [int(label) for label in images.labels]


def encode(
    source: str | Path,
    target: str | Path,
    encoder: StabilityVAEEncoder,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
) -> Path:
    """A zip of the VAE's posterior means and deviations, float32 npy [8, size/8, size/8], from a zip of PNGs.

    Resumable like `convert`; the same labels.

    Raises:
        InputError: `source` is no archive of square RGB images whose side is a multiple of 8, or `target` is there
            already or was begun from something else.
    """
    target = Path(target)
    _check_target(target)
    images = ImageDataset(source)
    if images.dtype != np.uint8 or images.img_channels != 3 or images.img_resolution % 8:
        raise InputError(
            f"{source}: holds {images.dtype} {list(images.shape)}, expected uint8 [3, size, size] with size a multiple "
            f"of 8; see `repro data convert`"
        )
    facts = {"made_from": images.digest, "images": len(images), "vae": encoder.vae_name, "device": str(device)}
    names = [str(Path(name).with_suffix(".npy")) for name in images.names]

    def encoded(items: range) -> Iterator[bytes]:
        for start in range(0, len(items), batch_size):
            pixels = torch.from_numpy(np.stack([images.image(i) for i in items[start : start + batch_size]]))
            for latents in encoder.encode_pixels(pixels.to(device)).cpu().numpy():
                stream = io.BytesIO()
                np.save(stream, latents.astype(np.float32))
                yield stream.getvalue()

    labels = None if images.labels is None else [int(label) for label in images.labels]
    _write(target, names, labels, facts, encoded, bytes_per_item=4 * 8 * (images.img_resolution // 8) ** 2)
    return target


def check(path: str | Path) -> dict[str, Any]:
    """What an archive for training holds: images, shape, dtype, classes and the sizes of the smallest and largest one.

    Raises:
        InputError: with everything that is wrong: broken images or such of another shape, values that are not finite,
            missing labels.
    """
    dataset = ImageDataset(path)
    problems = []
    for item in tqdm(range(len(dataset)), desc="check", unit="img", disable=None):
        try:
            image = dataset.image(item)
            if image.dtype != np.uint8 and not np.isfinite(image).all():
                problems.append(f"{dataset.names[item]} has values that are not finite")
        except InputError as err:
            problems.append(str(err).removeprefix(f"{dataset.path}: "))
    facts: dict[str, Any] = {"images": len(dataset), "shape": list(dataset.shape), "dtype": str(dataset.dtype)}
    if dataset.labels is not None:
        counts = np.bincount(dataset.labels)
        facts |= {"classes": len(counts), "empty_classes": int((counts == 0).sum())}
        facts |= {"smallest_class": int(counts.min()), "largest_class": int(counts.max())}
    if problems:
        raise InputError(f"{dataset.path}: {len(problems)} problems: {'; '.join(problems)}")
    return facts | {"digest": dataset.digest}


# --- Writing -------------------------------------------------------------------------------------------------------


def _check_target(target: Path) -> None:
    if target.suffix != ".zip":
        raise InputError(f"{target}: expected a name that ends in .zip")
    if target.exists():
        raise InputError(f"{target}: is there already; remove it or choose another name")


def _write(
    target: Path,
    names: Sequence[str],
    labels: Sequence[int] | None,
    facts: dict[str, Any],
    encoded: Callable[[range], Iterable[bytes]],
    bytes_per_item: float,
) -> None:
    """Make the entries `names` in parts, then join them; finished parts of an interrupted run are taken over."""
    parts = target.with_name(f"{target.name}.parts")
    size = tqdm.format_sizeof(len(names) * bytes_per_item, "B")
    print(f"{target}: {len(names):,} images, about {size}, twice that until the parts are joined")
    with folder_lock(target):
        _check_origin(parts, target, facts)
        pieces = [range(i, min(i + PART, len(names))) for i in range(0, len(names), PART)]
        paths = [parts / f"{piece.start:08d}.zip" for piece in pieces]
        with tqdm(total=len(names), desc=target.name, unit="img", disable=None) as bar:
            for piece, path in zip(pieces, paths, strict=True):
                if not path.exists():
                    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                        for i, data in zip(piece, encoded(piece), strict=True):
                            archive.writestr(zipfile.ZipInfo(names[i]), data)  # ZipInfo: no time stamp of today
                bar.update(len(piece))
        pairs = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
        with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for path in tqdm(paths, desc="join", unit="part", disable=None):
                with zipfile.ZipFile(path) as part:
                    for entry in part.infolist():
                        archive.writestr(zipfile.ZipInfo(entry.filename), part.read(entry))
            archive.writestr(zipfile.ZipInfo(LABELS), json.dumps({"labels": pairs}))
            archive.writestr(zipfile.ZipInfo(PREPARATION), json.dumps(facts, indent=1))
        shutil.rmtree(parts)


def _check_origin(parts: Path, target: Path, facts: dict[str, Any]) -> None:
    """Begin a folder of parts, or refuse one that was begun from something else."""
    path = parts / PREPARATION
    facts = json.loads(json.dumps(facts))
    if not path.exists():
        write_json(path, facts)
        return
    begun = json.loads(path.read_text())
    if begun != facts:
        key = next(name for name in facts if begun.get(name) != facts[name])
        raise InputError(
            f"{parts}: was begun with {key} {begun.get(key)!r}, this is {facts[key]!r}; remove it, or go on with "
            f"what {target.name} was begun from"
        )
