"""Authenticity and C_T on cases worked by hand, and against second implementations from other libraries."""

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from metrics.files import InputError
from metrics.memorisation import authentic, authentic_percentage, data_copying
from metrics.neighbours import nearest


def test_authenticity_worked_by_hand() -> None:
    # Training images at 0, 1, 3, 10; their nearest others are 1, 1, 2 and 7 away.
    train = np.array([[0.0], [1], [3], [10]])
    fake = np.array([[-0.5], [-1.5], [3.5], [4.9], [10], [2], [20]])
    # Nearest training image, its own neighbour against this one: 1 < 0.5 no; 1 < 1.5; 2 < 0.5 no; 2 < 1.9 no;
    # 7 < 0 no; of 1 and 3, equally near, the first: 1 < 1 no; 7 < 10.
    assert authentic(train, fake).tolist() == [False, True, False, False, False, False, True]
    assert authentic_percentage(train, fake) == pytest.approx(100 * 2 / 7)


def test_copies_are_not_authentic_nor_are_copies_of_images_that_occur_twice() -> None:
    train = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    assert authentic_percentage(train, train) == 0
    doubled = np.concatenate([train, train[:10]])
    assert authentic_percentage(doubled, train[:10]) == 0
    assert authentic_percentage(doubled, train[:10] + np.float32(1e-3)) == 100  # nothing is nearer than distance 0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 50), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**16))
def test_authenticity_equals_the_definition_over_all_distances(n: int, m: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    train, fake = rng.standard_normal((n, dim)), 0.9 * rng.standard_normal((m, dim))
    among, across = (scipy.spatial.distance.cdist(train, side) for side in (train, fake))
    np.fill_diagonal(among, np.inf)
    expected = among.min(axis=0)[across.argmin(axis=0)] < across.min(axis=0)
    assert authentic(train, fake).tolist() == expected.tolist()


@pytest.mark.parametrize(("dim", "expected"), [(1, 1 / 3), (2, 1 - 6 * np.pi / (8 * np.pi + 3 * 3**0.5))])
def test_new_images_are_authentic_as_often_as_theory_says(dim: int, expected: float) -> None:
    # Not authentic are those that are their nearest neighbour's nearest neighbour, as in a Poisson process.
    rng = np.random.default_rng(dim)
    train, fake = rng.uniform(size=(8000, dim)), rng.uniform(0.1, 0.9, size=(4000, dim))
    assert authentic_percentage(train, fake) == pytest.approx(100 * expected, abs=3)


def test_nearest_ones_are_exact_where_float32_products_cannot_tell() -> None:
    rng = np.random.default_rng(0)
    among = np.concatenate([1e3 + 1e-3 * rng.standard_normal((40, 8)), -1e3 + rng.standard_normal((40, 8))])
    points = 1e3 + 1e-3 * rng.standard_normal((30, 8))
    distances, numbers = nearest(points, among, 3)
    expected, places = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(among).kneighbors(points)
    brute = scipy.spatial.distance.cdist(points, among)
    np.testing.assert_array_equal(numbers, np.argsort(brute, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(distances, np.sort(brute, axis=1)[:, :3], rtol=1e-12)
    assert expected.shape == places.shape == numbers.shape
    with pytest.raises(InputError, match="81 nearest images cannot be had of 80"):
        nearest(points, among, 81)


def groups(rng: np.random.Generator, count: int, spread: float, dim: int = 1) -> np.ndarray:
    """`count` points around each of three places that nobody can mix up."""
    places = np.zeros((3, dim))
    places[:, 0] = 0, 1e3, 5e3
    return np.concatenate([place + spread * rng.standard_normal((count, dim)) for place in places])


def score(u: float, m: int, n: int) -> float:
    return (u - m * n / 2 + 0.5) / (m * n * (m + n + 1) / 12) ** 0.5


def test_copies_and_strangers_have_the_extreme_scores_worked_by_hand() -> None:
    train = np.array([[0.0], [1e3], [5e3]])
    near, far = (np.repeat(train, 24, axis=0) + step for step in (0.5, 3.0))
    test = np.repeat(train, 10, axis=0) + 1.0
    # In each cell every distance of 24 fake images is below (above) every one of 10 test images: U is 0 (240).
    assert data_copying(train, test, near) == pytest.approx(score(0, 24, 10), rel=1e-12)
    assert data_copying(train, test, far) == pytest.approx(score(240, 24, 10), rel=1e-12)
    # All distances equal: every pair is half a win.
    assert data_copying(train, test, np.repeat(train, 24, axis=0) - 1.0) == pytest.approx(score(120, 24, 10), rel=1e-12)


def test_cells_weigh_as_the_test_images_do_and_small_ones_nothing() -> None:
    train = np.array([[0.0], [1e3], [5e3]])
    fake = np.concatenate(
        [train[0] + np.full((30, 1), 0.5), train[1] + np.full((25, 1), 2.0), train[2] + np.ones((20, 1))]
    )
    test = np.concatenate([place + np.ones((n, 1)) for place, n in zip(train, (6, 2, 9), strict=True)])
    expected = (6 * score(0, 30, 6) + 2 * score(50, 25, 2)) / 8  # the third cell has 20 images, which are not enough
    assert data_copying(train, test, fake) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [3, 80])
def test_c_t_equals_a_second_implementation(dim: int) -> None:
    rng = np.random.default_rng(dim)
    scales = np.linspace(1.0, 0.2, dim)
    train, test, fake = (
        groups(rng, count, spread, dim) * scales for count, spread in ((60, 1.0), (40, 1.0), (50, 0.9))
    )
    sides = [train, test, fake]
    if dim > 64:
        pca = PCA(n_components=64, svd_solver="full").fit(train)
        sides = [pca.transform(side) for side in sides]
    kmeans = KMeans(n_clusters=3, n_init=10, random_state=0).fit(sides[0])
    cells = [kmeans.predict(side) for side in sides]
    weighted = 0.0
    for cell in range(3):
        own, held, made = (side[at == cell] for side, at in zip(sides, cells, strict=True))
        neighbours = NearestNeighbors(n_neighbors=1).fit(own)
        made_d, held_d = (neighbours.kneighbors(side)[0][:, 0] for side in (made, held))
        u = scipy.stats.mannwhitneyu(made_d, held_d, alternative="less").statistic
        weighted += len(held) / len(test) * score(u, len(made), len(held))
    assert data_copying(train, test, fake) == pytest.approx(weighted, rel=1e-9)


def test_new_images_of_the_same_distribution_score_as_a_standard_normal_variable() -> None:
    rng = np.random.default_rng(1)
    found = [data_copying(groups(rng, 40, 1.0, 4), groups(rng, 30, 1.0, 4), groups(rng, 30, 1.0, 4)) for _ in range(30)]
    assert abs(np.mean(found)) < 4 / np.sqrt(3 * 30)  # the mean of three scores, over thirty sets
    copies = groups(rng, 40, 1.0, 4)
    assert data_copying(copies, groups(rng, 30, 1.0, 4), copies + 1e-3) < -5


def test_the_same_seed_gives_the_same_cells() -> None:
    rng = np.random.default_rng(2)
    sides = [rng.standard_normal((count, 5)) for count in (90, 80, 120)]
    assert data_copying(*sides) == data_copying(*sides)
    assert data_copying(*(torch.from_numpy(side) for side in sides)) == data_copying(*sides)


def test_unusable_sides_are_refused() -> None:
    train = np.array([[0.0], [1e3], [5e3]])
    many, test = np.repeat(train, 30, axis=0), np.repeat(train, 2, axis=0)
    for sides, message in (
        ((train, test[:4], many), "one of 3 cells of training images has no test image"),
        ((train, test, many[::10]), "needs more than 20 images in a cell, found 9 in all"),
        ((train, test, many[::3]), "no cell holds more than 20 of the 30 images"),
        ((train, test[:2], many), "needs a test image in each of 3 cells, found 2"),
        ((np.ones((9, 1)), test, many), "fewer than 3 different features"),
        ((train, test, np.zeros((30, 2))), "use the same detector"),
        ((train, np.full((6, 1), np.nan), many), "NaN"),
        ((train[:2], test, many), "found 2"),
    ):
        with pytest.raises(InputError, match=message):
            data_copying(*sides)
    with pytest.raises(InputError, match="k = 1 nearest neighbours need more than 1 images, found 1"):
        authentic(train[:1], many)
