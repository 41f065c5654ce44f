"""Files that several ranks make together: work is dealt in pieces smaller than a file, so that all finish together.

A rank does a run of the pieces, so that it makes most of its files alone. Of a file that two share each leaves its part
in a folder `.parts` beside, which whoever goes on after an interruption finds there, and one of them joins the parts.
"""

import itertools
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metrics import distributed
from metrics.files import InputError

PARTS = ".parts"


@dataclass(frozen=True)
class Wanted:
    """A file to be made of pieces, seeds in ascending order each, which are made in one go."""

    path: Path
    pieces: list[list[int]]


@dataclass(frozen=True)
class Job:
    """What a rank has to make in one go: all of a file, or a part of it."""

    wanted: Wanted
    seeds: list[int]
    path: Path


@dataclass(frozen=True)
class Plan:
    """What this rank makes, and the files whose parts lie, or will lie, in several files."""

    mine: list[Job]
    joined: list[Wanted]
    #: Seeds that are made by all ranks together.
    total: int

    def join(self, join: Callable[[Path, list[Path]], None]) -> None:
        """Wait for all ranks; let `join` make the files that are in parts of these, which it gets in seed order."""
        distributed.barrier()
        for wanted in self.joined[distributed.rank() :: distributed.world_size()]:
            join(wanted.path, parts_of(wanted.path))
        distributed.barrier()
        if distributed.rank() == 0:
            for folder in {wanted.path.parent / PARTS for wanted in self.joined}:
                shutil.rmtree(folder, ignore_errors=True)


def dealt(count: int, world: int) -> list[range]:
    """Which of `count` equal pieces of work each of `world` ranks does: a run each, of the same length but for one."""
    return [range(count * rank // world, count * (rank + 1) // world) for rank in range(world)]


def plan(wanted: Sequence[Wanted], seeds_of: Callable[[Wanted, Path], list[int] | None]) -> Plan:
    """Deal the pieces of the files `wanted`, the same in all ranks, but those that lie in a part already.

    `seeds_of` a file says which seeds a part of it holds, None for one that cannot be used, which is removed.
    """
    rank, world = distributed.rank(), distributed.world_size()
    pieces = [(number, piece) for number, file in enumerate(wanted) for piece in file.pieces]
    there = {number: _seeds_in_parts(wanted[number], seeds_of) for number in range(rank, len(wanted), world)}
    has = np.array([piece[0] in there.get(number, ()) for number, piece in pieces], float)
    has = distributed.all_reduce_sum(has)
    missing = [entry for entry, found in zip(pieces, has, strict=True) if not found]
    jobs = [jobs for share in dealt(len(missing), world) for jobs in _jobs(wanted, [missing[i] for i in share])]
    whole = {job.wanted.path for job in jobs if job.path == job.wanted.path}
    mine = _jobs(wanted, [missing[i] for i in dealt(len(missing), world)[rank]])
    return Plan(mine, [file for file in wanted if file.path not in whole], sum(len(piece) for _, piece in missing))


def parts_of(path: Path) -> list[Path]:
    """The parts of a file that there are, by their seeds."""
    found = (path.parent / PARTS).glob(f"{path.stem}+*{path.suffix}")
    return sorted(found, key=lambda part: int(part.stem.partition("+")[2].partition("-")[0]))


def _seeds_in_parts(wanted: Wanted, seeds_of: Callable[[Wanted, Path], list[int] | None]) -> set[int]:
    """Seeds that the parts of a file hold; parts that cannot be used, or do not consist of its pieces, go."""
    starts, found = {piece[0]: piece for piece in wanted.pieces}, set[int]()
    for part in parts_of(wanted.path):
        seeds = None
        with suppress(InputError):
            seeds = seeds_of(wanted, part)
        whole = [seed for start in seeds or () if start in starts for seed in starts[start]]
        if seeds and whole == seeds and not found & {*seeds}:
            found |= {*seeds}
        else:
            part.unlink()
    return found


def _jobs(wanted: Sequence[Wanted], pieces: Sequence[tuple[int, list[int]]]) -> list[Job]:
    """Pieces, as (number of the file, seeds), in jobs: one for all that lie side by side in a file."""
    jobs = []
    places = {
        (number, piece[0]): place for number, file in enumerate(wanted) for place, piece in enumerate(file.pieces)
    }
    beside = enumerate(pieces)
    for (number, _), run in itertools.groupby(beside, lambda e: (e[1][0], places[e[1][0], e[1][1][0]] - e[0])):
        members = [piece for _, (_, piece) in run]
        seeds, file = [seed for piece in members for seed in piece], wanted[number]
        part = file.path.parent / PARTS / f"{file.path.stem}+{seeds[0]:06d}-{seeds[-1]:06d}{file.path.suffix}"
        jobs.append(Job(file, seeds, file.path if len(members) == len(file.pieces) else part))
    return jobs
