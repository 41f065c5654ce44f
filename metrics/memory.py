"""Batches in pieces that fit the memory of a GPU; memory of the CPU that is used again."""

import ctypes
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from metrics.files import InputError

#: Parameters of glibc's mallopt, and the largest value that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST = -1, -3, 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc, where it is the C library, keep freed blocks of up to 2 GiB for the next ones.

    It would hand those of a batch's activations back, and a third of the time go to page faults to get them again.
    This is of the whole process, so that the command lines do it, and what is used from Python does not.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)


class Pieces:
    """Calls on the images of a batch, at most `size` at once (None: all).

    Where the GPU's memory runs out, `size` is halved from then on, once, and said so: results agree within the
    tolerance of another batch size. Raises InputError where half of it is still too many. `what` works, in words.
    """

    def __init__(self, what: str, size: int | None = None) -> None:
        self.what, self.size, self._halved = what, size, False

    def __call__(self, call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """`call` of the pieces of a batch [N, ...], joined: [N, ...]."""
        found: list[Tensor] = []
        done = 0
        while done < len(batch) or not found:
            piece = batch[done : done + (self.size or len(batch))]
            try:
                found.append(call(piece))
                done += len(piece)
            except torch.OutOfMemoryError as err:
                self._halve(len(piece), err)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _halve(self, count: int, err: torch.OutOfMemoryError) -> None:
        if self._halved and count > (self.size or 0):
            return  # another thread has halved it since
        if self._halved or count < 2:
            remedy = "leave it more, or take smaller batches"
            raise InputError(f"{self.what}: {count} images at once do not fit the GPU's memory; {remedy}") from err
        self.size, self._halved = count // 2, True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        text = f"{self.what}: {count} images at once do not fit the GPU's memory; {self.size} at once from now on"
        tqdm.write(text, file=sys.stderr)
