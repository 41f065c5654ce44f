"""What the networks of this package share: how they compute, the tags that say so, and the check of their images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metrics.detectors.weights import digest
from metrics.files import InputError
from metrics.precision import full_precision


class Network:
    """Detector `name` whose weights are `state`; `dtype` is that of all arithmetic, the resize included."""

    def __init__(
        self, name: str, state: Mapping[str, Tensor], resize: str, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.name, self.resize, self.device, self.dtype = name, resize, torch.device(device), dtype
        tags = {"detector": name, "weights_sha256": digest(state), "resize": resize}
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
            return self._features(self._prepared(images))

    def _prepared(self, images: Tensor) -> Tensor:
        """Resized and normalised images."""
        raise NotImplementedError

    def _features(self, x: Tensor) -> Tensor:
        raise NotImplementedError
