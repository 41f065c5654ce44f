"""Improved precision/recall and density/coverage from nearest neighbours in feature space.

Kynkäänniemi et al. 2019 (arXiv:1904.06991) and Naeem et al. 2020 (arXiv:2002.09797). Both ask which points lie in which
balls, a ball reaching from a point to its k-th nearest neighbour in its own set. Distances come from float32 matrix
products over chunks of rows, so memory is O(chunk * N). Centring removes the offset that |x|^2 + |y|^2 - 2xy would
cancel away; what is still within rounding of a decision is decided in float64 from the features themselves.
"""

from collections.abc import Iterator, Sequence

import torch

from metrics.files import InputError
from metrics.statistics import Features, comparable

CHUNK = 1024  # rows of a distance block
PAIRS = 4096  # pairs measured in float64 at a time


def neighbour_metrics(real: Features, fake: Features, k: int | None = 3, k_density: int | None = 5) -> dict[str, float]:
    """Precision and recall with k neighbours, density and coverage with k_density; None leaves either two out.

    Precision is the share of fake [M, D] inside the real [N, D] manifold and recall the reverse; a point is inside
    when some ball of the other set holds it, its border included. Density is the mean number of real balls around a
    fake sample over k_density, which may exceed 1, coverage the share of real balls that hold a fake sample. Features
    of any detector and float type; raises InputError on other shapes, NaN, or too few images for the neighbours.
    """
    x, y = comparable(real, fake)
    n, m = len(x), len(y)
    centre = (x.sum(dim=0, dtype=torch.float64) + y.sum(dim=0, dtype=torch.float64)) / max(n + m, 1)
    a, b = _PointSet(x, centre), _PointSet(y, centre)
    wanted = [count for count in (k, k_density) if count is not None]
    real_radii = dict(zip(wanted, a.radii(wanted), strict=True))
    fake_radii = {k: b.radii([k])[0]} if k is not None else {}
    precise, recalled, occupied = (torch.zeros(size, dtype=torch.bool, device=x.device) for size in (m, n, n))
    balls = 0  # pairs of a fake point and a real ball around it
    for start, squared, tolerance in a.squared_distances(b):
        rows = slice(start, start + len(squared))
        if k is not None:
            precise |= a.within(b, start, squared, tolerance, real_radii[k][rows, None]).any(dim=0)
            recalled[rows] = a.within(b, start, squared, tolerance, fake_radii[k][None]).any(dim=1)
        if k_density is not None:
            inside = a.within(b, start, squared, tolerance, real_radii[k_density][rows, None])
            balls += int(inside.sum())
            occupied[rows] = inside.any(dim=1)
    manifold = {} if k is None else {"precision": int(precise.sum()) / m, "recall": int(recalled.sum()) / n}
    if k_density is None:
        return manifold
    return manifold | {"density": balls / (k_density * m), "coverage": int(occupied.sum()) / n}


def nearest(points: Features, among: Features, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances [N, k] float64, ascending, of points [N, D] to the k nearest of `among` [M, D], and numbers of these.

    Of equally near ones the first comes first. Raises InputError on other shapes, NaN, or fewer than k.
    """
    x, y = comparable(points, among)
    if not 1 <= k <= len(y):
        raise InputError(f"{k} nearest images cannot be had of {len(y)}; ask for fewer")
    centre = y.mean(dim=0, dtype=torch.float64)
    squared, numbers = _PointSet(x, centre).nearest(_PointSet(y, centre), k)
    return squared.sqrt(), numbers


def check_k(k: int, count: int) -> None:
    """Raise InputError where `count` images are too few for k neighbours of each."""
    if not 1 <= k < count:
        raise InputError(f"k = {k} nearest neighbours need more than {k} images, found {count}; give more")


class _PointSet:
    """Features with what distances need: centred float32 copies and their squared norms."""

    def __init__(self, raw: torch.Tensor, centre: torch.Tensor) -> None:
        self.raw = raw  # [N, D], as given
        self.centred = (raw - centre).float()  # [N, D]
        self.norms = self.centred.square().sum(dim=1)  # [N]

    def squared_distances(self, other: "_PointSet") -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(first row, squared distances [chunk, M], their error [chunk, 1]) over chunks of this set's rows."""
        # Rounding of a sum of D float32 terms grows like sqrt(D); 4 standard deviations of it.
        relative = 4 * self.raw.shape[1] ** 0.5 * torch.finfo(torch.float32).eps
        largest = other.norms.max()
        for start in range(0, len(self.raw), CHUNK):
            rows, norms = self.centred[start : start + CHUNK], self.norms[start : start + CHUNK, None]
            yield start, torch.addmm(norms + other.norms, rows, other.centred.T, alpha=-2), relative * (norms + largest)

    def exact(self, rows: torch.Tensor, other: "_PointSet", columns: torch.Tensor) -> torch.Tensor:
        """Squared distances [P] in float64 of the pairs (rows[p], columns[p])."""
        pairs = zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
        return torch.cat([(self.raw[i].double() - other.raw[j].double()).square().sum(dim=-1) for i, j in pairs])

    def radii(self, ks: Sequence[int]) -> torch.Tensor:
        """Squared distances [len(ks), N], float64, to the k-th nearest other point of this set, for each k."""
        count, most = len(self.raw), max(ks)
        check_k(min(ks), count)
        check_k(most, count)
        return self.nearest(self, most)[0][:, [k - 1 for k in ks]].T

    def nearest(self, other: "_PointSet", k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distances [N, k], float64, ascending, to the k nearest of other points, and their numbers [N, k].

        In its own set no point is its own neighbour. Of equally near ones the first comes first.
        """
        distances = torch.empty(len(self.raw), k, dtype=torch.float64, device=self.raw.device)
        numbers = torch.empty(len(self.raw), k, dtype=torch.int64, device=self.raw.device)
        for start, squared, tolerance in self.squared_distances(other):
            if other is self:
                squared.diagonal(start).fill_(torch.inf)
            # Whatever may truly be among the k nearest, as (row, column) pairs sorted by row, then column.
            limit = squared.topk(k, largest=False).values[:, -1:] + 2 * tolerance
            rows, columns = (squared <= limit).nonzero(as_tuple=True)
            counts = torch.bincount(rows, minlength=len(squared))
            position = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
            shape = len(squared), int(counts.max())
            table = torch.full(shape, torch.inf, dtype=torch.float64, device=rows.device)
            table[rows, position] = self.exact(rows + start, other, columns)
            table, order = table.sort(dim=1, stable=True)
            places = torch.zeros(shape, dtype=torch.int64, device=rows.device)
            places[rows, position] = columns
            distances[start : start + len(squared)] = table[:, :k]
            numbers[start : start + len(squared)] = places.gather(1, order)[:, :k]
        return distances, numbers

    def within(
        self, other: "_PointSet", start: int, squared: torch.Tensor, tolerance: torch.Tensor, radii: torch.Tensor
    ) -> torch.Tensor:
        """Which pairs of a distance block [chunk, M] are no farther apart than `radii` ([chunk, 1] or [1, M])."""
        inside = squared <= (radii - tolerance).float()
        rows, columns = ((squared <= (radii + tolerance).float()) & ~inside).nonzero(as_tuple=True)
        inside[rows, columns] = self.exact(rows + start, other, columns) <= radii.expand_as(squared)[rows, columns]
        return inside
