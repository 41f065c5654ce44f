"""Adapters against closed forms: the optimal eps, v, x0 and flow models of Gaussian data give D exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics.files import InputError
from repro import adapters
from repro.adapters.parameterisations import Adapted
from repro.guidance import guided
from repro.sampler import sample

SPREAD, MEAN = 0.4, 0.3
FACTS: dict[str, Any] = {"img_resolution": 4, "img_channels": 2}
ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
LOG_SIGMAS = ((1 - ALPHAS) / ALPHAS).log() / 2


def best(x: Tensor, sigma: Tensor) -> Tensor:
    """D(x; sigma) of data N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def of_time(t: Tensor) -> Tensor:
    """Sigma at t, between entries of the table too, [N, 1, 1, 1]."""
    log_sigma = np.interp(t.double().numpy(), np.arange(1000), LOG_SIGMAS.numpy())
    return torch.from_numpy(np.exp(log_sigma)).to(t.dtype if t.is_floating_point() else torch.float64)[
        :, None, None, None
    ]


def epsilon(x_t: Tensor, t: Tensor) -> Tensor:
    sigma = of_time(t).to(x_t.dtype)
    a = (1 + sigma**2).rsqrt()
    return (x_t - a * best(x_t / a, sigma)) / (sigma * a)


def x0(x_t: Tensor, t: Tensor) -> Tensor:
    sigma = of_time(t).to(x_t.dtype)
    return best(x_t * (1 + sigma**2).sqrt(), sigma)


def v(x_t: Tensor, t: Tensor) -> Tensor:
    sigma = of_time(t).to(x_t.dtype)
    a = (1 + sigma**2).rsqrt()
    return a * epsilon(x_t, t) - sigma * a * x0(x_t, t)


def flow(x_t: Tensor, t: Tensor) -> Tensor:
    t = t[:, None, None, None]
    clean = best(x_t / (1 - t), t / (1 - t))
    return (x_t - (1 - t) * clean) / t - clean


def reversed_flow(x_t: Tensor, t: Tensor) -> Tensor:
    return -flow(x_t, 1 - t / 1000)


MODELS: dict[str, Callable[[], Adapted]] = {
    "epsilon": lambda: adapters.from_epsilon(epsilon, ALPHAS, **FACTS),
    "v": lambda: adapters.from_v(v, ALPHAS, **FACTS),
    "x0": lambda: adapters.from_x0(x0, ALPHAS, **FACTS),
    "flow": lambda: adapters.from_flow(flow, **FACTS),
    "reversed flow": lambda: adapters.from_flow(reversed_flow, reversed=True, time_scale=1000.0, **FACTS),
}
#: On entries of the table, between them.
SIGMAS = [*LOG_SIGMAS[::100].exp().tolist(), *((LOG_SIGMAS[50:-1:100] + LOG_SIGMAS[51::100]) / 2).exp().tolist()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_best_models_of_gaussian_data_give_the_best_denoiser(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    assert len(SIGMAS) == 20
    denoiser = MODELS[name]()
    for level in SIGMAS:
        sigma = torch.tensor(level, dtype=dtype)
        x = MEAN + sigma * torch.randn(3, 2, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
        found = denoiser(x, sigma)
        assert found.dtype == dtype
        assert (found - best(x, sigma)).abs().max() <= tolerance * max(1, level)


def test_levels_of_a_batch_may_differ() -> None:
    x, sigma = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    found = MODELS["v"]()(x, sigma)
    torch.testing.assert_close(found, best(x, sigma[:, None, None, None]), rtol=0, atol=1e-9)


def asked(alphas: Tensor = ALPHAS, **options: Any) -> tuple[Adapted, list[Tensor]]:
    """An adapter, and the times that its model is asked at."""
    times: list[Tensor] = []

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return torch.zeros_like(x_t)

    return adapters.from_epsilon(model, alphas, **options, **FACTS), times


def test_outside_the_table_only_the_time_is_clamped() -> None:
    denoiser, times = asked()
    x = torch.ones(1, 2, 4, 4)
    for sigma, t in ((1e-5, 0.0), (1e6, 999.0)):
        assert torch.equal(denoiser(x, sigma), x)  # eps 0
        assert times[-1].tolist() == [t]
    assert (denoiser.sigma_min, denoiser.sigma_max) == pytest.approx((0.01000, 157.4), rel=1e-3)


def test_a_model_of_whole_times_is_asked_at_the_nearest_one() -> None:
    denoiser, times = asked(timesteps="nearest")
    x, mid = torch.ones(1, 2, 4, 4), (LOG_SIGMAS[500] + LOG_SIGMAS[501]) / 2
    for shift, t in ((-1e-4, 500), (1e-4, 501)):
        denoiser(x, (mid + shift).exp())
        assert times[-1].tolist() == [t]
        assert times[-1].dtype == torch.int64


def test_entries_without_signal_are_left_out() -> None:
    denoiser, times = asked(torch.cat([ALPHAS[:10], torch.zeros(1)]))
    denoiser(torch.ones(1, 2, 4, 4), 1e9)
    assert times[-1].tolist() == [9.0]
    assert np.isfinite(denoiser.sigma_max)


class Labelled(torch.nn.Module):
    """Answers with the number of the class it is asked for, and with twice as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.drop = torch.nn.Dropout(0.9)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert x_t.dtype == self.weight.dtype
        assert t.dtype == torch.float32  # 999.3 is no bfloat16
        numbers = labels if labels.ndim == 1 else labels.argmax(1)
        answer = self.drop(torch.zeros_like(x_t)) + numbers.to(x_t.dtype)[:, None, None, None]
        return torch.cat([answer, answer + 100], dim=1)


@pytest.mark.parametrize("labels", ["numbers", "one-hot"])
def test_labels_null_label_learned_variance_and_dtype(labels: str) -> None:
    null = 5 if labels == "numbers" else 4
    denoiser = adapters.from_x0(
        Labelled(),
        ALPHAS,
        label_dim=5,
        null_label=null,
        labels=labels,
        learned_variance=True,
        dtype=torch.bfloat16,
        **FACTS,
    )
    x, one_hot = torch.randn(2, 2, 4, 4), torch.eye(5)[[3, 1]]
    found = denoiser(x, 1.0, one_hot)
    assert (found.shape, found.dtype) == (x.shape, torch.float32)
    assert found[:, 0, 0, 0].tolist() == [3.0, 1.0]
    empty = adapters.null_class(denoiser)
    assert empty.label_dim == 0
    assert empty(x, 1.0)[:, 0, 0, 0].tolist() == [null, null]
    assert adapters.null_class(denoiser, 2)(x, 1.0)[:, 0, 0, 0].tolist() == [2.0, 2.0]
    # Classifier-free guidance from one and the same model.
    both = guided(denoiser, one_hot, [empty])(x, torch.tensor(1.0), [2.0])
    assert both[:, 0, 0, 0].tolist() == [6.0 - null, 2.0 - null]
    with pytest.raises(InputError, match="labels are required"):
        denoiser(x, 1.0)


def test_it_is_sampled_over_its_own_levels() -> None:
    denoiser, times = asked()
    sample(denoiser, torch.randn(1, 2, 4, 4), num_steps=4)
    assert times[0].tolist() == [999.0]
    assert times[-1].tolist() == pytest.approx([0.0], abs=1e-3)
    levels: list[float] = []

    class Bare:
        img_resolution, img_channels, label_dim, sigma_data, encoder = 4, 2, 0, 0.5, None

        def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            levels.append(float(sigma))
            return x * 0

    sample(Bare(), torch.randn(1, 2, 4, 4), num_steps=4)
    assert (levels[0], levels[-1]) == pytest.approx((80.0, 0.002))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapters.from_epsilon(epsilon, ALPHAS.flip(0), **FACTS), "that fall"),
        (lambda: adapters.from_epsilon(epsilon, torch.tensor([0.5]), **FACTS), "two or more"),
        (lambda: adapters.from_epsilon(epsilon, torch.tensor([1.5, 0.5]), **FACTS), "between 0 and 1"),
        (lambda: adapters.from_epsilon(epsilon, torch.tensor([0.5, float("nan")]), **FACTS), "between 0 and 1"),
        (lambda: adapters.from_epsilon(epsilon, ALPHAS, timesteps="next", **FACTS), "interpolated or nearest"),
        (lambda: adapters.from_flow(flow, labels="names", **FACTS), "numbers or one-hot"),
        (lambda: adapters.null_class(MODELS["flow"]()), "no null label; name the class"),
        (lambda: adapters.null_class(MODELS["flow"](), 3), "null_label is 3, the model has 0 classes"),
        (lambda: adapters.null_class(torch.nn.Linear(1, 1)), "expected|needs an adapted model"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
