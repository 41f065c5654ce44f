"""What the networks of this package share: how they compute, the tags that say so, and the check of their images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metrics.detectors.weights import digest
from metrics.files import InputError
from metrics.memory import Pieces
from metrics.precision import full_precision


class Network:
    """Detector `name` whose weights are `state`; `dtype` is that of all arithmetic, the resize included."""

    #: uint8 images -> resized and normalised ones, and these -> [N, dim].
    _prepared: Callable[[Tensor], Tensor]
    _features: Callable[[Tensor], Tensor]

    def __init__(
        self, name: str, state: Mapping[str, Tensor], resize: str, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.name, self.resize, self.device, self.dtype = name, resize, torch.device(device), dtype
        tags = {"detector": name, "weights_sha256": digest(state), "resize": resize}
        self._pieces = Pieces(f"detector '{name}'")
        self.tags: Mapping[str, Any] = tags | {"dtype": str(dtype).removeprefix("torch."), "tf32": "off"}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [N, dim] of images of any size; raises InputError for anything but uint8 [N, 3, H, W]."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise InputError(
                f"detector '{self.name}' takes uint8 [N, 3, H, W], got {str(images.dtype).removeprefix('torch.')} "
                f"{list(images.shape)}; repeat the channel of grey images three times"
            )
        with full_precision():
            return self._pieces(lambda piece: self._features(self._prepared(piece)), images)


def sent(images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Images on the device in its arithmetic's type; to a GPU they go as bytes, while it still works on others."""
    if device.type == "cuda" and images.device.type == "cpu":
        images = images.pin_memory().to(device, non_blocking=True)
    return images.to(device, dtype)


def check_tensors(state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], name: str) -> None:
    """Raises InputError unless the tensors of `state`, the weights of `name`, have these shapes and are finite."""
    for key, shape in shapes.items():
        if state[key].shape != tuple(shape):
            raise InputError(f"{name} weights: '{key}' is {list(state[key].shape)}, expected {list(shape)}")
        if not bool(torch.isfinite(state[key]).all()):
            raise InputError(f"{name} weights hold NaN or infinity in '{key}'; download them again")
