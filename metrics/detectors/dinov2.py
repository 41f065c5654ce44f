"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193): the class token of a ViT/14 as features, as FD_DINOv2 has them.

Images are squashed to 224 x 224 bicubically with antialiasing, either as floats that are neither rounded nor clamped
(`torch`, which the EDM2 and autoguidance papers used) or by PIL on 8-bit pixels (`pil`), and the positional embedding
of the 37 x 37 training grid is interpolated to 16 x 16.
"""

import re
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.detectors.network import Network, check_tensors, sent
from metrics.files import InputError

SIZE = 224
PATCH = 14
GRID = SIZE // PATCH
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NORM_EPS = 1e-6
PIECE = 8  # images at a time on a CPU, whose caches hold their activations better than those of more
#: Added to the target size before the scale of the positional embedding is computed, as the released models do.
INTERPOLATE_OFFSET = 0.1
RESIZES = ("torch", "pil")
VECTORS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma")  # of a block
LAYERS = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}  # outputs, inputs, in widths


class DINOv2(Network):
    """A DINOv2 vision transformer, uint8 [N, 3, H, W] of any size -> class tokens [N, width] after the final norm.

    Args:
        state_dict: the released names (`cls_token`, `blocks.0.attn.qkv.weight`, ...); width and depth are read off it.
        num_heads: attention heads; None: width // 64, as in ViT-S/14, ViT-B/14 and ViT-L/14.
        resize: `torch` or `pil`, see the module.
        device: where it runs.
        dtype: of all arithmetic, the resize included (but PIL's); float64 is for reference values.
        name: what the tags call it.

    Raises InputError on tensors that are missing or of another shape, heads that do not divide the width, and another
    resize.
    """

    def __init__(
        self,
        state_dict: Mapping[str, Tensor],
        num_heads: int | None = None,
        resize: str = "torch",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        name: str = "dinov2",
    ) -> None:
        if resize not in RESIZES:
            raise InputError(f"resize '{resize}' of detector '{name}' is unknown, expected one of {', '.join(RESIZES)}")
        state = {key: value for key, value in state_dict.items() if key != "mask_token"}
        self.depth = _check_state(state, name)
        super().__init__(name, state, resize, device, dtype)
        self.dim = state["cls_token"].shape[-1]
        self.num_heads = num_heads or self.dim // 64
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise InputError(f"{self.num_heads} heads do not divide {name}'s width {self.dim}; give num_heads")
        self.parameters = {key: value.to(self.device, dtype) for key, value in state.items()}

    def _prepared(self, images: Tensor) -> Tensor:
        x = sent(resize_pil(images, SIZE) if self.resize == "pil" else images, self.device, self.dtype)
        if x.shape[2:] != (SIZE, SIZE):
            x = F.interpolate(x, size=(SIZE, SIZE), mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, dtype=self.dtype, device=self.device)[:, None, None] for v in (MEAN, STD))
        return (x / 255 - mean) / std

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([self._tokens(piece) for piece in (x.split(PIECE) if x.device.type == "cpu" else [x])])

    def _tokens(self, x: Tensor) -> Tensor:
        p = self.parameters
        x = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=PATCH)
        x = x.flatten(2).transpose(1, 2)  # [N, 256, width]
        x = torch.cat([p["cls_token"].expand(len(x), -1, -1), x], dim=1) + self._positions
        for i in range(self.depth):
            block = f"blocks.{i}"
            x = x + self._attention(self._norm(x, f"{block}.norm1"), f"{block}.attn") * p[f"{block}.ls1.gamma"]
            hidden = F.gelu(self._linear(self._norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))  # [N, 257, 4 * width]
            x = x + self._linear(hidden, f"{block}.mlp.fc2") * p[f"{block}.ls2.gamma"]
        return self._norm(x, "norm")[:, 0]

    @cached_property
    def _positions(self) -> Tensor:
        """Positional embedding [1, 1 + 256, width]: the class token's as it is, the grid's interpolated."""
        embedding = self.parameters["pos_embed"]
        side = round((embedding.shape[1] - 1) ** 0.5)
        grid = embedding[:, 1:].reshape(1, side, side, self.dim).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=(GRID + INTERPOLATE_OFFSET) / side, mode="bicubic", align_corners=False)
        return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, (self.dim,), self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"], NORM_EPS
        )

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])

    def _attention(self, x: Tensor, name: str) -> Tensor:
        qkv = self._linear(x, f"{name}.qkv").unflatten(2, (3, self.num_heads, -1))  # [N, T, 3, heads, channels]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, channels]
        return self._linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), f"{name}.proj")


def resize_pil(images: Tensor, size: int) -> Tensor:
    """PIL's bicubic resize of uint8 [N, 3, H, W] to [N, 3, size, size] uint8."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = [PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BICUBIC) for image in pixels]
    return torch.from_numpy(np.stack([np.array(image) for image in resized])).permute(0, 3, 1, 2)


def _check_state(state: Mapping[str, Tensor], name: str) -> int:
    """Number of blocks; raises InputError when a tensor is missing, superfluous, of another shape or not finite."""
    depth = len({key.split(".")[1] for key in state if re.match(r"blocks\.\d+\.", key)})
    embedding, patches = state.get("cls_token"), state.get("pos_embed")
    if not depth or embedding is None or patches is None or embedding.ndim != 3 or patches.ndim != 3:
        raise InputError(f"these are no {name} weights: expected cls_token, pos_embed, blocks.0.norm1.weight, ...")
    width = embedding.shape[2]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + round((patches.shape[1] - 1) ** 0.5) ** 2, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        **dict.fromkeys(("patch_embed.proj.bias", "norm.weight", "norm.bias"), (width,)),
    }
    for block in (f"blocks.{i}" for i in range(depth)):
        shapes |= {f"{block}.{key}": (width,) for key in VECTORS}
        shapes |= {f"{block}.{key}.weight": (width * out, width * into) for key, (out, into) in LAYERS.items()}
        shapes |= {f"{block}.{key}.bias": (width * out,) for key, (out, _) in LAYERS.items()}
    if stray := sorted(set(state) ^ set(shapes)):
        verb = "lack" if stray[0] in shapes else "hold the unknown"
        raise InputError(f"{name} weights {verb} '{stray[0]}'; expected the released DINOv2 without registers")
    check_tensors(state, shapes, name)
    return depth
