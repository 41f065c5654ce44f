"""Steps of training: what the network is trained with, what they minimise, how they move weights and averages.

Whatever is drawn for an image (its transformation, noise level, noise) depends on the seed and its position in the
stream alone. Number of processes, gradient accumulation and interruptions therefore change no draw.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metrics import distributed
from metrics.files import InputError
from metrics.precision import tf32
from repro.data.kinds import TrainingData
from repro.ema import PowerFunctionEMA
from repro.networks import Precond
from repro.sampling.batches import ahead
from repro.streams import mix
from repro.strict import facts
from repro.training.config import PRECISIONS, TrainingConfig, TrainingSettings

PARTS = ("network", "optimizer", "ema")  # a trainer's state, besides how far it came


class Batch(NamedTuple):
    """Latents [N, C, H, W], one-hot labels [N, label_dim] or None, sigma [N, 1, 1, 1], unit noise like the latents."""

    images: Tensor
    labels: Tensor | None
    sigma: Tensor
    noise: Tensor


class Drawn(NamedTuple):
    """A batch on the CPU, not encoded yet: raw images, one-hot labels [N, label_dim], sigma [N, 1, 1, 1], and unit
    noise [N, 2, C, H, W] of the diffusion and of the encoder."""

    raw: Tensor
    labels: Tensor
    sigma: Tensor
    noise: Tensor

    def encoded(self, dataset: TrainingData, conditional: bool, device: torch.device) -> Batch:
        """The batch as latents on `device`, where the encoder works too."""
        raw, labels, sigma, noise = (
            t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t for t in self
        )
        encoded = (raw,) if dataset.encoder.kind == "rgb" else (raw, noise[:, 1])
        return Batch(dataset.encoder.encode_latents(*encoded), labels if conditional else None, sigma, noise[:, 0])


def draw(settings: TrainingSettings, dataset: TrainingData, positions: np.ndarray) -> Drawn:
    """What the images at `positions` of the stream are trained with, on the CPU so that devices agree."""
    shape = torch.Size([2, dataset.img_channels, dataset.img_resolution, dataset.img_resolution])
    normal = torch.empty([len(positions), 1 + shape.numel()])
    for row, key in zip(normal, mix(settings.seed, 1, positions), strict=True):
        row.normal_(generator=torch.Generator().manual_seed(int(key)))
    sigma = (normal[:, 0] * settings.P_std + settings.P_mean).exp().reshape(-1, 1, 1, 1)
    return Drawn(*dataset.batch(settings.seed, positions), sigma, normal[:, 1:].reshape(-1, *shape))


def drawn_ahead(config: TrainingConfig, dataset: TrainingData, steps: range) -> Iterator[list[Drawn]]:
    """This process's share of each step's batch, in pieces that its device holds, one step ahead in the background.

    `steps` are the image counts at which they begin. They are drawn with one of torch's threads: the idle ones of a
    second set spin for a while, and took a sixth of the CPU from the step beside them.
    """
    share = config.settings.batch_size // distributed.world_size()
    size = config.pace.device_batch_size or share

    def pieces(nimg: int) -> list[Drawn]:
        positions = nimg + distributed.rank() * share + np.arange(share)
        return [draw(config.settings, dataset, positions[i : i + size]) for i in range(0, share, size)]

    return ahead(pieces, steps, 1, threads=1)


@dataclass(frozen=True)
class EDM2Loss:
    """Denoising loss with learned uncertainty (EDM2 eq. 21), per pixel; ln(sigma) has mean `P_mean` and standard
    deviation `P_std`, the data have standard deviation `sigma_data`."""

    P_mean: float = -0.4
    P_std: float = 1.0
    sigma_data: float = 0.5

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Loss [N, C, H, W] of latents `images` [N, C, H, W] with one-hot `labels` [N, label_dim].

        `sigma` [N, 1, 1, 1] and unit-variance `noise` [N, C, H, W], in this order, come from the global generator
        when None.
        """
        if sigma is None:
            sigma = (torch.randn([len(images), 1, 1, 1], device=images.device) * self.P_std + self.P_mean).exp()
        noise = torch.randn_like(images) if noise is None else noise
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        denoised, logvar = network(images + noise * sigma, sigma, labels, return_logvar=True)
        return (weight / logvar.exp()) * (denoised - images) ** 2 + logvar


def learning_rate(cur_nimg: int, batch_size: int, ref_lr: float, ref_batches: float, rampup_Mimg: float) -> float:
    """Learning rate of the step that starts at `cur_nimg` images: linear ramp-up, then 1/sqrt decay (EDM2 eq. 67)."""
    decay = math.sqrt(max(cur_nimg / (ref_batches * batch_size), 1)) if ref_batches > 0 else 1
    ramp = min(cur_nimg / (rampup_Mimg * 1e6), 1) if rampup_Mimg > 0 else 1
    return ref_lr / decay * ramp


class Trainer:
    """A network with its optimiser and averages, and the step that moves all three.

    Raises InputError where the batch cannot be shared out among the processes.
    """

    def __init__(self, network: Precond, settings: TrainingSettings) -> None:
        world = distributed.world_size()
        if settings.batch_size % world != 0:
            raise InputError(f"batch_size {settings.batch_size} cannot be shared among {world} processes")
        self.settings, self.share, self.cur_nimg = settings, settings.batch_size // world, 0
        self.network = network.train().requires_grad_(True)
        self.device = next(network.parameters()).device
        self.loss = EDM2Loss(settings.P_mean, settings.P_std, network.sigma_data)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.ref_lr, betas=(0.9, 0.99), fused=True)
        self.ema = PowerFunctionEMA(network, settings.ema_stds)
        self._wrapped: nn.Module = network
        distributed.barrier()
        if world > 1:
            with distributed.exchange():
                self._wrapped = DistributedDataParallel(network)
            self._wrapped.broadcast_buffers = False  # they never change

    def step(self, batches: Iterable[Batch]) -> Tensor:
        """One optimiser step on this process's share of the batch, in pieces; returns the summed loss, on the device.

        The loss is summed over pixels and averaged over all images of all processes: its scale matters to Adam's
        epsilon. Gradients that are not finite count as 0.
        """
        total = torch.zeros([], device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        net, seen = self._wrapped, 0
        with distributed.exchange(), tf32(False), fastest_convolutions():
            for batch in batches:
                seen += len(batch.images)
                # processes exchange gradients in the last piece only
                with net.no_sync() if isinstance(net, DistributedDataParallel) and seen < self.share else nullcontext():
                    loss = self.loss(net, *batch).sum()
                    (loss / self.share).backward()
                total += loss.detach()
            assert seen == self.share, f"got {seen} of {self.share} images"
            self.apply_gradients()
            self.ema.update(self.cur_nimg, self.settings.batch_size)
        return total

    def apply_gradients(self) -> None:
        """Move the weights by the gradients at hand; `cur_nimg` then counts their images as seen."""
        s, (group,) = self.settings, self.optimizer.param_groups
        group["lr"] = learning_rate(self.cur_nimg, s.batch_size, s.ref_lr, s.ref_batches, s.rampup_Mimg)
        for gradient in [p.grad for p in self.network.parameters() if p.grad is not None]:
            torch.nan_to_num(gradient, nan=0, posinf=0, neginf=0, out=gradient)
        self.optimizer.step()
        self.cur_nimg += s.batch_size

    def state_dict(self) -> dict[str, Any]:
        return {"nimg": self.cur_nimg} | {name: getattr(self, name).state_dict() for name in PARTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cur_nimg = state["nimg"]
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])


def initial(settings: TrainingSettings, dataset: TrainingData, device: torch.device) -> Trainer:
    """A run before its first step, with the weights that its seed draws."""
    torch.manual_seed(settings.seed)
    label_dim = dataset.label_dim if settings.conditional else 0
    network = Precond(dataset.img_resolution, dataset.img_channels, label_dim, **facts(settings.network))
    network.precision = PRECISIONS[settings.precision]
    return Trainer(channels_last(network.to(device)), settings)


def channels_last(network: Precond) -> Precond:
    """Lay out convolution weights with channels innermost, which convolutions run faster on; returns `network`."""
    for p in [p for p in network.parameters() if p.ndim == 4]:
        p.data = p.data.clone(memory_format=torch.channels_last)  # of 1x1 too, whose gradients DDP wants laid out alike
    return network


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """cuDNN measures its algorithms and keeps the fastest, which pays where shapes repeat; not so once this ends."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
