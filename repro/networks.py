"""The EDM2 U-Net (configuration G) and its preconditioning, after EDM2 figure 21 and appendix B.

Every layer preserves the expected magnitude of its input, so that activations, weights and updates keep
their size through training. Equation numbers are those of arXiv:2312.02696v2.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILU_MAGNITUDE = 0.596  # expected magnitude of SiLU on unit-variance input (eq. 81)


@runtime_checkable
class Denoiser(Protocol):
    """What sampling and guidance need of a model; any object with these members will do.

    Calling it with `x` [N, C, H, W] float, `sigma` scalar or [N] float and `labels` [N, label_dim] one-hot
    float or None returns the denoised estimate D(x; sigma, labels), shaped like `x`.
    """

    img_resolution: int
    img_channels: int
    label_dim: int  # 0 = unconditional
    sigma_data: float
    encoder: Any  # pixels <-> latents: `.encode_latents(raw)`, `.decode(latents)`

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor: ...


def normalize(x: Tensor, dim: Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    """Scale `x` to unit average magnitude over `dim`, by default all axes but the first (eq. 53).

    The norm is taken in float32 (float64 for float64 input); the result has the dtype of `x`.
    """
    dims = list(range(1, x.ndim)) if dim is None else list(dim)
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=dtype)
    norm = torch.add(eps, norm, alpha=math.sqrt(norm.numel() / x.numel()))
    return x / norm.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Magnitude-preserving SiLU (eq. 81)."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Magnitude-preserving blend of `a` and `b`, `t` being the share of `b` (eq. 88)."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Magnitude-preserving concatenation along channels, `t` being the share of `b` (eq. 103)."""
    na, nb = a.shape[1], b.shape[1]
    c = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (c * (1 - t) / math.sqrt(na)), b * (c * t / math.sqrt(nb))], dim=1)


def resample(x: Tensor, mode: str) -> Tensor:
    """Resample [N, C, H, W] by the [1, 1] box filter: `keep`, `down` (mean of 2x2) or `up` (repeat)."""
    if mode == "keep":
        return x
    if mode == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2, mode="nearest")


class MPFourier(nn.Module):
    """Magnitude-preserving Fourier features of a scalar (eq. 75): [N] -> [N, num_channels]."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * torch.pi * torch.randn(num_channels))
        self.register_buffer("phases", 2 * torch.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (y.cos() * math.sqrt(2)).to(x.dtype)


class MPConv(nn.Module):
    """Magnitude-preserving convolution, or linear layer where `kernel` is empty (eq. 47), without bias.

    In training mode the stored weight is overwritten with its normalised value before use (forced weight
    normalisation, eq. 66). `fold` replaces it by the scaled weight once and for all, for inference.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.folded = False

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = self.weight if self.folded else self.scaled_weight(gain)
        w = w.to(x.dtype)
        if w.ndim == 2:
            return x @ w.t()
        return F.conv2d(x, w, padding=w.shape[-1] // 2)

    def scaled_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """Weight of unit magnitude per output, times gain / sqrt(fan-in)."""
        w = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(w))
            w = self.weight.to(w.dtype)
        return normalize(w) * (gain / math.sqrt(w[0].numel()))

    @torch.no_grad()
    def fold(self, gain: Tensor | float = 1.0, half: bool = False) -> None:
        """Make this layer inference-only: what `forward` multiplies with is computed here, once."""
        w = self.scaled_weight(gain)
        if w.ndim == 4:
            w = w.to(torch.float16 if half else w.dtype).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(w, requires_grad=False)
        self.folded = True


class Block(nn.Module):
    """Residual block of encoder or decoder with optional self-attention (EDM2 figure 21)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        flavor: str,
        resample_mode: str = "keep",
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.flavor = flavor
        self.resample_mode = resample_mode
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.inference_dropout: InferenceDropout | None = None
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.clip_act = clip_act
        self.folded = False
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, out_channels * 3, (1, 1)) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, (1, 1)) if self.num_heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.folded:
            return self.infer(x, emb)
        x = resample(x, self.resample_mode)
        if self.flavor == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalize(x, dim=[1])  # pixel norm

        y = self.conv_res0(mp_silu(x))
        c = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * c[:, :, None, None].to(y.dtype))
        if self.training and self.dropout != 0:
            y = F.dropout(y, p=self.dropout)
        y = self.conv_res1(y)

        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self.attend(self.attn_qkv(x))), self.attn_balance)
        return x if self.clip_act is None else x.clip(-self.clip_act, self.clip_act)

    def attend(self, qkv: Tensor) -> Tensor:
        """Cosine attention: q, k and v are pixel-normalised over each head's channels."""
        n, _, h, w = qkv.shape
        y = qkv.reshape(n, self.num_heads, -1, 3, h * w)  # [N, heads, c, 3, HW]
        q, k, v = (z.transpose(2, 3) for z in normalize(y, dim=[2]).unbind(3))  # each [N, heads, HW, c]
        y = F.scaled_dot_product_attention(q, k, v)  # scale 1 / sqrt(c)
        return y.transpose(2, 3).reshape(n, -1, h, w)

    @torch.no_grad()
    def fold(self, half: bool = False) -> None:
        """Make this block inference-only: every constant factor moves into the weight behind it."""
        self.conv_res0.fold(1 / SILU_MAGNITUDE, half)
        self.emb_linear.fold(self.emb_gain)
        self.conv_res1.fold(_blend(self.res_balance)[1] / SILU_MAGNITUDE, half)
        if self.conv_skip is not None:
            self.conv_skip.fold(_blend(self.res_balance)[0] if self.flavor == "dec" else 1.0, half)
        if self.attn_qkv is not None and self.attn_proj is not None:
            self.attn_qkv.fold(1.0, half)
            w = self.attn_qkv.weight  # reorder the outputs: heads x channels x 3 -> 3 x heads x channels
            split = w.reshape(self.num_heads, -1, 3, *w.shape[1:]).permute(2, 0, 1, 3, 4, 5).flatten(0, 2)
            split = split.contiguous(memory_format=torch.channels_last)
            self.attn_qkv.weight = nn.Parameter(split, requires_grad=False)
            self.attn_proj.fold(_blend(self.attn_balance)[1], half)
        self.folded = True

    def infer(self, x: Tensor, emb: Tensor) -> Tensor:
        """`forward` of a folded block: the same function with the constants gone into the weights."""
        x = resample(x, self.resample_mode)
        if self.flavor == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalize(x, dim=[1])

        y = self.conv_res0(F.silu(x))
        c = self.emb_linear(emb) + 1
        y = F.silu(y.mul_(c[:, :, None, None].to(y.dtype)), inplace=True)
        if self.inference_dropout is not None:
            y = self.inference_dropout(y)
        y = self.conv_res1(y)

        if self.flavor == "dec" and self.conv_skip is not None:
            x = y.add_(self.conv_skip(x))
        else:
            x = y.add_(x, alpha=_blend(self.res_balance)[0])
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_proj(self.attend_folded(self.attn_qkv(x)))
            x = y.add_(x, alpha=_blend(self.attn_balance)[0])
        return x if self.clip_act is None else x.clip_(-self.clip_act, self.clip_act)

    def attend_folded(self, qkv: Tensor) -> Tensor:
        """`attend` on channels that come as 3 x heads x channels: in channels-last memory all views are free."""
        n, _, h, w = qkv.shape
        y = qkv.permute(0, 2, 3, 1).reshape(n, h * w, 3, self.num_heads, -1)
        q, k, v = normalize(y, dim=[4]).permute(2, 0, 3, 1, 4)  # each [N, heads, HW, c]
        y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).reshape(n, h, w, -1).permute(0, 3, 1, 2)


def _blend(t: float) -> tuple[float, float]:
    """Factors of a and b in mp_sum(a, b, t)."""
    norm = math.sqrt((1 - t) ** 2 + t**2)
    return (1 - t) / norm, t / norm


class InferenceDropout:
    """Dropout that acts at inference only, drawing from a generator of its own (never the global one)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.generator: torch.Generator | None = None

    def __call__(self, x: Tensor) -> Tensor:
        keep = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class UNet(nn.Module):
    """Noisy image [N, C, H, W], c_noise [N] and one-hot labels [N, label_dim] -> raw output F, like the image."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: float | None = None,
        channel_mult_emb: float | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        widths = [model_channels * m for m in channel_mult]
        noise_width = widths[0] if channel_mult_noise is None else int(model_channels * channel_mult_noise)
        emb_width = max(widths) if channel_mult_emb is None else int(model_channels * channel_mult_emb)
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_width)
        self.emb_noise = MPConv(noise_width, emb_width)
        self.emb_label = MPConv(label_dim, emb_width) if label_dim else None

        def block(cin: int, cout: int, flavor: str, **kwargs: Any) -> Block:
            return Block(cin, cout, emb_width, flavor, **kwargs, **block_kwargs)

        self.enc = nn.ModuleDict()
        cout = img_channels + 1  # the image and a constant channel that stands in for biases
        for level, width in enumerate(widths):
            name = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = img_resolution >> level in attn_resolutions
            if level == 0:
                self.enc[f"{name}_conv"] = MPConv(cout, width, (3, 3))
                cout = width
            else:
                self.enc[f"{name}_down"] = block(cout, cout, "enc", resample_mode="down")
            for i in range(num_blocks):
                self.enc[f"{name}_block{i}"] = block(cout, width, "enc", attention=attention)
                cout = width

        self.dec = nn.ModuleDict()
        skips = [int(module.out_channels) for module in self.enc.values()]  # type: ignore[arg-type]
        for level, width in reversed(list(enumerate(widths))):
            name = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = img_resolution >> level in attn_resolutions
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = block(cout, cout, "dec", attention=True)
                self.dec[f"{name}_in1"] = block(cout, cout, "dec")
            else:
                self.dec[f"{name}_up"] = block(cout, cout, "dec", resample_mode="up")
            for i in range(num_blocks + 1):
                self.dec[f"{name}_block{i}"] = block(cout + skips.pop(), width, "dec", attention=attention)
                cout = width
        self.out_conv = MPConv(cout, img_channels, (3, 3))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None and labels is not None:
            emb = mp_sum(emb, self.emb_label(labels * math.sqrt(labels.shape[1])), self.label_balance)
        emb = mp_silu(emb)

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for module in self.enc.values():
            x = module(x) if isinstance(module, MPConv) else module(x, emb)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = module(x, emb)
        return self.out_conv(x, gain=self.out_gain)


class Precond(nn.Module):
    """The preconditioned EDM2 denoiser D(x; sigma, labels) with its uncertainty head (EDM2 appendix B.6).

    Args:
        img_resolution: height and width of images or latents, in pixels.
        img_channels: channels of images or latents.
        label_dim: number of classes; 0 = unconditional.
        use_fp16: run the U-Net in float16 on CUDA; elsewhere it is float32 always.
        sigma_data: expected standard deviation of the data.
        logvar_channels: width of the uncertainty head.
        unet_kwargs: see `UNet` and `Block`.
    """

    encoder: Any = None  # set by whoever knows it; `repro.snapshots.load` does
    precision: torch.dtype | None = None  # of the U-Net on every device; None: see `use_fp16`

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet_kwargs: Any,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.use_fp16 = use_fp16
        self.sigma_data = sigma_data
        self.init_kwargs: dict[str, Any] = dict(
            img_resolution=img_resolution,
            img_channels=img_channels,
            label_dim=label_dim,
            use_fp16=use_fp16,
            sigma_data=sigma_data,
            logvar_channels=logvar_channels,
            **unet_kwargs,
        )
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet_kwargs)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        return_logvar: bool = False,
    ) -> Any:
        """Denoise.

        Args:
            x: noisy images, [N, C, H, W] float.
            sigma: noise level, scalar or [N] (any trailing axes of size 1), in the units of `x`.
            class_labels: [N, label_dim] one-hot; None means the zero vector, as published.
            force_fp32: never use float16.
            return_logvar: also return the log variance u(sigma), [N, 1, 1, 1].

        Returns:
            denoised images, [N, C, H, W] float32; with `return_logvar` a pair.
        """
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        labels = None
        if self.label_dim:
            labels = torch.zeros([1, self.label_dim], device=x.device) if class_labels is None else class_labels
            labels = labels.to(torch.float32).reshape(-1, self.label_dim)
        fp16 = self.use_fp16 and x.device.type == "cuda"
        dtype = torch.float32 if force_fp32 else self.precision or (torch.float16 if fp16 else torch.float32)

        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        c_noise = sigma.flatten().log() / 4

        x_in = (c_in * x).to(dtype)
        F_x = self.unet(x_in, c_noise, labels)
        D_x = c_skip * x + c_out * F_x.to(torch.float32)
        if not return_logvar:
            return D_x
        return D_x, self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)

    def share_weights(self) -> "Precond":
        """A copy of the module tree whose parameters and buffers are the very same tensors."""
        tensors = [*self.parameters(), *self.buffers()]
        return copy.deepcopy(self, memo={id(t): t for t in tensors})


@torch.no_grad()
def prepare(network: Precond, device: torch.device | str = "cpu") -> Precond:
    """An inference-only copy of `network` on `device`, with everything folded that is the same at every step.

    Weight normalisation, fan-in scaling and learned gains go into the weights, which are stored in the
    dtype they are used in. The original is left as it was. Outputs are the same within rounding.
    """
    folded = network.share_weights().eval().requires_grad_(False)
    half = network.use_fp16 and torch.device(device).type == "cuda"
    for module in folded.modules():
        if isinstance(module, Block) and not module.folded:
            module.fold(half)
    if not folded.unet.out_conv.folded:
        folded.unet.out_conv.fold(folded.unet.out_gain, half)
    for module in folded.modules():
        if isinstance(module, MPConv) and not module.folded:
            module.fold(1.0, half)
    return folded.to(device)
