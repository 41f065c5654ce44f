"""One training iteration of the 2D example: ours against the equations written down with einsum and autograd.

Both train the main network from the same state on the same points: same dtype, threads, batch, optimiser, average
and warm-up, and iterations that alternate. The baseline is vectorised over points and components, its inverse and
determinant are closed forms, and what does not depend on the points is computed beforehand.
"""

import statistics
import time

import torch
from torch import Tensor

from metrics.memory import keep_freed_memory
from repro.toy.mixture import Mixture, fractal
from repro.toy.model import ToyNetwork
from repro.toy.settings import ToySettings
from repro.toy.training import Trainer, draw

ITERATIONS = 12
TOLERANCES = {"einsum": 5e-5, "ours": 1e-5}  # of sigma * score against float64


class EinsumMixture:
    """Score of the mixture by its definition."""

    def __init__(self, mixture: Mixture, dtype: torch.dtype = torch.float32) -> None:
        self.mixture = mixture
        self.means = mixture.means.to(dtype)  # [K, 2]
        self.covariances = mixture.covariances.repeat_interleave(8, dim=0).to(dtype)  # [K, 2, 2]
        self.log_weights = mixture.component_weights.log().to(dtype)
        self.identity = torch.eye(2, dtype=dtype)

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mixture.sample(num, generator)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """[N, 2], [N, 1] -> [N, 2]: sum over components of responsibility * S^-1 (mean - x)."""
        S = self.covariances + sigma[:, :, None, None] ** 2 * self.identity  # [N, K, 2, 2]
        det = S[..., 0, 0] * S[..., 1, 1] - S[..., 0, 1] ** 2
        adjugate = torch.stack([S[..., 1, 1], -S[..., 0, 1], -S[..., 1, 0], S[..., 0, 0]], dim=-1)
        inverse = adjugate.reshape(S.shape) / det[..., None, None]
        apart = x[:, None] - self.means  # [N, K, 2]
        exponent = -0.5 * torch.einsum("nki,nkij,nkj->nk", apart, inverse, apart)
        responsibility = (self.log_weights + exponent - 0.5 * det.log()).softmax(dim=1)
        return -torch.einsum("nk,nkij,nkj->ni", responsibility, inverse, apart)


class AutogradNetwork(ToyNetwork):
    """The same network, its score by automatic differentiation of the log density."""

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.log_density(x, sigma).sum(), x, create_graph=True)[0]


def seconds(trainer: Trainer) -> tuple[float, float]:
    """Loss and duration of one iteration."""
    start = time.perf_counter()
    loss = trainer.step()
    return loss, time.perf_counter() - start


def main() -> None:
    settings = ToySettings()
    ours, baseline = (Trainer(settings.main, settings.training) for _ in range(2))
    baseline.network.__class__ = AutogradNetwork
    einsum = EinsumMixture(baseline.mixture)
    baseline.mixture = einsum  # type: ignore[assignment]
    keep_freed_memory()

    print(f"Toy training iteration, float32, batch {settings.training.batch_size}, {torch.get_num_threads()} threads")
    for classes in ("A", "AB"):
        mixture = fractal(classes)
        x, sigma = draw(mixture, settings.training, torch.Generator().manual_seed(1))
        exact = EinsumMixture(mixture, torch.float64).score(x.double(), sigma.double())
        for name, score in (("einsum", EinsumMixture(mixture).score(x, sigma)), ("ours", mixture.score(x, sigma))):
            error = (sigma * (score - exact)).abs().max().item()
            print(f"  sigma * |score - float64|, {len(mixture.means):,} components, {name:7} {error:.1e}")
            assert error <= TOLERANCES[name], (name, error)

    times: dict[str, list[float]] = {"einsum": [], "ours": []}
    for i in range(ITERATIONS + 2):
        expected, slow = seconds(baseline)
        loss, fast = seconds(ours)
        assert abs(loss - expected) <= 1e-3 * expected, (loss, expected)
        if i >= 2:  # warm
            times["einsum"].append(slow)
            times["ours"].append(fast)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"  {name:7} {median * 1e3:8.1f} ms per iteration   {medians['einsum'] / median:.1f}x")


if __name__ == "__main__":
    main()
