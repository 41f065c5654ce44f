"""The EDM2 U-Net (configuration G) and its preconditioning, after EDM2 figure 21 and appendix B.

Every layer preserves the expected magnitude of its input, so that activations, weights and updates keep
their size through training. Equation numbers are those of arXiv:2312.02696v2.
"""

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
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim or list(range(1, x.ndim)), keepdim=True, dtype=dtype)
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
    if mode == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2, mode="nearest") if mode == "up" else x


def randn(*shape: int) -> Tensor:
    """Standard normal values [*shape]; on the device `meta` only the shape.

    There `torch.randn` would import PyTorch's compiler, which takes as long as PyTorch, whenever a network is loaded.
    """
    return torch.empty(shape) if torch.get_default_device().type == "meta" else torch.randn(shape)


class MPFourier(nn.Module):
    """Magnitude-preserving Fourier features of a scalar (eq. 75): [N] -> [N, num_channels]."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", randn(num_channels).mul_(2 * torch.pi))
        self.register_buffer("phases", torch.empty(num_channels).uniform_().mul_(2 * torch.pi))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (y.cos() * math.sqrt(2)).to(x.dtype)


class MPConv(nn.Module):
    """Magnitude-preserving convolution, or linear layer where `kernel` is empty (eq. 47), without bias.

    In training mode the stored weight is overwritten with its normalised value before use (forced weight
    normalisation, eq. 66).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = nn.Parameter(randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return convolve(x, self.scaled_weight(gain))

    def scaled_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """Weight of unit magnitude per output, times gain / sqrt(fan-in)."""
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))))
        return scaled(self.weight, gain)


def scaled(weight: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """A weight [out, ...] of unit magnitude per output, times gain / sqrt(fan-in), in float32 at least."""
    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return normalize(w) * (gain / math.sqrt(w[0].numel()))


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution without bias that keeps the size, or a linear layer, in the dtype of `x`."""
    w = weight.to(x.dtype)
    return x @ w.t() if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


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
        self.out_channels, self.flavor, self.resample_mode = out_channels, flavor, resample_mode
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout, self.res_balance, self.attn_balance, self.clip_act = dropout, res_balance, attn_balance, clip_act
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, out_channels * 3, (1, 1)) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, (1, 1)) if self.num_heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = resample(x, self.resample_mode)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=[1])  # pixel norm

        y = self.conv_res0(mp_silu(x))
        c = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * c[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))

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
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_width)
        self.emb_noise = MPConv(noise_width, emb_width)
        self.emb_label = MPConv(label_dim, emb_width) if label_dim else None

        def block(cin: int, cout: int, flavor: str, **kwargs: Any) -> Block:
            return Block(cin, cout, emb_width, flavor, **kwargs, **block_kwargs)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        levels = [(img_resolution >> level, width) for level, width in enumerate(widths)]
        cout = widths[0]
        # The image and a constant channel that stands in for biases.
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = MPConv(img_channels + 1, cout, (3, 3))
        for res, width in levels:
            if res != img_resolution:
                self.enc[f"{res}x{res}_down"] = block(cout, cout, "enc", resample_mode="down")
            for i in range(num_blocks):
                self.enc[f"{res}x{res}_block{i}"] = block(cout, width, "enc", attention=res in attn_resolutions)
                cout = width

        skips = [int(module.out_channels) for module in self.enc.values()]  # type: ignore[arg-type]
        for res, width in reversed(levels):
            if res == levels[-1][0]:
                self.dec[f"{res}x{res}_in0"] = block(cout, cout, "dec", attention=True)
                self.dec[f"{res}x{res}_in1"] = block(cout, cout, "dec")
            else:
                self.dec[f"{res}x{res}_up"] = block(cout, cout, "dec", resample_mode="up")
            for i in range(num_blocks + 1):
                cin = cout + skips.pop()
                self.dec[f"{res}x{res}_block{i}"] = block(cin, width, "dec", attention=res in attn_resolutions)
                cout = width
        self.out_conv = MPConv(cout, img_channels, (3, 3))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None and labels is not None:
            emb = mp_sum(emb, self.emb_label(labels * math.sqrt(labels.shape[1])), self.label_balance)
        emb = mp_silu(emb)

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("conv") else module(x, emb)
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
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16, self.sigma_data = use_fp16, sigma_data
        own = {k: getattr(self, k) for k in ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data")}
        self.init_kwargs: dict[str, Any] = own | {"logvar_channels": logvar_channels} | unet_kwargs
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
        """Denoised images [N, C, H, W] float32; with `return_logvar` also the log variance u(sigma), [N, 1, 1, 1].

        Args:
            x: noisy images, [N, C, H, W] float.
            sigma: noise level, scalar or [N] (any trailing axes of size 1), in the units of `x`.
            class_labels: [N, label_dim] one-hot; None means the zero vector, as published.
            force_fp32: never use float16.
        """
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        given = x.new_zeros([1, self.label_dim]) if class_labels is None else class_labels
        labels = given.to(torch.float32).reshape(-1, self.label_dim) if self.label_dim else None
        dtype = torch.float32 if force_fp32 else self.dtype(x.device)

        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        c_noise = sigma.flatten().log() / 4

        F_x = self.unet((c_in * x).to(dtype), c_noise, labels)
        D_x = c_skip * x + c_out * F_x.to(torch.float32)
        if not return_logvar:
            return D_x
        return D_x, self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)

    def dtype(self, device: torch.device | str) -> torch.dtype:
        """What the U-Net computes in on a device."""
        half = self.use_fp16 and torch.device(device).type == "cuda"
        return self.precision or (torch.float16 if half else torch.float32)
