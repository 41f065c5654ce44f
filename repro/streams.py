"""Random numbers that depend on what they are for, never on who drew what before: counters, and a stream per seed."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.errors import InputError


def mix(*keys: int | NDArray[Any]) -> NDArray[np.uint64]:
    """Hash integers into 64 well-mixed bits (the finaliser of SplitMix64 over each in turn); arrays broadcast."""
    state = np.zeros([], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: int | NDArray[Any]) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on the integers `keys` alone; arrays broadcast."""
    return (mix(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class SeedStreams:
    """One random stream per seed (modulo 2^32), so that a sample depends on its seed alone; CPU and CUDA differ."""

    def __init__(self, device: torch.device | str, seeds: Sequence[int]) -> None:
        self.device = torch.device(device)
        self.seeds = [int(seed) for seed in seeds]
        self.generators = [torch.Generator(self.device).manual_seed(seed % 2**32) for seed in self.seeds]

    def branch(self, *keys: int) -> "SeedStreams":
        """Streams of the same seeds that are independent of these, others for every `keys`."""
        return SeedStreams(self.device, [int(mix(seed % 2**32, *keys)) for seed in self.seeds])

    def randn(self, size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Unit normal numbers [len(seeds), ...]."""
        return self._stack(torch.randn, size, dtype=dtype)

    def randn_like(self, x: Tensor) -> Tensor:
        """Unit normal numbers with the shape and dtype of `x`."""
        return self.randn(x.shape, dtype=x.dtype)

    def rand_like(self, x: Tensor) -> Tensor:
        """Numbers uniform in [0, 1), float32, with the shape of `x`."""
        return self._stack(torch.rand, x.shape)

    def randint(self, high: int, size: Sequence[int]) -> Tensor:
        """Integers in [0, high), int64 [len(seeds), ...]."""
        return self._stack(torch.randint, size, high=high)

    def _stack(self, draw: Callable[..., Tensor], size: Sequence[int], **options: Any) -> Tensor:
        if size[0] != len(self.generators):
            raise ValueError(f"size[0] is {size[0]}, expected one per seed: {len(self.generators)}")
        return torch.stack([draw(size=size[1:], generator=g, device=self.device, **options) for g in self.generators])


def parse_seeds(block: str, what: str = "seeds") -> range:
    """`first-last` (inclusive) or a single number -> range; InputErrors say `what` it is."""
    match = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", str(block))
    if not match:
        raise InputError(f"{what} '{block}': expected first-last, such as 0-1023")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < first + 10**7:
        raise InputError(f"{what} '{block}': the last seed comes before the first, or ten million after it")
    return range(first, last + 1)
