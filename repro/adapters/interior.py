"""What of a diffusers network can be made worse from outside: a copy of it, its self-attention, its weights.

DiT transformers and UNet2D models alone; what else is adapted is a function that nobody here can look into.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from repro.adapters.diffusers import NETWORKS, Answer
from repro.adapters.parameterisations import Adapted

#: Modules of diffusers that embed noise level and labels, by class.
EMBEDDINGS = ("TimestepEmbedding", "LabelEmbedding")


class SelfAttention:
    """Self-attention of a diffusers `Attention` module, as its processor, with an exchangeable core.

    `attention` is asked with queries, keys and values, each [N, heads, HW, c], as they enter the dot product.
    """

    def __init__(self) -> None:
        self.attention: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention

    def __call__(self, module: Any, x: Tensor, *_: Any, temb: Tensor | None = None, **__: Any) -> Tensor:
        """[N, HW, C] or [N, C, H, W] -> the same shape."""
        residual, shape = x, x.shape
        if module.spatial_norm is not None:
            x = module.spatial_norm(x, temb)
        if len(shape) == 4:
            x = x.flatten(2).transpose(1, 2)
        if module.group_norm is not None:
            x = module.group_norm(x.transpose(1, 2)).transpose(1, 2)
        q, k, v = (
            project(x).unflatten(2, (module.heads, -1)).transpose(1, 2)
            for project in (module.to_q, module.to_k, module.to_v)
        )
        q = q if module.norm_q is None else module.norm_q(q)
        k = k if module.norm_k is None else module.norm_k(k)
        y = self.attention(q, k, v).transpose(1, 2).flatten(2).to(q.dtype)
        for layer in module.to_out:
            y = layer(y)
        if len(shape) == 4:
            y = y.transpose(1, 2).reshape(shape)
        y = y + residual if module.residual_connection else y
        scaled: Tensor = y / module.rescale_output_factor
        return scaled


def network_of(adapted: object) -> nn.Module | None:
    """The DiT transformer or UNet2D model behind an adapter; None where something else is there."""
    answer = adapted.model if isinstance(adapted, Adapted) else None
    network = answer.network if isinstance(answer, Answer) else answer
    return network if isinstance(network, nn.Module) and type(network).__name__ in NETWORKS else None


def reachable(adapted: Any) -> Any:
    """A copy of the very same tensors, whose self-attention can be exchanged (`attention_of`)."""
    tensors = {id(tensor): tensor for tensor in (*adapted.parameters(), *adapted.buffers())}
    twin = copy.deepcopy(adapted, memo=tensors | {id(adapted.encoder): adapted.encoder})
    for _, module in _attention(twin):
        module.set_processor(SelfAttention())
    return twin


def attention_of(adapted: object) -> dict[str, SelfAttention]:
    """The self-attention of what `reachable` returned, by the module's name: `transformer_blocks.0.attn1`."""
    return {name: module.processor for name, module in _attention(adapted)}


def weights_of(adapted: object) -> Iterator[nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers, but for those that embed noise level and labels."""
    network = network_of(adapted)
    assert network is not None
    embedding = {
        id(inner) for module in network.modules() if type(module).__name__ in EMBEDDINGS for inner in module.modules()
    }
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in embedding:
            yield module


def downsampling(adapted: object) -> int:
    """What the side of an image must be a multiple of: the patch of a transformer, 2^levels of a UNet."""
    network: Any = network_of(adapted)
    if NETWORKS[type(network).__name__] == "transformer":
        return int(network.config.patch_size)
    return int(2 ** sum(block.downsamplers is not None for block in network.down_blocks))


def _attention(adapted: object) -> Iterator[tuple[str, Any]]:
    network = network_of(adapted)
    assert network is not None
    for name, module in network.named_modules():
        if type(module).__name__ == "Attention" and not module.is_cross_attention:
            yield name, module
