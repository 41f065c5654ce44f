"""Networks folded for inference: the same function, with everything that is constant gone into the weights.

Weight normalisation, fan-in scaling, learned gains and the factors of magnitude-preserving sums are the same in every
evaluation, so that they are multiplied into the stored weights once. Outputs agree within rounding.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.networks import SILU_MAGNITUDE, Block, MPConv, Precond, convolve, normalize, resample, scaled


class FoldedConv(nn.Module):
    """An `MPConv` whose weight is what its `forward` multiplies with, convolutions in `dtype` and channels last."""

    def __init__(self, layer: MPConv, gain: Tensor | float, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        w = scaled(layer.weight.to(device), gain.to(device) if isinstance(gain, Tensor) else gain)
        w = w if w.ndim == 2 else w.to(dtype).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(w, requires_grad=False)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """`gain` is in the weight already."""
        return convolve(x, self.weight)


class FoldedBlock(nn.Module):
    """A `Block` without its constants, with two places where a bad version differs.

    `dropout`, where it is set, acts where the block's own does in training; `attention` is asked with queries, keys
    and values, each [N, heads, HW, c], as normalised.
    """

    one: Tensor | None

    def __init__(self, block: Block, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.flavor, self.resample_mode, self.num_heads = block.flavor, block.resample_mode, block.num_heads
        self.clip_act = block.clip_act
        self.dropout: Callable[[Tensor], Tensor] | None = None
        self.attention: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention
        self.main_share, residual_share = blend(block.res_balance)
        self.skip_share, attn_share = blend(block.attn_balance)
        one = None if dtype == torch.float32 else torch.ones([], dtype=dtype, device=device)
        self.register_buffer("one", one, persistent=False)

        def folded(layer: MPConv, gain: Tensor | float = 1.0) -> FoldedConv:
            return FoldedConv(layer, gain, dtype, device)

        self.conv_res0 = folded(block.conv_res0, 1 / SILU_MAGNITUDE)
        self.emb_linear = folded(block.emb_linear, block.emb_gain)
        self.conv_res1 = folded(block.conv_res1, residual_share / SILU_MAGNITUDE)
        skip_gain = self.main_share if block.flavor == "dec" else 1.0
        self.conv_skip = None if block.conv_skip is None else folded(block.conv_skip, skip_gain)
        self.attn_qkv = self.attn_proj = None
        if block.attn_qkv is not None and block.attn_proj is not None:
            self.attn_qkv = folded(block.attn_qkv)
            # Reorder the outputs: heads x channels x 3 -> 3 x heads x channels.
            w = self.attn_qkv.weight.unflatten(0, (self.num_heads, -1, 3)).permute(2, 0, 1, 3, 4, 5).flatten(0, 2)
            self.attn_qkv.weight.data = w.contiguous(memory_format=torch.channels_last)
            self.attn_proj = folded(block.attn_proj, attn_share)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = resample(x, self.resample_mode)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=[1])

        y = self.conv_res0(F.silu(x))
        c = self.emb_linear(emb) + 1
        y = F.silu(y.mul_(c[:, :, None, None].to(y.dtype)), inplace=True)
        if self.dropout is not None:
            y = self.dropout(y)
        y = self.conv_res1(y)

        if self.flavor == "dec" and self.conv_skip is not None:
            x = y.add_(self.conv_skip(x))
        else:
            x = self.add_scaled(y, x, self.main_share)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = self.add_scaled(self.attn_proj(self.attend(self.attn_qkv(x))), x, self.skip_share)
        return x if self.clip_act is None else x.clip_(-self.clip_act, self.clip_act)

    def add_scaled(self, y: Tensor, x: Tensor, factor: float) -> Tensor:
        """y + factor x, written to `y`; in float16 too the factor is not rounded, as `add_` does on a CPU."""
        return y.add_(x, alpha=factor) if self.one is None else y.addcmul_(x, self.one, value=factor)

    def attend(self, qkv: Tensor) -> Tensor:
        """`Block.attend` on channels that come as 3 x heads x channels: in channels-last memory all views are free."""
        n, _, h, w = qkv.shape
        y = qkv.permute(0, 2, 3, 1).reshape(n, h * w, 3, self.num_heads, -1)
        q, k, v = normalize(y, dim=[4]).permute(2, 0, 3, 1, 4)  # each [N, heads, HW, c]
        y = self.attention(q, k, v)
        return y.transpose(1, 2).reshape(n, h, w, -1).permute(0, 3, 1, 2)


def blend(t: float) -> tuple[float, float]:
    """Factors of a and b in mp_sum(a, b, t) (EDM2 eq. 88)."""
    norm = math.sqrt((1 - t) ** 2 + t**2)
    return (1 - t) / norm, t / norm


@torch.no_grad()
def fold(network: Precond, device: torch.device | str = "cpu") -> Precond:
    """A copy for inference of `network` on `device`, weights in the dtype used there; a folded one is moved only.

    One layer at a time: beyond the network as it is (which may be a file in memory-mapped form), the host holds no more
    than a layer of a copy that goes to another device.
    """
    kept: tuple[Any, ...] = (*network.parameters(), *network.buffers(), network.encoder)
    folded = copy.deepcopy(network, memo={id(x): x for x in kept}).eval()  # of the very same
    dtype = network.dtype(device)
    for parent in list(folded.modules()):
        for name, module in parent.named_children():
            if isinstance(module, Block):
                setattr(parent, name, FoldedBlock(module, dtype, device))
            elif isinstance(module, MPConv) and not isinstance(parent, Block):
                gain = folded.unet.out_gain if module is folded.unet.out_conv else 1.0
                setattr(parent, name, FoldedConv(module, gain, dtype, device))
    return folded.to(device)
