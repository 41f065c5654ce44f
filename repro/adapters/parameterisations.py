"""A Denoiser answers D(x; sigma) for x = x_0 + sigma n. Every common model is that function in other clothes.

Variance preserving models (DDPM, DiT, Stable Diffusion) see x_t = a_t x_0 + s_t n with a_t^2 = alphas_cumprod[t] and
a_t^2 + s_t^2 = 1: sigma = s_t / a_t, and x_t = a_t x with a_t = 1 / sqrt(1 + sigma^2). Flow models see
x_t = (1 - t) x_0 + t n: sigma = t / (1 - t), and x_t = (1 - t) x. Scaling, t and D are computed in float32 (float64
for float64 input); only the model's input and output have its dtype.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metrics.files import InputError
from repro.encoders import RGBEncoder


class Adapted(nn.Module, ABC):
    """A model(x_t, t) or model(x_t, t, labels) as a Denoiser.

    Args:
        model: any callable; a module is moved to `device` and `dtype` and evaluated as it is in eval mode.
        img_resolution, img_channels: of images or latents.
        label_dim: number of classes; 0 = unconditional.
        labels: what the model wants of a class: its number, int64 [N], or float [N, label_dim] one-hot.
        null_label: the number that stands for no class, where the model has one (see `null_class`).
        sigma_data: expected standard deviation of the data; pairs are compared by it.
        learned_variance: the model answers with 2 C channels, of which the first C count.
        encoder: pixels <-> latents; pixels in [-1, 1] by default.
        dtype: of the model's input and weights; None: those of its weights.
    """

    #: Attributes of a kind of adapter that decide its answers.
    decisive: tuple[str, ...] = ()
    #: Noise levels that the model was trained for.
    sigma_min: float
    sigma_max: float
    #: The class that every image has, int64 []; None: the one that it is asked for.
    only_class: Tensor | None

    def __init__(
        self,
        model: Callable[..., Tensor],
        *,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        labels: Literal["numbers", "one-hot"] = "numbers",
        null_label: int | None = None,
        sigma_data: float = 1.0,
        learned_variance: bool = False,
        encoder: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if labels not in ("numbers", "one-hot"):
            raise InputError(f"labels is '{labels}', expected numbers or one-hot")
        if isinstance(model, nn.Module):
            model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
            dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
        self.model, self.dtype = model, dtype
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.num_classes = label_dim
        self.register_buffer("only_class", None)
        self.labels, self.null_label, self.sigma_data = labels, null_label, sigma_data
        self.learned_variance, self.encoder = learned_variance, encoder or RGBEncoder()

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma), shaped like `x` [N, C, H, W], float32 or float64; `sigma` number or [N]; `labels` one-hot."""
        if self.label_dim and labels is None:
            raise InputError(f"the model has {self.label_dim} classes: labels are required")
        numbers = None if labels is None or not self.label_dim else labels.argmax(dim=1)
        if self.only_class is not None:
            numbers = self.only_class.to(x.device).expand(len(x))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1).expand(len(x))
        return self.denoise(x, sigma, numbers)

    def settings(self) -> dict[str, Any]:
        """What decides its answers and images besides parameters and buffers, in JSON's types."""
        names = ("labels", "num_classes", "learned_variance", *self.decisive)
        encoder = self.encoder.config() if hasattr(self.encoder, "config") else type(self.encoder).__name__
        return {"kind": type(self).__name__, "encoder": encoder, **{name: getattr(self, name) for name in names}}

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor, numbers: Tensor | None) -> Tensor:
        """D(x; sigma) of `x` [N, ...] and `sigma` [N], both of the dtype to compute in."""

    def ask(self, x_t: Tensor, t: Tensor, numbers: Tensor | None) -> Tensor:
        """The model's answer, in the dtype of `x_t`."""
        given: list[Tensor] = [] if numbers is None else [numbers]
        if given and self.labels == "one-hot":
            given = [torch.eye(self.num_classes, dtype=self.dtype or x_t.dtype, device=x_t.device)[given[0]]]
        answer = self.model(x_t if self.dtype is None else x_t.to(self.dtype), t, *given)
        return (answer[:, : self.img_channels] if self.learned_variance else answer).to(x_t.dtype)


class VariancePreserving(Adapted):
    """Answers with eps, v = a_t n - s_t x_0, or x_0; `alphas_cumprod` [T] falls from t = 0 on.

    t is found on the table by interpolation in ln sigma, or is the nearest entry, an integer. Outside the table only
    t is clamped. Entries of 0 (zero terminal signal) are left out.
    """

    decisive = ("answers", "timesteps")
    log_sigmas: Tensor
    steps: Tensor

    def __init__(
        self,
        model: Callable[..., Tensor],
        alphas_cumprod: Tensor,
        answers: Literal["epsilon", "v", "x0"],
        timesteps: Literal["interpolated", "nearest"] = "interpolated",
        **facts: Any,
    ) -> None:
        super().__init__(model, **facts)
        alphas = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").flatten()
        steps = torch.arange(len(alphas))[alphas != 0]
        alphas = alphas[steps]
        if len(alphas) < 2 or not ((alphas > 0) & (alphas < 1)).all() or not (alphas.diff() < 0).all():
            raise InputError("alphas_cumprod: expected two or more numbers between 0 and 1 that fall")
        if timesteps not in ("interpolated", "nearest"):
            raise InputError(f"timesteps is '{timesteps}', expected interpolated or nearest")
        self.answers, self.timesteps = answers, timesteps
        device = facts.get("device", "cpu")
        self.register_buffer("log_sigmas", ((1 - alphas) / alphas).log().to(device) / 2)
        self.register_buffer("steps", steps.double().to(device))
        self.sigma_min, self.sigma_max = self.log_sigmas[[0, -1]].exp().tolist()

    def time(self, sigma: Tensor) -> Tensor:
        """t of noise levels [N]: of their dtype, or int64 where it is the nearest entry."""
        table, wanted = self.log_sigmas, sigma.double().log()
        after = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        share = ((wanted - table[after - 1]) / (table[after] - table[after - 1])).clamp(0, 1)
        if self.timesteps == "nearest":
            return torch.where(share < 0.5, self.steps[after - 1], self.steps[after]).long()
        return self.steps[after - 1].lerp(self.steps[after], share).to(sigma.dtype)

    def denoise(self, x: Tensor, sigma: Tensor, numbers: Tensor | None) -> Tensor:
        t, sigma = self.time(sigma), sigma.reshape(-1, *[1] * (x.ndim - 1))
        a = (1 + sigma**2).rsqrt()
        answer = self.ask(a * x, t, numbers)
        if self.answers == "epsilon":
            return x - sigma * answer
        return answer if self.answers == "x0" else a * (a * x) - sigma * a * answer


class Flow(Adapted):
    """Answers with v = n - x_0 at time t from 0 (data) to 1 (noise), or, `reversed`, with x_0 - n at 1 - t."""

    decisive = ("reversed", "time_scale")

    def __init__(
        self,
        model: Callable[..., Tensor],
        reversed: bool = False,
        time_scale: float = 1.0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        **facts: Any,
    ) -> None:
        super().__init__(model, **facts)
        self.reversed, self.time_scale = reversed, time_scale
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def denoise(self, x: Tensor, sigma: Tensor, numbers: Tensor | None) -> Tensor:
        t = sigma / (1 + sigma)
        time = (1 - t if self.reversed else t) * self.time_scale
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        v = self.ask((1 - t) * x, time, numbers)
        return (1 - t) * x - t * (-v if self.reversed else v)


def from_epsilon(model: Callable[..., Tensor], alphas_cumprod: Tensor, **facts: Any) -> VariancePreserving:
    """A model that answers with the noise: D = x - sigma eps. `facts`: see `VariancePreserving` and `Adapted`."""
    return VariancePreserving(model, alphas_cumprod, "epsilon", **facts)


def from_v(model: Callable[..., Tensor], alphas_cumprod: Tensor, **facts: Any) -> VariancePreserving:
    """A model that answers with v = a_t n - s_t x_0: D = a_t x_t - s_t v. `facts` as in `from_epsilon`."""
    return VariancePreserving(model, alphas_cumprod, "v", **facts)


def from_x0(model: Callable[..., Tensor], alphas_cumprod: Tensor, **facts: Any) -> VariancePreserving:
    """A model that answers with the clean image. `facts` as in `from_epsilon`."""
    return VariancePreserving(model, alphas_cumprod, "x0", **facts)


def from_flow(model: Callable[..., Tensor], **facts: Any) -> Flow:
    """A rectified flow, v = n - x_0: D = (1 - t) x - t v. `facts`: see `Flow` and `Adapted`."""
    return Flow(model, **facts)


def null_class(denoiser: Adapted, null_label: int | None = None) -> Adapted:
    """`denoiser` under its null label, with label_dim 0: the guide of classifier-free guidance.

    The two share one model. Raises InputError where it has no null label and none is named, or the number is no label.
    """
    if not isinstance(denoiser, Adapted):
        raise InputError(f"null_class needs an adapted model, found {type(denoiser).__name__}")
    number = denoiser.null_label if null_label is None else null_label
    if number is None:
        raise InputError("the model has no null label; name the class that stands for none, or use another guide")
    if not 0 <= number <= denoiser.label_dim or (denoiser.labels == "one-hot" and number == denoiser.label_dim):
        raise InputError(f"null_label is {number}, the model has {denoiser.label_dim} classes")
    twin = copy.copy(denoiser)
    twin._buffers = {**denoiser._buffers, "only_class": torch.tensor(number)}  # of its own; a copied module shares them
    twin.label_dim, twin.null_label = 0, None
    return twin
