"""Image files to train on: images from anywhere -> centre-cropped PNGs -> VAE latents, and the stream of either.

They lie as the EDM2 tools lay them out: `00000/img00000000.png` ... (or .npy) and `dataset.json` with the labels, in an
uncompressed zip; ours also says in `preparation.json` how it was made. The same images give the same bytes, whatever
the number of processes. Images become RGB as `metrics.images.decoding` says, small ones are enlarged: so does ADM's
preparation, which the published reference statistics rest on. Unusable ones are an error that names them all, before
anything is written, or are left out and listed; other files are listed.
"""

import hashlib
import io
import itertools
import json
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from metrics.files import InputError, explained, folder_lock, write_json
from metrics.files.reading import open_archive, read_entry
from metrics.images import LABELS, ZipSource, decode, open_images, open_sources, own_labels
from metrics.progress import progress
from repro.encoders import Encoder, RGBEncoder, StabilityVAEEncoder
from repro.pixels import decode_png, encode_png, write_zip

PREPARATION = "preparation.json"
PART = 1000  # images that an interruption can cost
BATCH = 50  # images that a worker process takes at once
CACHE_BYTES = 1 << 30


class ImageDataset:
    """A folder or archive of images, or of VAE latents as npy, with labels in `dataset.json`: the EDM2 layout.

    `dataset.json` is {"labels": [["00000/img00000000.png", 3], ...]}; without it, or with null labels, the data are
    unlabelled. Pixels are those that `metrics.images` measures, but 8-bit grey PNGs keep their one channel. All items
    have the shape of the first; a data set of up to 1 GiB is kept in memory once decoded.

    `path` is anything that `metrics.images.open_sources` finds one source in, `encoder` what makes latents of the items
    (None: RGB); without `use_labels` the data count as unlabelled. Raises InputError where nothing is there, an item is
    missing, broken or of another shape, or labels do not fit.
    """

    def __init__(self, path: str | Path, encoder: Encoder | None = None, use_labels: bool = True) -> None:
        self.path, self.encoder = Path(path), encoder or RGBEncoder()
        self._source, *others = open_sources(self.path)
        self.names = self._source.names
        if others:
            raise InputError(f"{path}: holds {1 + len(others)} archives, expected images; name one of the archives")
        if not self.names:
            raise InputError(f"{path}: holds no images or latents; see `repro data convert`")
        self._lock, self._pool = threading.Lock(), ThreadPoolExecutor()
        labels = own_labels(self._source) if use_labels else None
        self.labels = None if labels is None else np.asarray(labels, np.int64)  # class of each item [items], or None
        if self.labels is not None and self.labels.min() < 0:
            raise InputError(f"{self.path}: {LABELS} has negative classes")
        self.label_dim = 0 if self.labels is None else int(self.labels.max()) + 1
        first = self._decode(0)
        self.shape, self.dtype = first.shape, first.dtype
        if first.ndim != 3 or self.shape[1] != self.shape[2]:
            raise InputError(f"{self.path}: {self.names[0]} is {list(self.shape)}, expected a square [C, size, size]")
        self.img_resolution = self.shape[1]
        self.img_channels = self.shape[0] if self.encoder.kind == "rgb" else self.shape[0] // 2
        self._kept = lru_cache(len(self) if len(self) * first.nbytes <= CACHE_BYTES else 0)(self._decode)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over name, size and CRC-32 of every item, and over the labels, whatever contains them."""
        if isinstance(self._source, ZipSource):  # which states them, so that terabytes need not be read
            with zipfile.ZipFile(self._source.path) as archive:
                found = [(entry.filename, entry.file_size, entry.CRC) for entry in map(archive.getinfo, self.names)]
        else:
            contents = (bytes(self._source.read(item)) for item in range(len(self)))
            found = [(name, len(data), zlib.crc32(data)) for name, data in zip(self.names, contents, strict=True)]
        labels = None if self.labels is None else self.labels.tolist()
        return hashlib.sha256(json.dumps([found, labels]).encode()).hexdigest()

    def image(self, item: int) -> NDArray[Any]:
        """Item `item`: uint8 [C, H, W], or float32 for stored latents."""
        image = self._kept(int(item))
        if image.shape != self.shape or image.dtype != self.dtype:
            found = f"{image.dtype} {list(image.shape)}, expected {self.dtype} {list(self.shape)}"
            raise InputError(f"{self.path}: {self.names[item]} is {found} as in {self.names[0]}")
        return image

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] and one-hot labels [N, label_dim] at `positions` of the stream shuffled by `seed`."""
        items = shuffled(seed, positions, len(self))
        images = torch.from_numpy(np.stack(list(self._pool.map(self.image, items))))
        if self.labels is None:
            return images, torch.zeros(len(items), 0)
        return images, F.one_hot(torch.from_numpy(self.labels[items]), self.label_dim).float()

    def _decode(self, item: int) -> NDArray[Any]:
        try:
            with explained("cannot be read"):
                with self._lock:
                    data = self._source.read(item)
                if isinstance(data, bytes) and self.names[item].endswith(".npy"):
                    return np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32, copy=False)
                return np.ascontiguousarray(decode_png(data).transpose(2, 0, 1))
        except InputError as err:
            raise InputError(f"{self.path}: {self.names[item]} {err}; see `repro data check`") from err


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(length)


def shuffled(seed: int, positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Item at each position of an endless stream that shuffles `length` items anew in every pass over them."""
    return np.array([_epoch_order(seed, p // length, length)[p % length] for p in positions.tolist()], np.int64)


def convert(
    source: str | Path, target: str | Path, size: int, skip_bad: bool = False, num_workers: int | None = None
) -> Path:
    """A zip of `size` x `size` PNGs with labels, from whatever `metrics.images.open_images` reads.

    The images are centre crops as ADM's. Labels come from `dataset.json`, an npz's `arr_1`, or one folder per class:
    its number, or its place in sorted order. An interrupted conversion goes on where it stopped.

    Args:
        source: a folder of class folders (ImageNet's `train`, say), any folder, zip, tar or npz of images.
        target: the zip to make, which is returned.
        size: side of the images.
        skip_bad: leave out images that cannot be used, listed in `preparation.json`, instead of raising.
        num_workers: processes that decode; None: one per core but one.

    Raises:
        InputError: nothing to read, unusable images, `target` is there already or was begun from something else.
    """
    target = _unused(target)
    images = open_images(source, skip_bad)
    facts = {"made_from": images.digest, "images": len(images), "size": size, "crop": "center_crop_dhariwal"}
    facts |= {"skipped": images.skipped, "ignored_files": images.ignored, "notes": images.warnings}

    def encoded(items: range) -> Iterable[bytes]:
        batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
        return itertools.chain.from_iterable(images.batches(batches, num_workers, partial(cropped_png, size=size)))

    return _write(target, item_names(len(images)), images.labels, facts, encoded, bytes_per_item=0.5 * 3 * size**2)


def center_crop_dhariwal(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre crop to `size` x `size` as ADM prepares ImageNet: uint8 [H, W, C] -> uint8 [size, size, C].

    Halved by box filter while the shorter side is at least twice the size, then bicubic to the size (Dhariwal and
    Nichol 2021, whose resampling the published networks and reference statistics are bound to).
    """
    picture = PIL.Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], PIL.Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def cropped_png(content: bytes | NDArray[np.uint8], size: int) -> bytes:
    """An encoded image, or pixels, as a PNG of its centre, `size` x `size`, RGB."""
    return encode_png(center_crop_dhariwal(decode(content), size))


def encode(source: str | Path, target: str | Path, encoder: StabilityVAEEncoder, device: str = "cpu") -> Path:
    """A zip of the VAE's posterior means and deviations, float32 npy [8, size/8, size/8], from a zip of PNGs.

    Resumable like `convert`; the same labels. Raises InputError as `convert` does, and where the images are not square
    RGB ones whose side is a multiple of 8.
    """
    target = _unused(target)
    images = ImageDataset(source)
    if images.dtype != np.uint8 or images.img_channels != 3 or images.img_resolution % 8:
        raise InputError(
            f"{source}: holds {images.dtype} {list(images.shape)}, expected uint8 [3, size, size] with size a multiple "
            "of 8; see `repro data convert`"
        )
    facts = {"made_from": images.digest, "images": len(images), "vae": encoder.vae_name, "device": device}
    names = [str(Path(name).with_suffix(".npy")) for name in images.names]

    def encoded(items: range) -> Iterator[bytes]:
        for start in range(0, len(items), encoder.batch_size):
            pixels = torch.from_numpy(np.stack([images.image(i) for i in items[start : start + encoder.batch_size]]))
            for latents in encoder.encode_pixels(pixels.to(device)).cpu().numpy():
                stream = io.BytesIO()
                np.save(stream, latents)
                yield stream.getvalue()

    return _write(target, names, images.labels, facts, encoded, bytes_per_item=0.5 * images.img_resolution**2)


def check(path: str | Path) -> dict[str, Any]:
    """What an archive for training holds: images, shape, dtype, classes and the sizes of the smallest and largest one.

    Raises InputError with everything that is wrong: images that are broken or of another shape, values that are not
    finite, missing labels.
    """
    dataset, problems = ImageDataset(path), []
    for item in progress("check", range(len(dataset))):
        try:
            if not np.isfinite(dataset.image(item)).all():
                problems.append(f"{dataset.names[item]} has values that are not finite")
        except InputError as err:
            problems.append(str(err).removeprefix(f"{dataset.path}: ").removesuffix("; see `repro data check`"))
    if problems:
        raise InputError(f"{dataset.path}: {len(problems)} problems: {'; '.join(problems)}")
    facts: dict[str, Any] = {"images": len(dataset), "shape": list(dataset.shape), "dtype": str(dataset.dtype)}
    if dataset.labels is not None:
        counts = np.bincount(dataset.labels)
        facts |= {"classes": len(counts), "empty_classes": int((counts == 0).sum())}
        facts |= {"smallest_class": int(counts.min()), "largest_class": int(counts.max())}
    return facts | {"digest": dataset.digest}


def item_names(count: int) -> list[str]:
    """What the images of an archive are called, in order."""
    return [f"{i // 1000:05d}/img{i:08d}.png" for i in range(count)]


def labels_entry(names: Sequence[str], labels: Sequence[int] | NDArray[np.integer] | None) -> tuple[str, str]:
    """The entry of an archive with the class of every image; None: unlabelled."""
    pairs = None if labels is None else [[name, int(label)] for name, label in zip(names, labels, strict=True)]
    return LABELS, json.dumps({"labels": pairs})


def _unused(target: str | Path) -> Path:
    target = Path(target)
    if target.suffix != ".zip":
        raise InputError(f"{target}: expected a name that ends in .zip")
    if target.exists() and _facts_of(target) is None:
        raise InputError(f"{target}: is there already; remove it or choose another name")
    return target


def _facts_of(target: Path) -> Any:
    """What a zip of ours was made from; None where there is no such zip."""
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), open_archive(target) as archive:
        if archive.getinfo(PREPARATION).file_size < 2**20:
            return json.loads(read_entry(archive, PREPARATION))
    return None


def _write(
    target: Path,
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    facts: dict[str, Any],
    encoded: Callable[[range], Iterable[bytes]],
    bytes_per_item: float,
) -> Path:
    """Make the entries `names` in parts, then join them; what an interrupted run has finished is taken over."""
    parts = target.with_name(f"{target.name}.parts")
    size = tqdm.format_sizeof(len(names) * bytes_per_item, "B")
    print(f"{target}: {len(names):,} images, about {size}, twice that until the parts are joined")
    with folder_lock(target):
        if target.exists():
            if _facts_of(target) != facts:
                raise InputError(f"{target}: is there already, made from something else; remove it or name another")
            shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed at its very end
            return target
        begun = json.loads((parts / PREPARATION).read_text()) if (parts / PREPARATION).exists() else facts
        for key, value in facts.items():
            if (was := begun.get(key)) != value:
                raise InputError(f"{parts}: was begun with {key} {was!r}, not {value!r}; remove it or go on with that")
        write_json(parts / PREPARATION, facts)
        pieces = {parts / f"{i:08d}.zip": range(len(names))[i : i + PART] for i in range(0, len(names), PART)}
        try:
            with progress(target.name, total=len(names)) as bar:
                for path, piece in pieces.items():
                    if not path.exists():
                        write_zip(path, zip([names[i] for i in piece], encoded(piece), strict=True))
                    bar.update(len(piece))
        except InputError:
            if not any(parts.glob("*.zip")):
                shutil.rmtree(parts)
            raise
        notes = [labels_entry(names, labels), (PREPARATION, json.dumps(facts, indent=1))]
        write_zip(target, itertools.chain(_joined(pieces), notes))
        shutil.rmtree(parts)
    return target


def _joined(paths: Collection[Path]) -> Iterator[tuple[str, bytes]]:
    for path in progress("join", paths, unit="part"):
        with zipfile.ZipFile(path) as part:
            yield from ((name, part.read(name)) for name in part.namelist())
