"""Whether images are copies of training images, by distances in feature space from the nearest of these.

Authenticity asks it image by image (Alaa et al. 2022, arXiv:2102.08921, section 4.3), C_T of the whole set, against a
held-out test set (Meehan et al. 2020, arXiv:2004.05675). Both as dgm-eval has them (Stein et al. 2023,
arXiv:2306.04675), who find that neither detects memorisation reliably.
"""

import numpy as np
import torch

from metrics.files import InputError
from metrics.neighbours import check_k, nearest
from metrics.statistics import Features, Moments, comparable

#: Of C_T: principal components, cells, random starts of k-means, images that a cell must hold more than to count.
COMPONENTS, CELLS, STARTS, LEAST = 64, 3, 10, 20
CHUNK = 4096  # rows that are float64 at a time


def authentic(train: Features, fake: Features) -> torch.Tensor:
    """Which of fake [M, D] are authentic, bool [M], given training features [L, D].

    An image is where the training image nearest to it has another training image nearer to itself than this one.
    Raises InputError on other shapes, NaN, or fewer than two training images.
    """
    x, y = comparable(train, fake)
    check_k(1, len(x))
    distances, numbers = nearest(y, x)
    members, place = numbers[:, 0].unique(return_inverse=True)
    own, _ = nearest(x[members], x, 2)  # the nearest of them is the image itself, or one equal to it
    return own[place, 1] < distances[:, 0]


def authentic_percentage(train: Features, fake: Features) -> float:
    """Percentage of fake [M, D] that is authentic: 0 for copies, about 50 for new images of the training distribution.

    About 33 in one dimension: those are not authentic that are their nearest neighbour's nearest neighbour.
    """
    return 100 * float(authentic(train, fake).double().mean())


def data_copying(train: Features, test: Features, fake: Features, seed: int = 0) -> float:
    """C_T of features [L, D], [N, D], [M, D]: below 0 where fake ones lie nearer to training than test images do.

    The training set is cut into `CELLS` by k-means on its first `COMPONENTS` principal components. In each cell the
    Mann-Whitney test compares the distances of fake and of test images from its nearest training image; C_T is the mean
    of its standard scores, weighted with the share of test images, over cells of more than `LEAST` fake images. About a
    standard normal variable, were the distances of equal distribution. `seed` is that of k-means.

    Raises InputError on other shapes, NaN, and where a cell has no test image or none has enough fake ones.
    """
    x, y = comparable(train, fake)
    _, z = comparable(train, test)
    check_counts(len(x), len(z), len(y))
    train_p, test_p, fake_p = _components(x, z, y)
    centres = _centres(train_p, np.random.default_rng(seed))
    cells = [torch.cdist(side, centres).argmin(dim=1) for side in (train_p, test_p, fake_p)]
    score, weight = 0.0, 0.0
    for cell in range(CELLS):
        own, held, made = (side[at == cell] for side, at in zip((train_p, test_p, fake_p), cells, strict=True))
        if not len(held):
            raise InputError(f"C_T: one of {CELLS} cells of training images has no test image; give more test images")
        if len(made) > LEAST:
            distances = [nearest(side, own)[0][:, 0] for side in (made, held)]
            score += len(held) * _standard_score(*distances)
            weight += len(held)
    if not weight:
        raise InputError(f"C_T: no cell holds more than {LEAST} of the {len(y)} images; give more images")
    return score / weight


def check_counts(train: int, test: int, fake: int) -> None:
    """Raise InputError where there are too few images for C_T, whatever they are."""
    check_k(CELLS - 1, train)
    if test < CELLS:
        raise InputError(f"C_T needs a test image in each of {CELLS} cells, found {test} test images; give more")
    if fake <= LEAST:
        raise InputError(f"C_T needs more than {LEAST} images in a cell, found {fake} in all; give more images")


def _components(train: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """All sides in the first principal components of the first one, float64; as they are where there are no more."""
    if train.shape[1] <= COMPONENTS:
        return [side.double() for side in (train, *others)]
    moments = Moments(train.shape[1], train.device)
    for part in train.split(CHUNK):
        moments.update(part)
    axes = torch.linalg.eigh(moments.scatter)[1][:, -COMPONENTS:]
    chunks = [[(part.double() - moments.mean) @ axes for part in side.split(CHUNK)] for side in (train, *others)]
    return [torch.cat(parts) for parts in chunks]


def _centres(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Centres [CELLS, D] of k-means: the best of `STARTS` runs of Lloyd's algorithm, begun by k-means++."""
    best, found = torch.inf, x[:CELLS]
    for _ in range(STARTS):
        centres = x[[int(rng.integers(len(x)))]]
        while len(centres) < CELLS:
            squared = torch.cdist(x, centres).min(dim=1).values.square()
            if not float(squared.sum()):
                raise InputError(f"C_T: the training images have fewer than {CELLS} different features; give more")
            shares = (squared / squared.sum()).cpu().numpy()
            centres = torch.cat([centres, x[[int(rng.choice(len(x), p=shares / shares.sum()))]]])
        before = None
        for _ in range(300):
            distances, at = torch.cdist(x, centres).min(dim=1)
            if before is not None and torch.equal(at, before):
                break
            members = torch.nn.functional.one_hot(at, CELLS).to(x.dtype)  # [L, CELLS]
            counts, before = members.sum(dim=0), at
            centres = torch.where(counts[:, None] > 0, members.T @ x / counts.clamp(min=1)[:, None], centres)
        if (spread := float(distances.square().sum())) < best:
            best, found = spread, centres
    return found


def _standard_score(made: torch.Tensor, held: torch.Tensor) -> float:
    """Mann-Whitney's U of distances [m] against [n], standardised, with dgm-eval's correction for continuity."""
    ascending, m, n = held.sort().values, len(made), len(held)
    below = sum(torch.searchsorted(ascending, made, right=right).sum() for right in (False, True))  # half for a tie
    u = float(below) / 2
    return (u - (m * n / 2 - 0.5)) / (m * n * (m + n + 1) / 12) ** 0.5
