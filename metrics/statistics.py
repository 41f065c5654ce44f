"""Float64 moments of features: accumulated in batches, merged over processes, kept in files with tags.

A statistics file is an npz: `mu` [D] and `sigma` [D, D] float64, `num_images`, and `tags` as JSON. Tags say how the
features were made; statistics whose tags disagree are never compared.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch

from metrics import distributed
from metrics.files import InputError, explained, load_npz, write_npz

Tag = str | int | float
Features = np.ndarray | torch.Tensor

# Tags that say where features came from rather than how they were computed: these may differ.
PROVENANCE = frozenset({"num_images", "image_size", "source", "source_digest", "device", "versions"})
# Tags without which agreement cannot be confirmed.
ESSENTIAL = ("detector", "weights_sha256", "resize", "dtype")


@dataclass(frozen=True)
class Statistics:
    """Mean `mu` [D] and covariance `sigma` [D, D] (n - 1), float64, of the features of `num_images` images."""

    num_images: int
    mu: np.ndarray
    sigma: np.ndarray
    tags: Mapping[str, Tag] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mu, sigma, where = self.mu, self.sigma, self.tags.get("source", "statistics")
        again = "make them again with `metrics reference`"
        if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
            raise InputError(f"{where}: mu is {mu.shape} and sigma {sigma.shape}, expected [D] and [D, D]; {again}")
        if mu.dtype != np.float64 or sigma.dtype != np.float64:
            raise InputError(f"{where}: mu and sigma are {mu.dtype} and {sigma.dtype}, expected float64; {again}")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise InputError(f"{where}: mu or sigma holds NaN or infinity; {again}")
        atol = 1e-9 * max(float(np.trace(sigma)), 0.0)
        if not (np.array_equal(sigma, sigma.T) or np.allclose(sigma, sigma.T, rtol=1e-6, atol=atol)):
            raise InputError(f"{where}: sigma is not symmetric, so not a covariance; {again}")

    @property
    def dim(self) -> int:
        return len(self.mu)

    @cached_property
    def factor(self) -> torch.Tensor:
        """A factor A [D, rank] with A A^T = sigma: Cholesky, with complete pivoting where sigma is singular.

        Directions below D * eps of the largest variance are rounding noise of a singular sigma and dropped.
        Raises InputError when sigma is not positive semi-definite.
        """
        lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(self.sigma))
        if not failed:
            return lower
        from scipy.linalg import lapack  # slow to import, and seldom needed

        packed, pivots, rank, _ = lapack.dpstrf(self.sigma, lower=1)
        factor = torch.from_numpy(np.ascontiguousarray(packed[:, :rank])).tril_()[torch.from_numpy(np.argsort(pivots))]
        trace = float(np.trace(self.sigma))
        if abs(float(factor.square().sum()) - trace) > 1e-6 * abs(trace):
            raise InputError("sigma has negative eigenvalues, so it is no covariance; compute the statistics again")
        return factor


class Moments:
    """Streaming mean and scatter matrix in float64 on `device`, by the pairwise update of Chan et al. (1983): no raw
    second moments, so features far from the origin lose no digits.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # sum of (x - mean)(x - mean)^T

    def update(self, features: Features) -> Self:
        """Add features [N, D] of any float type; raises InputError on NaN, infinity or another D."""
        x = as_tensor(features).to(self.mean.device)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise InputError(f"features have shape {tuple(x.shape)}, expected [N, {len(self.mean)}]")
        check_finite(x)
        if len(x):
            self._add(len(x), x.mean(dim=0, dtype=torch.float64), x)
        return self

    def merge(self, *others: Self) -> Self:
        """Add everything that others have seen, in order."""
        for other in others:
            if other.count:
                self.scatter += other.scatter
                self._add(other.count, other.mean, other.mean[None])
        return self

    def _add(self, count: int, mean: torch.Tensor, x: torch.Tensor) -> None:
        """Move to the joint mean: one matrix product holds the scatter of `x` about its mean and the shift of means."""
        total = self.count + count
        delta = mean - self.mean
        rows = self.scatter.new_empty(len(x) + 1, len(mean))  # the one float64 copy
        torch.sub(x, mean, out=rows[:-1])
        rows[-1] = delta * np.sqrt(self.count * count / total)
        self.scatter.addmm_(rows.T, rows)
        self.mean += delta * (count / total)
        self.count = total

    def reduce(self) -> Self:
        """Join the moments of all processes, in rank order, in one reduction; alone, changes nothing."""
        world, dim, device = distributed.world_size(), len(self.mean), self.mean.device
        if world == 1:
            return self
        rows = np.outer(np.arange(world) == distributed.rank(), [self.count, *self.mean.tolist()])
        packed = distributed.all_reduce_sum(np.concatenate([rows.ravel(), self.scatter.cpu().numpy().ravel()]))
        self.count, self.mean = 0, torch.zeros_like(self.mean)
        self.scatter = torch.from_numpy(packed[rows.size :].reshape(dim, dim)).to(device)
        for row in packed[: rows.size].reshape(rows.shape):
            if row[0]:
                mean = torch.from_numpy(row[1:]).to(device)
                self._add(int(row[0]), mean, mean[None])
        return self

    def finalize(self, tags: Mapping[str, Tag] | None = None) -> Statistics:
        """Mean and unbiased covariance; raises InputError when fewer than two images were seen."""
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, found {self.count}; give more images")
        sigma = self.scatter / (self.count - 1)
        return Statistics(self.count, self.mean.cpu().numpy().copy(), sigma.cpu().numpy(), dict(tags or {}))


def as_tensor(features: Features) -> torch.Tensor:
    """Features as a tensor, without a copy unless they are read-only (a memory-mapped file)."""
    if isinstance(features, np.ndarray) and not features.flags.writeable:
        features = features.copy()
    return torch.as_tensor(features)


def check_finite(*features: torch.Tensor) -> None:
    """Raise InputError on NaN and infinity."""
    if not all(bool(torch.isfinite(x).all()) for x in features):
        raise InputError("features hold NaN or infinity; look for broken images or weights")


def comparable(real: Features, fake: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors [N, D] and [M, D]; raises InputError on other shapes, NaN and infinity."""
    x, y = as_tensor(real), as_tensor(fake)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"features are {[*x.shape]} and {[*y.shape]}, not [N, D] and [M, D]; use the same detector")
    check_finite(x, y)
    return x, y


def from_features(features: Features, tags: Mapping[str, Tag] | None = None) -> Statistics:
    """Statistics of features [N, D] that are all at hand."""
    return Moments(features.shape[1]).update(features).finalize(tags)


def check_tags(a: Mapping[str, Tag], b: Mapping[str, Tag]) -> None:
    """Raise InputError where features were made differently: a tag that both sides have has different values."""
    for tag in sorted(set(a) & set(b) - PROVENANCE):
        if a[tag] != b[tag]:
            first, second = (f"{x[tag]!r} in {x.get('source', it)}" for x, it in ((a, "the first"), (b, "the second")))
            raise InputError(f"tag '{tag}' differs: {first} against {second}; make both with the same settings")


def save(stats: Statistics, path: str | Path) -> None:
    """Write one statistics file, atomically."""
    write_npz(path, to_arrays(stats))


def load(path: str | Path) -> Statistics:
    """Read a file written by `save`; raises InputError when it is missing, broken or of another format."""
    return from_arrays(load_npz(path), path)


def to_arrays(stats: Statistics, prefix: str = "") -> dict[str, np.ndarray]:
    """The named arrays of the file format."""
    found = {"mu": stats.mu, "sigma": stats.sigma, "num_images": stats.num_images, "tags": json.dumps(dict(stats.tags))}
    return {prefix + key: np.asarray(value) for key, value in found.items()}


def from_arrays(arrays: Mapping[str, np.ndarray], path: str | Path, prefix: str = "") -> Statistics:
    """Statistics from the named arrays of the file format; `path` serves the messages and the `source` tag."""
    remedy = "write it with `metrics reference`"
    keys = [prefix + key for key in ("mu", "sigma", "num_images", "tags")]
    if missing := [key for key in keys if key not in arrays]:
        raise InputError(f"{path}: no entry '{missing[0]}', found {sorted(arrays)}; {remedy}")
    mu, sigma, count, tags = (arrays[key] for key in keys)
    with explained(f"{path}: '{keys[3]}' or '{keys[2]}' is not readable", remedy, (ValueError, TypeError)):
        stats = Statistics(int(count), mu, sigma, {**json.loads(str(tags)), "source": str(path)})
    if stats.num_images < 2:
        raise InputError(f"{path}: holds statistics of {stats.num_images} images, expected at least 2; {remedy}")
    return stats
