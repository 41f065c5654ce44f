"""Images that a program holds or makes: what an array, a tensor, a batch of a loader or a generator may be."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.files import InputError
from metrics.images.decoding import MODES
from metrics.images.sets import ImageSet
from metrics.images.sources import Source

EXPECTED = "expected uint8, 0 to 255: a tensor [N, 3, H, W], or an array [N, H, W, 3], grey with 1 channel"
NAME = "the images given"


class MemorySource(Source):
    """The images of one array [N, H, W, C] or tensor [N, C, H, W]."""

    in_memory = True

    def __init__(self, images: NDArray[np.uint8] | Tensor) -> None:
        super().__init__(Path(NAME), {})
        self._pixels = as_tensor(images).cpu()  # [N, 3, H, W]
        self.names = [f"{index:0{len(str(len(self._pixels) - 1))}d}" for index in range(len(self._pixels))]

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._pixels[index].permute(1, 2, 0).numpy())


def open_array(images: NDArray[np.uint8] | Tensor) -> ImageSet:
    """The images of an array or a tensor; raises InputError where it is none of images."""
    source = MemorySource(images)
    return ImageSet([source], np.stack([np.zeros(len(source.names), np.int64), np.arange(len(source.names))], axis=1))


def is_array(images: object) -> bool:
    """Whether something is an array or a tensor: images that are all there at once."""
    return isinstance(images, np.ndarray | Tensor)


def as_tensor(images: Any) -> Tensor:
    """Several images as uint8 [N, 3, H, W], where they are; an alpha channel is dropped, and grey repeated.

    Raises InputError for another type or shape.
    """
    channels = 1 if isinstance(images, Tensor) else 3
    if not is_array(images) or images.ndim != 4 or images.dtype not in (torch.uint8, np.dtype(np.uint8)):
        kind = f"{str(images.dtype).removeprefix('torch.')} {[*images.shape]}" if is_array(images) else type(images)
        hint = "; of floats to 1: (255 * x).round().clamp(0, 255).to(torch.uint8)" if "float" in str(kind) else ""
        raise InputError(f"{NAME} are {kind}, {EXPECTED}{hint}")
    if not len(images) or 0 in images.shape or images.shape[channels] not in (1, 3, 4):
        kind = "a tensor" if channels == 1 else "an array"
        raise InputError(f"{NAME} are {kind} {[*images.shape]}, {EXPECTED}")
    if isinstance(images, Tensor):
        x = images
    else:
        x = torch.from_numpy(images if images.flags.writeable else images.copy()).permute(0, 3, 1, 2)
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]


def batches(images: Any, most: int, num: int | None = None) -> Iterator[Tensor]:
    """Batches uint8 [n, 3, H, W] of at most `most` images, in order, of an array or tensor, or of anything to iterate.

    That may give batches, single images ([H, W, C] arrays, [C, H, W] tensors, PIL's), or either with something behind
    it in a tuple or list, such as labels, as data sets and loaders do. Single images are put together where they are
    of one size. With `num` the first so many are taken, and no batch is asked for behind them. Raises InputError where
    there are fewer, and for anything else.
    """
    if num is not None and num < 1:
        raise InputError(f"{NAME}: {num} of them cannot be taken; take at least 2")
    taken = 0
    for batch in _batches(images, most):
        batch = batch if num is None else batch[: num - taken]
        taken += len(batch)
        yield batch
        if taken == num:
            return
    if num is not None:
        raise InputError(f"{NAME}: are {taken}, so {num} cannot be taken")


def _batches(images: Any, most: int) -> Iterator[Tensor]:
    waiting: list[Tensor] = []
    for item in [images] if is_array(images) and images.ndim == 4 else _items(images):
        single = _single(item)
        if waiting and (single is None or len(waiting) == most or single.shape != waiting[0].shape):
            yield torch.cat(waiting)
            waiting = []
        if single is not None:
            waiting.append(single)
        elif is_array(item):
            yield from as_tensor(item).split(most)
        else:
            raise InputError(f"{NAME}: {type(item)} is no batch of images, {EXPECTED}")
    if waiting:
        yield torch.cat(waiting)


def _items(images: Any) -> Iterator[Any]:
    """What there is to iterate, labels apart."""
    is_dataset = not isinstance(images, Iterable) and hasattr(images, "__getitem__") and hasattr(images, "__len__")
    if isinstance(images, str | bytes | Mapping) or not (is_dataset or isinstance(images, Iterable)):
        raise InputError(f"{NAME} are {type(images)}, {EXPECTED}, or something that gives such")
    for item in (images[index] for index in range(len(images))) if is_dataset else images:
        yield from _without_labels(item)


def _without_labels(item: Any) -> Iterator[Any]:
    if not isinstance(item, tuple | list) or not item:
        yield item
    elif all(isinstance(part, tuple | list) or _is_image(part) for part in item):  # several, each with its label or not
        for part in item:
            yield from _without_labels(part)
    elif len(item) > 1 and all(is_array(part) and part.ndim == 4 for part in item):
        raise InputError(f"{NAME}: come {len(item)} batches at a time; give the one to measure")
    else:
        yield item[0]


def _is_image(item: Any) -> bool:
    return isinstance(item, PIL.Image.Image) or (is_array(item) and item.ndim == 3)


def _single(item: Any) -> Tensor | None:
    """An image as [1, 3, H, W]; None where it is something else."""
    if isinstance(item, PIL.Image.Image):
        if item.mode not in MODES:
            raise InputError(f"{NAME}: one has more than 8 bits a channel (mode {item.mode})")
        return as_tensor(np.array(item.convert("RGB"))[None])
    return as_tensor(item[None]) if _is_image(item) else None
