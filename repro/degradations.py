"""Bad versions: every way to make a network worse, as a guide (or, in experiments, a main network) may be.

A degradation is a name with a strength, such as `{"dropout": 0.1}`, applied at inference to any denoiser that can have
it. Several are applied in the order of the registry, those inside the network before those around it. What they draw
comes from streams of the images' own seeds, so that it does not depend on the batch.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.files import InputError, nearest
from metrics.registry import Registry
from repro.adapters import interior, null_class
from repro.adapters.parameterisations import Adapted
from repro.inference import FoldedBlock, FoldedConv, fold
from repro.networks import Denoiser, Precond
from repro.streams import SeedStreams

MAIN, GUIDE = 0, 1  # main and guide draw different numbers
#: Why a degradation does not fit a network that is somebody else's.
UNREACHABLE = "needs one of this project's networks, or a DiT or UNet2D of diffusers, to reach inside"
#: A number; of a sliding window two; with a choice of layers {"strength": number, "layers": names}.
Strength = float | list[float] | dict[str, Any]


class Degraded:
    """A denoiser of the same shape around another one, made worse; draws from `streams`, one per image, once set."""

    key = (MAIN, 0)  # role, and place in the registry: each draws from streams of its own
    streams: SeedStreams | None = None

    def __init__(self, network: Denoiser, strength: Any) -> None:
        self.network, self.strength = network, strength
        self.img_resolution, self.img_channels = network.img_resolution, network.img_channels
        self.label_dim, self.sigma_data, self.encoder = network.label_dim, network.sigma_data, network.encoder
        for name in ("sigma_min", "sigma_max"):  # which not all have
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.network(x, sigma, labels)

    def drawn(self) -> SeedStreams:
        """The batch's streams."""
        if self.streams is None:
            raise InputError(f"{type(self).__name__} draws random numbers: give it the seeds of the batch first")
        return self.streams

    def inner(self) -> Denoiser:
        """The network itself, within all that is around it."""
        return core(self.network)


def core(network: Denoiser) -> Denoiser:
    """The network within all degradations around it."""
    while isinstance(network, Degraded):
        network = network.network
    return network


@dataclass(frozen=True)
class Degradation:
    """One kind of degradation."""

    #: Network and strength -> the worse network; InputError where the network cannot have it.
    apply: Callable[[Denoiser, Any], Denoiser]
    #: Bounds of the strength, `least` included, `most` not.
    least: float = 0.0
    most: float = math.inf
    #: Whether it changes what happens inside a network: it is given a copy, of a network of this project a folded one.
    inside: bool = False
    #: Whether it is applied before those inside.
    first: bool = False
    #: Whether the strength may come with a choice of layers.
    layers: bool = False
    #: In place of bounds, which strengths can be meant, and these in words.
    allowed: Callable[[Any], bool] | None = None
    expected: str = ""
    #: Whether strengths are whole numbers.
    whole: bool = False

    def at(self, strength: Strength, number: float) -> Strength:
        """A strength with another number in it, rounded where it is a whole one."""
        number = round(number) if self.whole else number
        return strength | {"strength": number} if isinstance(strength, dict) else number

    def check(self, name: str, strength: Strength) -> None:
        """Raise InputError for a strength that cannot be meant."""
        number: Any = strength
        if self.layers and isinstance(strength, dict):
            if strength.keys() != {"strength", "layers"} or not isinstance(strength["layers"], list | tuple):
                raise InputError(f"degradation '{name}': {strength}, expected a strength and a list of layers")
            number = strength["strength"]
        bounded = isinstance(number, int | float) and self.least <= number < self.most
        if not (bounded if self.allowed is None else self.allowed(number)):
            expected = self.expected or f"{self.least} <= x < {self.most}"
            raise InputError(f"degradation '{name}': strength {number}, expected {expected}")


#: In the order in which several are applied.
DEGRADATIONS: Registry[Degradation] = Registry("degradation")


def check_degradations(wanted: Mapping[str, Strength]) -> None:
    """Raise InputError for an unknown name, or a strength out of bounds."""
    for name, strength in wanted.items():
        DEGRADATIONS[name].check(name, strength)


def degrade(network: Denoiser, wanted: Mapping[str, Strength], role: int = MAIN) -> Denoiser:
    """`network` with the degradations `wanted` (name -> strength); none: the network itself, which never changes.

    `role` keeps the draws of main network and guide apart. Call `seed_degradations` with the streams of every batch.
    """
    check_degradations(wanted)
    kinds = {name: kind for name, kind in DEGRADATIONS.items() if name in wanted}
    for name in [name for name, kind in kinds.items() if kind.first]:
        network = kinds.pop(name).apply(network, wanted[name])
    inside = [name for name, kind in kinds.items() if kind.inside]
    if inside:
        network = _copied(network, inside[0])
    for name in sorted(kinds, key=lambda name: name not in inside):
        network = kinds[name].apply(network, wanted[name])
        if isinstance(network, Degraded):
            network.key = (role, list(DEGRADATIONS).index(name))
    return network


def _copied(network: Denoiser, name: str) -> Denoiser:
    """A copy of the very same tensors, inside which something may change."""
    if isinstance(network, Precond):
        return fold(network, next(network.parameters()).device)
    if interior.network_of(network) is None:
        raise InputError(f"degradation '{name}' {UNREACHABLE}")
    return interior.reachable(network)


def seed_degradations(network: Denoiser | None, streams: SeedStreams) -> None:
    """Tie everything that the degradations of `network` will draw to the seeds of the batch at hand."""
    while isinstance(network, Degraded):
        network.streams = streams.branch(*network.key)
        network = network.network


class DroppedOut(Degraded):
    """Dropout of `strength` inside every block at inference (arXiv:2406.02507 section 4)."""

    def __init__(self, network: Denoiser, strength: float) -> None:
        super().__init__(network, strength)
        inner = self.inner()
        if not isinstance(inner, Precond):
            raise InputError(
                "degradation 'dropout' needs one of this project's networks, whose blocks have a place for it"
            )
        for module in inner.modules():
            if isinstance(module, FoldedBlock):
                module.dropout = self.drop

    def drop(self, x: Tensor) -> Tensor:
        """Zero a share `strength` of the values of `x` [N, C, H, W], and scale the others up."""
        return x * (self.drawn().rand_like(x) >= self.strength).to(x.dtype) / (1 - self.strength)


class RaisedNoise(Degraded):
    """Input noise raised by a fraction (arXiv:2406.02507 section 4), the conditioning raised to match:
    sigma' = (1 + strength) sigma."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        raised = sigma * (1 + self.strength)
        extra = (raised**2 - sigma**2).sqrt().reshape(-1, *[1] * (x.ndim - 1))
        return self.network(x + extra * self.drawn().randn_like(x), raised, labels)


class Truncated(Degraded):
    """Naive truncation: the score multiplied by `strength` (arXiv:2406.02507 figure 1)."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x + self.strength * (self.network(x, sigma, labels) - x)


class OtherAttention(Degraded):
    """Another self-attention in the layers named by the strength, in all by default."""

    def __init__(self, network: Denoiser, strength: Strength) -> None:
        number, layers = (strength["strength"], strength["layers"]) if isinstance(strength, dict) else (strength, None)
        super().__init__(network, number)
        blocks = attention_blocks(self.inner())
        if not blocks:
            raise InputError("the network has no self-attention that could be made worse")
        for name in layers or list(blocks):
            if name not in blocks:
                raise InputError(f"the network has no self-attention '{name}'{nearest(str(name), blocks)}")
            blocks[name].attention = self.attend_of(blocks[name].attention)

    def attend_of(self, attend: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The attention in place of `attend`."""
        raise NotImplementedError


class BlurredAttention(OtherAttention):
    """Queries blurred by a Gaussian of standard deviation `strength` (smoothed energy guidance, arXiv:2408.00760).

    In that paper D_w = D + gamma (D - D_blurred): the weight is 1 + gamma here.
    """

    def attend_of(self, attend: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda q, k, v: attend(blur(q, self.strength), k, v)


class IdentityAttention(OtherAttention):
    """The identity as attention map, so that the values come out (perturbed-attention guidance, arXiv:2403.17377)."""

    def attend_of(self, attend: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return (lambda q, k, v: v) if self.strength else attend


class Quantised(Degraded):
    """Weights of `strength` bits: convolutions and linear layers, scaled per output channel; 0: as they are.

    What is rounded is the stored weight, before it is normalised; a folded one is a multiple of it per output channel,
    which rounding does not mind. Gains, embeddings of noise level and labels, and buffers stay.
    """

    def __init__(self, network: Denoiser, strength: float) -> None:
        super().__init__(network, strength)
        if not strength:
            return
        inner, bits = self.inner(), int(strength)
        if not isinstance(inner, Precond):
            for layer in interior.weights_of(inner):
                layer.weight = torch.nn.Parameter(quantised(layer.weight, bits, False), requires_grad=False)
            return
        for module in [m for part in (inner.unet.enc, inner.unet.dec, inner.unet.out_conv) for m in part.modules()]:
            if isinstance(module, FoldedConv):
                module.weight = torch.nn.Parameter(quantised(module.weight, bits), requires_grad=False)


class SlidingWindow(Degraded):
    """Crops of `strength` = [size, stride] one by one, averaged where they overlap (arXiv:2411.10257)."""

    def __init__(self, network: Denoiser, strength: Sequence[float]) -> None:
        super().__init__(network, strength)
        self.size, self.stride = (int(number) for number in strength)
        if self.size > network.img_resolution:
            raise InputError(f"degradation 'sliding_window': size {self.size}, the image has {network.img_resolution}")
        least = _downsampling(self.inner())
        if self.size % least:
            raise InputError(f"degradation 'sliding_window': size {self.size}, expected a multiple of {least}")

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        answer, count = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        starts = window_starts(self.img_resolution, self.size, self.stride)
        for i, j in itertools.product(starts, repeat=2):
            window = (..., slice(i, i + self.size), slice(j, j + self.size))
            answer[window] += self.network(x[window], sigma, labels)
            count[window] += 1
        return answer / count


def window_starts(resolution: int, size: int, stride: int) -> list[int]:
    """Where the crops of a sliding window begin along an axis."""
    last = resolution - size
    return sorted({*range(0, last + 1, stride), last})


class RandomLabel(Degraded):
    """The network under a label drawn once per image (independent condition guidance, arXiv:2407.02687)."""

    def __init__(self, network: Denoiser, strength: float) -> None:
        super().__init__(network, strength)
        if not self.label_dim:
            raise InputError("degradation 'random_label': the network has no labels")
        self.drawn_of: SeedStreams | None = None
        self.labels: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        if not self.strength:
            return self.network(x, sigma, labels)
        streams = self.drawn()
        if self.drawn_of is not streams:
            numbers = streams.randint(self.label_dim, [len(streams.seeds)])
            self.drawn_of, self.labels = streams, torch.eye(self.label_dim, device=streams.device)[numbers]
        return self.network(x, sigma, self.labels)


def _downsampling(network: Denoiser) -> int:
    """What the side of an image must be a multiple of."""
    if isinstance(network, Precond):
        return int(2 ** sum(name.endswith("_down") for name in network.unet.enc))
    if interior.network_of(network) is None:
        raise InputError(f"degradation 'sliding_window' {UNREACHABLE}, for crops that fit its resolutions")
    return interior.downsampling(network)


def _null_class(network: Denoiser, strength: float) -> Denoiser:
    """A foreign model under its null label (classifier-free guidance from one network, arXiv:2207.12598)."""
    if not strength:
        return network
    if not isinstance(network, Adapted):
        raise InputError("degradation 'null_class' needs a foreign model that has a null label (docs/own-model.md)")
    return null_class(network)


def attention_blocks(network: Denoiser) -> Mapping[str, Any]:
    """What has an exchangeable `attention` in a folded network, by name: `enc.8x8_block0`; or in one of diffusers."""
    if not isinstance(network, Precond):
        return interior.attention_of(network)
    parts = {"enc": network.unet.enc, "dec": network.unet.dec}
    found = {f"{part}.{name}": block for part, blocks in parts.items() for name, block in blocks.items()}
    return {n: b for n, b in found.items() if isinstance(b, FoldedBlock) and b.attn_qkv is not None}


def blur(q: Tensor, sigma: float) -> Tensor:
    """Queries [N, heads, HW, c] of a square image, blurred by a separable Gaussian; infinite: their mean.

    The kernel has the smallest odd size >= 6 sigma, at most the largest odd one <= side + 1; edges are reflected.
    """
    if math.isinf(sigma):
        return q.mean(dim=2, keepdim=True).expand_as(q)
    side = math.isqrt(q.shape[2])
    size = min(math.ceil(6 * sigma) // 2 * 2 + 1 if sigma else 1, side // 2 * 2 + 1)
    if size == 1:
        return q
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(q.device, q.dtype)
    image = q.transpose(2, 3).reshape(-1, 1, side, side)
    image = F.pad(image, [size // 2] * 4, mode="reflect")
    image = F.conv2d(F.conv2d(image, kernel[None, None, :, None]), kernel[None, None, None, :])
    return image.reshape(*q.shape[:2], q.shape[3], -1).transpose(2, 3)


def quantised(weight: Tensor, bits: int, normalised: bool = True) -> Tensor:
    """A weight [out, in, ...] of `bits`, symmetric, scaled per output channel; `normalised`: of the norm it had."""
    rows = weight.flatten(1).double()
    steps = rows * (2 ** (bits - 1) - 1) / rows.abs().amax(dim=1, keepdim=True)
    rounded = steps.nan_to_num(nan=0.0).round()  # a channel of zeros stays
    if normalised:
        factor = rows.norm(dim=1, keepdim=True) / rounded.norm(dim=1, keepdim=True).clamp(min=1)
    else:
        factor = rows.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.empty_like(weight).copy_((rounded * factor).view_as(weight))


def _is_positive(strength: Any) -> bool:
    return isinstance(strength, int | float) and strength >= 0


def _is_window(strength: Any) -> bool:
    whole = isinstance(strength, list) and len(strength) == 2 and all(float(x).is_integer() for x in strength)
    return whole and 1 <= strength[1] <= strength[0]


DEGRADATIONS.register("dropout", Degradation(DroppedOut, 0.0, 1.0, inside=True))
DEGRADATIONS.register("input_noise", Degradation(RaisedNoise))
DEGRADATIONS.register(
    "blurred_attention",
    Degradation(BlurredAttention, inside=True, layers=True, allowed=_is_positive, expected="0 or more, or .inf"),
)
DEGRADATIONS.register(
    "identity_attention",
    Degradation(
        IdentityAttention, inside=True, layers=True, allowed=lambda s: s in (0, 1), expected="1, or 0 for none"
    ),
)
DEGRADATIONS.register(
    "quantised",
    Degradation(
        Quantised,
        inside=True,
        allowed=lambda s: s in (0, *range(2, 17)),
        expected="2 to 16 bits, or 0 for all",
        whole=True,
    ),
)
DEGRADATIONS.register(
    "sliding_window",
    Degradation(SlidingWindow, allowed=_is_window, expected="[size, stride], whole numbers, 1 <= stride <= size"),
)
DEGRADATIONS.register(
    "random_label", Degradation(RandomLabel, allowed=lambda s: s in (0, 1), expected="1, or 0 for none")
)
DEGRADATIONS.register(
    "null_class", Degradation(_null_class, first=True, allowed=lambda s: s in (0, 1), expected="1, or 0 for none")
)
