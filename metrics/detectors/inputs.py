"""What all detectors share: arithmetic without shortcuts, and the check of their input."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from metrics.files import InputError


@contextmanager
def full_precision() -> Iterator[None]:
    """Arithmetic as the tensors' type says: TF32 and bfloat16 shortcuts and autocast are off, whoever switched them on.

    Settings are restored behind it, so that a training loop that measures keeps its own.
    """
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


def check_images(detector: str, images: Tensor) -> None:
    """Raises InputError for anything but uint8 [N, 3, H, W]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise InputError(
            f"detector '{detector}' takes uint8 [N, 3, H, W], got {str(images.dtype).removeprefix('torch.')} "
            f"{list(images.shape)}; repeat the channel of grey images three times"
        )
