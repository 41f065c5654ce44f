"""Training runs as the snapshots they left behind, from which networks of any EMA length are reconstructed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metrics.files import InputError
from repro import ema, snapshots
from repro.study import Study, nearest

SUFFIXES = (".safetensors", ".pkl")


@dataclass(frozen=True)
class Run:
    """A training run: the folder of its snapshots RUN-KIMG-STD."""

    source: str
    """Id in the study, or folder."""
    folder: Path
    times: Mapping[Path, tuple[int, float]]
    """Snapshot -> images seen, EMA length."""

    @cached_property
    def name(self) -> str:
        """RUN, as in the names of its snapshots."""
        parts = snapshots.parse_name(min(self.times).name)
        assert parts is not None  # read_run took no other
        return parts.run

    @property
    def nimg(self) -> list[int]:
        """Times of its snapshots, in images, ascending."""
        return sorted({nimg for nimg, _ in self.times.values()})

    def halvings(self) -> list[int]:
        """Thousands of images: the whole training, half of it, a quarter, ..., where there are snapshots."""
        known, last = set(self.nimg), self.nimg[-1]
        found = [last >> k for k in range(last.bit_length()) if last >> k in known and last % 2**k == 0]
        return [nimg // 1000 for nimg in found]

    def at(self, kimg: int) -> int:
        """The snapshots' time, in images, that file names call `kimg`."""
        for nimg in self.nimg:
            if nimg // 1000 == kimg:
                return nimg
        known = ", ".join(str(nimg // 1000) for nimg in self.nimg)
        raise InputError(f"{self.folder}: no snapshot at {kimg} kimg; there are snapshots at {known}")

    def ema_range(self, kimg: int, lattice: NDArray[np.float64], profile_error: float) -> tuple[float, float]:
        """Least and greatest EMA length of `lattice` whose profile the snapshots up to `kimg` rebuild well enough.

        `profile_error`: largest relative L2 error. Lengths between good ones are good: the error grows away from the
        lengths that were tracked.

        Raises:
            InputError: none is.
        """
        last = self.at(kimg)
        nimg, std = zip(*sorted(time for time in self.times.values() if time[0] <= last), strict=True)
        good = lattice[ema.profile_error(nimg, std, last, lattice) <= profile_error]
        if not len(good):
            raise InputError(
                f"{self.folder}: the snapshots up to {kimg} kimg give no EMA length from {lattice[0]:g} to "
                f"{lattice[-1]:g} within profile_error {profile_error:g}; keep snapshots more often, or leave {kimg} "
                "out of guide_kimg"
            )
        return float(good[0]), float(good[-1])

    @cached_property
    def stamp(self) -> str:
        """A short digest that changes with the snapshots, from their places, sizes and times."""
        facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(self.times)]
        return hashlib.sha256(repr((self.folder.resolve(), facts)).encode()).hexdigest()[:8]


def read_run(source: str, folder: Path) -> Run:
    """The run whose snapshots are in `folder`.

    Raises:
        InputError: no snapshots, or those of several runs.
    """
    files = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and snapshots.parse_name(p.name)]
    names = {parts.run for p in files if (parts := snapshots.parse_name(p.name)) is not None}
    if len(names) != 1:
        found = f"those of {', '.join(sorted(names))}" if names else "none"
        raise InputError(f"{folder}: expected the snapshots RUN-KIMG-STD of one training run, found {found}")
    times = {path: ema.snapshot_time(path) for path in files}
    return Run(source, folder, {path: time for path, time in times.items() if time[0] > 0})


def locate(study: Study, section: str, source: str) -> Path:
    """The folder (or file) of an id in a study's output `section`, or `source` itself as a path.

    Raises:
        InputError: there is nothing.
    """
    known = {*study.networks, *study.reconstruct} if section == "networks" else {*study.data}
    place = study.out / section / source if source in known else Path(source)
    if not place.exists():
        remedy = f"; run stage {section}@{source} first" if source in known else nearest(source, known)
        raise InputError(f"{place}: neither a path nor an id of study {study.study} with output{remedy}")
    return place
