"""Float64 moments of features: accumulated in batches, merged over processes, kept in files with tags.

A statistics file is an uncompressed npz: `mu` [D] and `sigma` [D, D] float64, `num_images`, and `tags`
as JSON text. Tags say how the features were made; statistics whose tags disagree are never compared.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from metrics import distributed
from metrics.files import InputError, atomic_write, load_npz

Tag = str | int | float
Features = np.ndarray | Tensor

# Tags that say where features came from rather than how they were computed: these may differ.
PROVENANCE = frozenset({"num_images", "source", "source_digest", "device", "versions"})
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
        where = self.tags.get("source", "statistics")
        dim = self.mu.shape[0] if self.mu.ndim == 1 else 0
        if dim == 0 or self.sigma.shape != (dim, dim):
            raise InputError(
                f"{where}: mu has shape {self.mu.shape} and sigma {self.sigma.shape}, expected [D] and [D, D]; "
                "make the file again with `metrics reference`"
            )
        if self.mu.dtype != np.float64 or self.sigma.dtype != np.float64:
            raise InputError(f"{where}: mu and sigma are {self.mu.dtype} and {self.sigma.dtype}, expected float64")
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise InputError(f"{where}: mu or sigma holds NaN or infinity; compute the statistics again")
        if not np.allclose(self.sigma, self.sigma.T, rtol=1e-6, atol=1e-9 * max(float(np.trace(self.sigma)), 0.0)):
            raise InputError(f"{where}: sigma is not symmetric, so not a covariance; compute the statistics again")

    @property
    def dim(self) -> int:
        return len(self.mu)


class Moments:
    """Streaming mean and scatter matrix in float64 on `device`, by the pairwise update of Chan et al. (1983).

    The state never holds raw second moments, so features far from the origin lose no digits.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # sum of (x - mean)(x - mean)^T

    def update(self, features: Features) -> Self:
        """Add features [N, D] of any float type; raises InputError on NaN, infinity or another D."""
        x = as_tensor(features).to(self.mean.device, torch.float64)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise InputError(f"features have shape {tuple(x.shape)}, expected [N, {len(self.mean)}]")
        if not bool(torch.isfinite(x).all()):
            raise InputError("features hold NaN or infinity; look for broken images or weights")
        if len(x) == 0:
            return self
        mean = x.mean(dim=0)
        self._add(len(x), mean, x - mean)
        return self

    def merge(self, other: Self) -> Self:
        """Add everything that `other` has seen."""
        if other.count:
            self.scatter += other.scatter
            self._add(other.count, other.mean, torch.zeros_like(other.mean)[None])
        return self

    def _add(self, count: int, mean: Tensor, centred: Tensor) -> None:
        """Move to the joint mean: one matrix product holds the batch's scatter and the shift between means."""
        total = self.count + count
        delta = mean - self.mean
        rows = torch.cat([centred, math.sqrt(self.count * count / total) * delta[None]])  # [N + 1, D]
        self.scatter.addmm_(rows.T, rows)
        self.mean += delta * (count / total)
        self.count = total

    def reduce(self) -> Self:
        """Join the moments of all processes, in rank order, in one reduction; alone, changes nothing."""
        world, dim = distributed.world_size(), len(self.mean)
        if world == 1:
            return self
        rows = np.zeros((world, dim + 1))
        rows[distributed.rank()] = [self.count, *self.mean.tolist()]
        packed = distributed.all_reduce_sum(np.concatenate([rows.ravel(), self.scatter.cpu().numpy().ravel()]))
        rows, scatter = packed[: rows.size].reshape(rows.shape), packed[rows.size :].reshape(dim, dim)
        device = self.mean.device
        self.count, self.mean = 0, torch.zeros_like(self.mean)
        self.scatter = torch.from_numpy(scatter).to(device)
        for row in torch.from_numpy(rows).to(device):
            if row[0] > 0:
                self._add(int(row[0]), row[1:], torch.zeros_like(self.mean)[None])
        return self

    def finalize(self, tags: Mapping[str, Tag] | None = None) -> Statistics:
        """Mean and unbiased covariance; raises InputError when fewer than two images were seen."""
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, found {self.count}; give more images")
        sigma = self.scatter / (self.count - 1)
        return Statistics(self.count, self.mean.cpu().numpy().copy(), sigma.cpu().numpy(), dict(tags or {}))


def as_tensor(features: Features) -> Tensor:
    """Features as a tensor, without a copy unless they are read-only (a memory-mapped file)."""
    if isinstance(features, np.ndarray) and not features.flags.writeable:
        features = features.copy()
    return torch.as_tensor(features)


def from_features(features: Features, tags: Mapping[str, Tag] | None = None) -> Statistics:
    """Statistics of features [N, D] that are all at hand."""
    return Moments(features.shape[1]).update(features).finalize(tags)


def check_tags(a: Mapping[str, Tag], b: Mapping[str, Tag]) -> list[str]:
    """Refuse to compare features made differently; returns the essential tags that one side lacks.

    Raises InputError naming the first tag that both sides have with different values.
    """
    for tag in sorted(set(a) & set(b) - PROVENANCE):
        if a[tag] != b[tag]:
            raise InputError(
                f"tag '{tag}' differs: {a[tag]!r} in {a.get('source', 'the first')} against {b[tag]!r} in "
                f"{b.get('source', 'the second')}; make both with the same detector settings"
            )
    return [tag for tag in ESSENTIAL if tag not in a or tag not in b]


def save(stats: Statistics, path: str | Path) -> None:
    """Write one statistics file, atomically."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **to_arrays(stats))


def load(path: str | Path) -> Statistics:
    """Read a file written by `save`; raises InputError when it is missing, broken or of another format."""
    return from_arrays(load_npz(path), path)


def to_arrays(stats: Statistics, prefix: str = "") -> dict[str, np.ndarray]:
    """The named arrays of the file format."""
    values = {
        "mu": stats.mu,
        "sigma": stats.sigma,
        "num_images": stats.num_images,
        "tags": json.dumps(dict(stats.tags)),
    }
    return {prefix + key: np.asarray(value) for key, value in values.items()}


def from_arrays(arrays: Mapping[str, np.ndarray], path: str | Path, prefix: str = "") -> Statistics:
    """Statistics from the named arrays of the file format; `path` serves the messages and the `source` tag."""
    for key in ("mu", "sigma", "num_images", "tags"):
        if prefix + key not in arrays:
            raise InputError(
                f"{path}: no entry '{prefix + key}', found {sorted(arrays)}; write it with `metrics reference`"
            )
    try:
        tags = json.loads(str(arrays[prefix + "tags"]))
        num_images = int(arrays[prefix + "num_images"])
    except (ValueError, TypeError):
        raise InputError(
            f"{path}: '{prefix}tags' or '{prefix}num_images' is not readable; make the file again"
        ) from None
    if not isinstance(tags, dict) or num_images < 2:
        raise InputError(f"{path}: expected tags as a JSON object and at least 2 images; make the file again")
    return Statistics(num_images, arrays[prefix + "mu"], arrays[prefix + "sigma"], {**tags, "source": str(path)})
