"""Training steps of the digits network: ours against a plain transcription of the recipe.

Both take the same data from the same initial weights, with the same threads and dtype. The plain version keeps
PyTorch's default memory layout and treats weights one by one: Adam, the averages, the filter for gradients. The final
weights and averages are asserted equal; the best step of each is compared, since other work may share the machine.

On a CUDA device also: an EDM2-S of 64 x 64 pixels in float16, images per second and model-flops utilisation.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.sampling import peak_tflops
from repro.data.digits import Digits
from repro.ema import beta
from repro.networks import Precond
from repro.strict import facts
from repro.study.counting import shape_of
from repro.training import EDM2Loss, NetworkSettings, TrainingSettings, learning_rate, recipes
from repro.training.trainer import Batch, Trainer, channels_last, draw

STEPS = 16
BATCH = 64
SETTINGS = TrainingSettings(
    name="bench",
    network=NetworkSettings(model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,)),
    batch_size=BATCH,
    ref_batches=400,
    rampup_Mimg=4 * BATCH / 1e6,
    P_mean=-0.8,
    P_std=1.6,
)


class PlainTrainer:
    """The recipe as it reads: one tensor at a time."""

    def __init__(self, network: Precond) -> None:
        self.network = network.train()
        self.loss = EDM2Loss(SETTINGS.P_mean, SETTINGS.P_std)
        self.averages = {std: copy.deepcopy(network) for std in SETTINGS.ema_stds}
        self.optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99), foreach=False)
        self.cur_nimg = 0

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        (self.loss(self.network, *batch).sum() / BATCH).backward()
        self.update_weights()
        self.update_averages()

    def update_weights(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.cur_nimg, BATCH, SETTINGS.ref_lr, SETTINGS.ref_batches, SETTINGS.rampup_Mimg
            )
        for p in self.network.parameters():
            if p.grad is not None:
                p.grad = torch.nan_to_num(p.grad, nan=0, posinf=0, neginf=0)
        self.optimizer.step()
        self.cur_nimg += BATCH

    @torch.no_grad()
    def update_averages(self) -> None:
        for std, average in self.averages.items():
            decay = float(beta(std, self.cur_nimg, BATCH))
            for p_average, p in zip(average.parameters(), self.network.parameters(), strict=True):
                p_average.copy_(p_average * decay + p * (1 - decay))


def network() -> Precond:
    torch.manual_seed(0)
    return Precond(16, 1, 10, **facts(SETTINGS.network))


def batches(dataset: Digits) -> list[Batch]:
    """The data of all steps, drawn beforehand: both versions draw it alike."""
    drawn = (draw(SETTINGS, dataset, np.arange(i * BATCH, (i + 1) * BATCH)) for i in range(STEPS))
    return [Batch(dataset.encoder.encode_latents(d.raw), d.labels, d.sigma, d.noise[:, 0]) for d in drawn]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def relative_difference(a: nn.Module, b: nn.Module) -> float:
    def flat(net: nn.Module) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in net.parameters()])

    return float((flat(a) - flat(b)).norm() / flat(b).norm())


def row(name: str, steps: Sequence[float], ema: float, optimizer: float) -> str:
    best = min(steps[2:])
    return f"{name:8}{best * 1e3:10.1f}{BATCH / best:10.0f}{ema / best:10.1%}{optimizer / best:12.1%}"


def throughput(batch_size: int = 128, accumulated: int = 4, steps: int = 8) -> None:
    """Training throughput of EDM2-S at 64 x 64 on one GPU; a step counts as three evaluations."""
    recipe = recipes.RECIPES["edm2-img64-s"]
    settings = replace(recipes.configure("edm2-img64-s").settings, batch_size=batch_size * accumulated)
    resolution, channels = recipe.data_shape
    with torch.device("cuda"):
        net = Precond(resolution, channels, recipes.LABELS, **facts(settings.network))
    trainer = Trainer(channels_last(net), settings)

    def pieces() -> Iterator[Batch]:
        for _ in range(accumulated):
            images = torch.randn(batch_size, channels, resolution, resolution, device="cuda") / 2
            labels = torch.eye(recipes.LABELS, device="cuda")[
                torch.randint(recipes.LABELS, [batch_size], device="cuda")
            ]
            sigma = (torch.randn(batch_size, 1, 1, 1, device="cuda") * settings.P_std + settings.P_mean).exp()
            yield Batch(images, labels, sigma, torch.randn_like(images))

    def synchronised() -> None:
        trainer.step(pieces())
        torch.cuda.synchronize()

    for _ in range(3):
        synchronised()
    rate = settings.batch_size / min(seconds(synchronised) for _ in range(steps))
    tflops = 2 * shape_of(recipe).count().gflops * 3 * rate / 1e3
    print(f"EDM2-S, 64 x 64, float16, batch {accumulated} x {batch_size}, {torch.cuda.get_device_name()}")
    print(f"  {rate:.1f} images/s, {tflops:.0f} Tflops/s, {tflops / peak_tflops():.0%} of the float16 peak")
    print(f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


def main() -> None:
    data = batches(Digits())
    ours = Trainer(channels_last(network()), SETTINGS)
    plain = PlainTrainer(network())
    our_steps, plain_steps = [], []
    for batch in data:  # in turns, so that other load on the machine hits both
        our_steps.append(seconds(partial(ours.step, [batch])))
        plain_steps.append(seconds(partial(plain.step, batch)))
    pairs = [(ours.network, plain.network)]
    pairs += [(average, plain.averages[std]) for std, average in ours.ema.networks().items()]
    differences = [relative_difference(a, b) for a, b in pairs]
    assert max(differences) < 1e-3, differences

    our_ema = min(seconds(lambda: ours.ema.update(ours.cur_nimg, BATCH)) for _ in range(10))
    plain_ema = min(seconds(plain.update_averages) for _ in range(10))
    our_optimizer = min(seconds(ours.apply_gradients) for _ in range(10))
    plain_optimizer = min(seconds(plain.update_weights) for _ in range(10))

    print(f"training step, digits main network, batch {BATCH}, float32, {torch.get_num_threads()} threads")
    print(f"{'':8}{'ms/step':>10}{'images/s':>10}{'averages':>10}{'optimiser':>12}")
    print(row("plain", plain_steps, plain_ema, plain_optimizer))
    print(row("ours", our_steps, our_ema, our_optimizer))
    print(f"{min(plain_steps[2:]) / min(our_steps[2:]):.2f}x; final weights differ by {max(differences):.0e}")
    if torch.cuda.is_available():
        throughput()


if __name__ == "__main__":
    main()
