"""Guided sampling: ours against a plain transcription of the sampler, images per second and share of the fp16 peak.

The plain version calls the networks as they are published: every evaluation normalises and scales all weights anew, and
attention is an explicit product, softmax and product. Same networks (random weights, gains set so that every branch
counts), noise, labels and batch; the two alternate and the best round counts for each. On a CUDA device the pairs have
the shapes of EDM2-S with XS and of XXL with M, in float16; on a CPU a scaled-down pair stands in, in float32.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.detectors import rates
from repro import networks, schedules
from repro.cuda import replay
from repro.inference import fold
from repro.networks import Precond
from repro.preflight.standins import random_network
from repro.sampler import draw_inputs, sample
from repro.study.counting import counted_gflops, shape_of
from repro.training.recipes import RECIPES

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense float16 Tflops, tensor cores
GUIDANCE = 2.1


@dataclass(frozen=True)
class Case:
    name: str
    main: dict[str, Any]
    guide: dict[str, Any]
    batch: int
    num_steps: int
    tolerance: float
    """Largest relative difference of the latents (in float16, over a whole trajectory)."""


def cases(device: str) -> list[Case]:
    if device == "cuda":
        shapes = {size: shape_of(RECIPES[f"edm2-img512-{size}"]).arguments() for size in ("xs", "s", "m", "xxl")}
        return [
            Case("S + XS, float16", shapes["s"], shapes["xs"], 32, 32, 0.05),
            Case("XXL + M, float16", shapes["xxl"], shapes["m"], 32, 32, 0.05),
        ]
    small = dict(img_resolution=16, img_channels=4, label_dim=10, channel_mult=[1, 2], num_blocks=2)
    main = small | {"model_channels": 64, "attn_resolutions": [8]}
    guide = small | {"model_channels": 32, "attn_resolutions": [8], "channels_per_head": 32}
    return [Case("scaled down, float32", main, guide, 2, 4, 1e-4)]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """[N, heads, pixels, channels] each."""
    scale = scale or 1 / math.sqrt(q.shape[-1])
    weights = torch.einsum("nhqc,nhkc->nhqk", q, k * scale).float().softmax(dim=3).to(q.dtype)
    return torch.einsum("nhqk,nhkc->nhqc", weights, v)


@torch.no_grad()
def plain_sample(main: Precond, guide: Precond, noise: Tensor, labels: Tensor | None, num_steps: int) -> Tensor:
    """Heun's method as it reads (EDM algorithm 1), guided."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return guide(x, t, labels).lerp(main(x, t, labels), GUIDANCE)

    levels = schedules.edm(num_steps, dtype=torch.float32, device=noise.device)
    x = noise * levels[0]
    with patch.object(networks.F, "scaled_dot_product_attention", plain_attention):
        for i, (t, t_next) in enumerate(itertools.pairwise(levels)):
            d = (x - denoise(x, t)) / t
            x_next = x + (t_next - t) * d
            if i < num_steps - 1:
                d_next = (x_next - denoise(x_next, t_next)) / t_next
                x_next = x + (t_next - t) * (d + d_next) / 2
            x = x_next
    return x


def peak_tflops() -> float:
    """Of the GPU, in float16; measured by a large product where the model is not listed."""
    name = torch.cuda.get_device_name()
    listed = next((peak for part, peak in PEAKS.items() if part in name), None)
    if listed is not None:
        return listed
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    return 2 * 8192**3 * rates({"product": lambda: a @ a}, 1, "cuda")["product"] / 1e12


def gflops(network: Precond) -> float:
    """Multiply-additions of one evaluation of one image."""
    x = torch.empty(1, network.img_channels, network.img_resolution, network.img_resolution)
    with torch.device("meta"):
        twin = Precond(**network.init_kwargs)
        return counted_gflops(twin, x.to("meta"), torch.empty(1), torch.empty(1, network.label_dim))


def faster(
    pair: list[Precond], noise: Tensor, labels: Tensor | None, num_steps: int
) -> dict[str, Callable[[], Tensor]]:
    """Ours with main network and guide side by side, and with each as a CUDA graph, both ways of the same bits."""
    graphs = [fold(network, noise.device) for network in pair]  # other modules of the same tensors
    for network in graphs:
        replay(network)

    def sampled(networks: list[Precond], streams: bool) -> Tensor:
        main, guide = networks
        return sample(main, noise, labels, guide=guide, guidance=GUIDANCE, num_steps=num_steps, streams=streams)

    return {
        "streams": lambda: sampled(pair, True),
        "graphs": lambda: sampled(graphs, False),
        "both": lambda: sampled(graphs, True),
    }


def measure(case: Case, device: str) -> None:
    pair = [random_network(arguments, seed, device) for seed, arguments in enumerate((case.main, case.guide))]
    ready = [fold(network, device) for network in pair]
    noise, labels = draw_inputs(pair[0], range(case.batch), device)

    def ours() -> Tensor:
        return sample(ready[0], noise, labels, guide=ready[1], guidance=GUIDANCE, num_steps=case.num_steps)

    def plain() -> Tensor:
        return plain_sample(pair[0], pair[1], noise, labels, case.num_steps)

    a, b = ours(), plain()
    error = float((a - b).norm() / b.norm())
    assert error < case.tolerance, error
    versions = {"plain": plain, "ours": ours}
    if device == "cuda":
        versions |= faster(ready, noise, labels, case.num_steps)
        for name in ("streams", "graphs"):
            assert torch.equal(versions[name](), a), name
    rate = rates(versions, case.batch, device)
    print(f"{case.name}, batch {case.batch}, {case.num_steps} steps: latents differ by {error:.0e} (relative)")
    evaluations = 2 * case.num_steps - 1
    tflops = 2 * evaluations * sum(map(gflops, pair)) / 1e3  # a multiplication and an addition are two
    for name in versions:
        achieved = tflops * rate[name]
        share = f", {achieved / peak_tflops():.0%} of the float16 peak" if device == "cuda" else ""
        print(f"  {name:8}{rate[name]:9.3f} images/s  {achieved:7.3f} Tflops/s{share}")
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most" if device == "cuda" else ""
    print(f"  {rate['ours'] / rate['plain']:.2f}x{memory}")


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for case in cases(device):
        measure(case, device)


if __name__ == "__main__":
    main()
