"""Image sets: what images there are, whether all of them can be read, and their pixels, decoded in parallel.

Every image becomes RGB, uint8 [H, W, 3]: grey is repeated in the three channels, palettes and CMYK are converted,
an alpha channel is dropped (as PIL's convert("RGB") does, and the usual FID tools with it), an EXIF orientation is not
applied. Images of 16 bits a channel, of floats, or with several frames are not converted but reported.
"""

import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from metrics import distributed
from metrics.files import InputError, one_line
from metrics.images.sources import IMAGE_SUFFIXES, LABELS, Source, open_sources

MAX_PIXELS = 2**26
"""Largest image that is decoded: 8192 x 8192."""
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
CHECK_BATCH = 64


# --- One image ---------------------------------------------------------------------------------------------------


def decode(data: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] uint8 of an encoded image (PNG, JPEG, WebP, npy) or of pixels with 1, 3 or 4 channels.

    Raises:
        InputError: anything wrong with it; the message goes behind the image's name.
    """
    if isinstance(data, np.ndarray):
        return _three_channels(data)
    if data.startswith(b"\x93NUMPY"):
        return _three_channels(_read_npy(data))
    return _with_pil(data, lambda image: np.asarray(image.convert("RGB")))


def _three_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]


def _read_npy(data: bytes) -> NDArray[np.uint8]:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
            raise InputError(f"is {dtype} {shape}, expected uint8 [H, W, 3]")
        _check_size(shape[1], shape[0])
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError as err:
        raise err if isinstance(err, InputError) else InputError(f"is broken ({one_line(err)})") from err


def _with_pil(data: bytes, use: Callable[[PIL.Image.Image], Any]) -> Any:
    if not data:
        raise InputError("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, judged below, and of how palettes hold transparency
            with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                _check_size(*image.size)
                if image.mode not in MODES or any("16" in str(tile.args) for tile in getattr(image, "tile", ())):
                    raise InputError(f"has more than 8 bits a channel (mode {image.mode})")
                frames = getattr(image, "n_frames", 1)
                if frames > 1:
                    raise InputError(f"has {frames} frames, expected one")
                return use(image)
    except InputError:
        raise
    except PIL.Image.DecompressionBombError:
        raise InputError(f"is larger than {MAX_PIXELS} pixels") from None
    except PIL.UnidentifiedImageError:
        raise InputError("is no PNG, JPEG, WebP or npy, or its header is broken") from None
    except Exception as err:  # Pillow's decoders raise nearly anything on broken data
        raise InputError(f"is broken ({one_line(err)})") from err


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(f"is {width} x {height}, empty or larger than {MAX_PIXELS} pixels")


@dataclass(frozen=True)
class _Finding:
    """What a check of one image found: sha256 of its content, or what is wrong."""

    sha256: bytes = b""
    problem: str = ""
    lossy: bool = False
    alpha: bool = False


def _inspect(data: bytes | NDArray[np.uint8]) -> _Finding:
    """Check an image. A PNG is believed by the checksums of its parts; what has none is decoded."""
    if isinstance(data, np.ndarray):
        digest = hashlib.sha256(str(data.shape).encode())
        digest.update(data.tobytes())
        return _Finding(digest.digest(), alpha=data.shape[2] == 4)
    sha256 = hashlib.sha256(data).digest()
    if data.startswith(b"\x93NUMPY"):
        return _Finding(sha256, alpha=_read_npy(data).shape[2:] == (4,))
    return _with_pil(data, lambda image: _verified(image, sha256, data))


def _verified(image: PIL.Image.Image, sha256: bytes, data: bytes) -> _Finding:
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.format == "PNG":
        image.verify()
        return _Finding(sha256, alpha=alpha)
    image.load()
    return _Finding(sha256, lossy=image.format == "JPEG" or b"VP8L" not in data[:64], alpha=alpha)


# --- Image sets --------------------------------------------------------------------------------------------------


class ImageSet:
    """Images of one or several sources, in order: sources as given, names sorted within each.

    The images are checked, all of them, when their digest, number or pixels are first asked for. In several processes
    each checks its share, so all must ask.

    Attributes:
        names: one per image; behind the source's own name where there are several sources.
        digest: hex sha256 over the content of the images in order, whatever contains them and is beside them.
        labels: class numbers [N] int64 from `dataset.json`, an npz's `arr_1` or a folder per class; None where unknown.
        warnings: what makes results less comparable, for people.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        items: NDArray[np.int64],
        skip_bad: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self._sources, self._items, self._skip_bad, self._notes = sources, items, skip_bad, notes

    def subset(self, num: int, seed: int | None = None) -> "ImageSet":
        """`num` images in order: drawn at random without replacement, or the first ones when `seed` is None.

        Raises InputError when there are fewer.
        """
        total = len(self._items)
        if not 1 <= num <= total:
            raise InputError(f"{self._where}: holds {total} images, so {num} cannot be taken; lower --num")
        if seed is None:
            kept = self._items[:num]
            note = f"took the first {num} of {total} images; --seed takes a random subset" if num < total else ""
        else:
            kept = self._items[np.sort(np.random.default_rng(seed).choice(total, num, replace=False))]
            note = f"took {num} of {total} images at random (seed {seed})" if num < total else ""
        return ImageSet(self._sources, kept, self._skip_bad, [*self._notes, *filter(None, [note])])

    def __len__(self) -> int:
        return len(self._checked[0])

    @cached_property
    def names(self) -> list[str]:
        return [self._name(item) for item in self._checked[0]]

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(b"".join(finding.sha256 for finding in self._checked[1])).hexdigest()

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        per_source = [_labels(source) for source in self._sources]
        if any(labels is None for labels in per_source):
            per_source = _folder_classes(self._sources)
        items = self._checked[0]
        if any(labels is None for labels in per_source) or not len(items):
            return None
        return np.array([per_source[source][index] for source, index in items], np.int64)

    @cached_property
    def warnings(self) -> list[str]:
        _, findings, bad = self._checked
        lossy, alpha = sum(x.lossy for x in findings), sum(x.alpha for x in findings)
        others = sum(source.others for source in self._sources)
        texts = {
            f"{lossy} images are lossy (JPEG or WebP), which moves FID by whole points against PNG": lossy,
            f"{alpha} images have an alpha channel, which is dropped": alpha,
            f"{others} images of other formats are left out; convert them to PNG": others,
            f"{len(bad)} images cannot be used and are left out: {'; '.join(bad)}": bad,
        }
        return [*self._notes, *(f"{self._where}: {text}" for text, applies in texts.items() if applies)]

    def batches(
        self, batches: Sequence[Sequence[int]], num_workers: int | None = None
    ) -> Iterator[list[NDArray[np.uint8]]]:
        """Decoded images [H, W, 3] uint8 of each batch of image numbers, in order, made ahead by worker processes.

        num_workers: how many; None: one per core but one, 0: none, decode here.
        Raises InputError naming an image that passed the check and yet cannot be decoded.
        """
        yield from self.map(decode, batches, num_workers)

    def map(
        self, use: Callable[[Any], Any], batches: Sequence[Sequence[int]], num_workers: int | None = None
    ) -> Iterator[list[Any]]:
        """Like `batches`, with what `use` makes of each image's content (what `decode` takes) in a worker process."""
        workers = max(_cores() - 1, 1) if num_workers is None else num_workers
        items = self._checked[0]
        for results in _in_parallel(_Reader(self._sources, use), [items[list(batch)] for batch in batches], workers):
            for result in results:
                if isinstance(result, str):
                    raise InputError(f"{result}; its file is broken or has changed: make it again or remove it")
            yield results

    @cached_property
    def _checked(self) -> tuple[NDArray[np.int64], list[_Finding], list[str]]:
        """Usable items [N, 2] as (source, entry), what was found of each, and what is wrong with the others."""
        rank, world = distributed.rank(), distributed.world_size()
        shares = [self._items[i : i + CHECK_BATCH] for i in range(0, len(self._items), CHECK_BATCH)]
        mine = list(_in_parallel(_Reader(self._sources, _inspect), shares[rank::world], _cores()))
        everyone = _gather(mine)
        results = [result for i in range(len(shares)) for result in everyone[i % world][i // world]]
        bad = [result for result in results if isinstance(result, str)]
        good = [i for i, result in enumerate(results) if not isinstance(result, str)]
        if bad and (not self._skip_bad or not good):
            raise InputError(
                f"{self._where}: {len(bad)} of {len(results)} images cannot be used: {'; '.join(bad)}. "
                "Make them again, remove them, or leave them out with --skip-bad"
            )
        return self._items[good], [results[i] for i in good], bad

    @property
    def ignored(self) -> list[str]:
        """Files beside the images that are not taken for images, labels apart."""
        return [name for source in self._sources for name in source.ignored]

    @cached_property
    def skipped(self) -> list[str]:
        """Images that cannot be used, each with the reason; always empty without `skip_bad`."""
        return self._checked[2]

    @property
    def _where(self) -> str:
        return ", ".join(str(source.path) for source in self._sources[:3]) + (", ..." if self._sources[3:] else "")

    def _name(self, item: NDArray[np.int64]) -> str:
        return _item_name(self._sources, item)


def open_images(paths: str | Path | Sequence[str | Path], skip_bad: bool = False) -> ImageSet:
    """The images of a folder (with what is below it), zip, tar, compressed tar or npz, or of a list of these.

    A folder may hold archives instead of images; then they are read in the order of their names.

    Args:
        paths: where.
        skip_bad: leave out images that cannot be used instead of raising; they are named in `warnings`.

    Raises:
        InputError: nothing there, no images, a broken or hostile archive. What is wrong with single images is raised
            when the set is first used, in one message for all of them.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    twice = [str(path) for path, count in Counter(path.resolve() for path in given).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]}: given twice; name each source once")
    sources: list[Source] = []
    for path in given:
        found = open_sources(path)
        empty = next((source for source in found if not source.names), None)
        if empty is not None:
            others = f", only {empty.others} of other formats: convert them" if empty.others else "; check the path"
            raise InputError(f"{empty.path}: holds no images ({', '.join(IMAGE_SUFFIXES)}){others}")
        sources += found
    if not sources:
        raise InputError("no path to images was given")
    items = [np.stack([np.full(len(s.names), i), np.arange(len(s.names))], axis=1) for i, s in enumerate(sources)]
    return ImageSet(sources, np.concatenate(items), skip_bad)


def _item_name(sources: Sequence[Source], item: NDArray[np.int64]) -> str:
    source = sources[int(item[0])]
    name = source.names[int(item[1])]
    return f"{source.path.name}/{name}" if len(sources) > 1 else name


# --- Labels ------------------------------------------------------------------------------------------------------


def _labels(source: Source) -> Sequence[int] | NDArray[np.int64] | None:
    """Class of every entry of a source by its own record, None where it has none."""
    content = source.read_labels()
    if content is None or isinstance(content, np.ndarray):
        return content
    where = f"{source.path}: {LABELS}"
    try:
        pairs = json.loads(content)["labels"]
        labels = None if pairs is None else {str(name): int(label) for name, label in pairs}
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise InputError(
            f'{where} is not {{"labels": [[name, class], ...]}} ({one_line(err)}); correct or remove it'
        ) from err
    if labels is None:
        return None
    missing = next((name for name in source.names if name not in labels), None)
    if missing is not None:
        raise InputError(f"{where} has no label of {missing}; add it or remove the file")
    return [labels[name] for name in source.names]


def _folder_classes(sources: Sequence[Source]) -> list[Any]:
    """Classes by the first folder in every name: its number, or its place among the sorted folder names."""
    folders = [[name.split("/")[0] if "/" in name else "" for name in source.names] for source in sources]
    classes = sorted({folder for names in folders for folder in names})
    if "" in classes or len(classes) < 2:
        return [None]
    number = {name: int(name) if all(x.isdecimal() for x in classes) else i for i, name in enumerate(classes)}
    return [[number[folder] for folder in names] for names in folders]


# --- Worker processes --------------------------------------------------------------------------------------------


class _Reader:
    """What a worker does with a share of items: read each and use it; a string says what is wrong with it."""

    def __init__(self, sources: Sequence[Source], use: Callable[[Any], Any]) -> None:
        self.sources, self.use = sources, use

    def __getitems__(self, items: NDArray[np.int64]) -> list[Any]:
        return [self._one(item) for item in items]

    def _one(self, item: NDArray[np.int64]) -> Any:
        try:
            return self.use(self.sources[int(item[0])].read(int(item[1])))
        except InputError as err:
            problem = str(err)
        except Exception as err:
            problem = f"cannot be read ({one_line(err)})"
        return f"{_item_name(self.sources, item)} {problem}"


def _in_parallel(reader: _Reader, shares: Sequence[NDArray[np.int64]], workers: int) -> Iterator[list[Any]]:
    """What the reader makes of each share, in order.

    The results travel through pipes rather than shared memory, which containers keep small.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        reader,  # type: ignore[arg-type]
        batch_sampler=shares,  # type: ignore[arg-type]
        num_workers=min(workers, len(shares)) if len(shares) > 1 else 0,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # leaves the global one alone, which a training loop may depend on
    )
    try:
        yield from loader
    except RuntimeError as err:
        if "DataLoader worker" not in str(err):
            raise
        raise InputError("a decoding process was killed, perhaps for want of memory; use fewer --workers") from err


def _unchanged(batch: list[Any]) -> list[Any]:
    return batch


def _gather(mine: list[Any]) -> list[list[Any]]:
    """Every process's results, in the order of ranks."""
    if distributed.world_size() == 1:
        return [mine]
    import torch.distributed as dist

    everyone: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def _cores() -> int:
    """Cores that this process may use, shared with the other processes that torchrun started here."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
