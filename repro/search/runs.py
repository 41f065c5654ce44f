"""Training runs as the snapshots they left behind, and the networks of any EMA length that are made from them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from metrics import distributed
from metrics.files import InputError, nearest
from repro import ema, snapshots
from repro.guidance import Guided
from repro.sampling.pairs import SUFFIXES
from repro.search.space import Candidate, Interval, SearchSettings, Space, lattice
from repro.strict import digest
from repro.study import Study


class Run:
    """A training run: the snapshots RUN-KIMG-STD in `folder`, by `times`: images seen, EMA length.

    `source` is its id in the study, or the folder. Raises InputError where there are none, or those of several runs.
    """

    def __init__(self, source: str, folder: Path) -> None:
        names = {path: snapshots.parse_name(path.name) for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES}
        times = {path: time for path, name in names.items() if name and (time := ema.snapshot_time(path))[0] > 0}
        runs = sorted({name.run for path, name in names.items() if name and path in times})
        if len(runs) != 1:
            found = f"those of {', '.join(runs)}" if runs else "none"
            raise InputError(f"{folder}: expected the snapshots RUN-KIMG-STD of one training run, found {found}")
        self.source, self.name, self.folder, self.times = source, runs[0], folder, times

    @cached_property
    def lengths(self) -> dict[int, int]:
        """Training lengths of its snapshots, ascending: thousands of images as in file names -> images."""
        return {nimg // 1000: nimg for nimg in sorted({nimg for nimg, _ in self.times.values()})}

    def halvings(self) -> list[int]:
        """Thousands of images: the whole training, half of it, a quarter, ..., where there are snapshots."""
        whole = max(self.lengths.values())
        halves = {whole / 2**k for k in range(whole.bit_length())}
        return [kimg for kimg, nimg in self.lengths.items() if nimg in halves]

    def ema_range(self, kimg: int, settings: SearchSettings) -> Interval:
        """Least and greatest EMA length of the lattice whose profile the snapshots up to `kimg` rebuild well enough.

        Lengths between good ones are good: the error grows away from the lengths that were tracked. Raises InputError
        where none is, or there is no snapshot at `kimg`.
        """
        if kimg not in self.lengths:
            raise InputError(f"{self.folder}: no snapshot at {kimg} kimg; there are snapshots at {list(self.lengths)}")
        until, stds = self.lengths[kimg], lattice(settings.ema, settings.ema_steps[-1])
        nimg, std = zip(*sorted(time for time in self.times.values() if time[0] <= until), strict=True)
        good = stds[ema.profile_error(nimg, std, until, stds) <= settings.profile_error]
        if not len(good):
            raise InputError(
                f"{self.folder}: no EMA length from {stds[0]:g} to {stds[-1]:g} at {kimg} kimg is within profile_error "
                f"{settings.profile_error:g}; keep snapshots more often, or leave {kimg} out of guide_kimg"
            )
        return float(good[0]), float(good[-1])

    @cached_property
    def stamp(self) -> str:
        """A short digest that changes with the snapshots, from their places, sizes and times."""
        stats = [(path.name, path.stat()) for path in sorted(self.times)]
        return digest(str(self.folder.resolve()), [(name, s.st_size, s.st_mtime_ns) for name, s in stats])[:8]


def locate(study: Study, section: str, source: str) -> Path:
    """The folder of an id in a study's output `section`, or `source` itself as a path; raises InputError if neither."""
    ids = study.network_sets if section == "networks" else study.datasets
    place = study.out / section / source if source in ids else Path(source)
    if not place.exists():
        remedy = "; run `dvc repro` first" if source in ids else nearest(source, ids)
        raise InputError(f"{place}: neither a path nor an id of study {study.study} with output{remedy}")
    return place


class Networks:
    """The main network and the runs of guides, by ids of a study or paths; what is reconstructed lies in `folder`.

    `main` is the run whose last snapshots it is made from; None where it is one `file`. Raises InputError where one is
    neither id nor path, or two guides have one name.
    """

    def __init__(self, study: Study, main: str, guides: Sequence[str], folder: Path) -> None:
        place = locate(study, "networks", main)
        self.guides: dict[str, Run] = {}
        for source in guides:
            run = Run(source, locate(study, "networks", source))
            if self.guides.setdefault(run.name, run) is not run:
                raise InputError(f"guides {', '.join(guides)}: two runs have the name {run.name}; give each once")
        self.main, self.file, self.folder = None if place.is_file() else Run(main, place), place, folder

    def space(self, settings: SearchSettings) -> Space:
        """Everything that can be tried; a main network is never its own guide at the end of its training."""
        main, times = self.main, dict[str, dict[int, Interval]]()
        for run in self.guides.values():
            own = max(run.lengths) if main and main.stamp == run.stamp else None
            kimgs = [kimg for kimg in sorted(settings.guide_kimg or run.halvings()) if kimg != own]
            if not kimgs:
                raise InputError(f"{run.folder}: nothing earlier than the main network itself; keep earlier snapshots")
            times[run.name] = {kimg: run.ema_range(kimg, settings) for kimg in kimgs}
        return Space(settings, times, None if main is None else main.ema_range(max(main.lengths), settings))

    def averages(self, c: Candidate) -> dict[str, tuple[Run, int, float]]:
        """Role -> run, training length and EMA length of the networks that a candidate has reconstructed."""
        main, guide = self.main, {"guide": (self.guides[c.guide], c.kimg, c.guide_ema)}
        return guide if main is None or c.main_ema is None else {"main": (main, max(main.lengths), c.main_ema)} | guide

    def guided(self, c: Candidate) -> Guided:
        """A candidate with its networks as files, made or to be made."""
        files = {"main": self.file} | {
            role: self.folder / f"{run.name}-{run.stamp}" / snapshots.format_name(run.name, kimg, std)
            for role, (run, kimg, std) in self.averages(c).items()
        }
        return Guided(str(files["main"]), str(files["guide"]), c.guidance).active

    def reconstruct(self, candidates: Sequence[Candidate]) -> None:
        """Make the networks that are missing; one pass over a run's snapshots per training length."""
        wanted: dict[tuple[Run, int], dict[float, Path]] = {}
        for c in candidates:
            for role, (run, kimg, std) in self.averages(c).items():
                file = getattr(self.guided(c), role)
                if file and not Path(file).exists():
                    wanted.setdefault((run, kimg), {})[std] = Path(file)
        distributed.barrier()  # nobody writes before all have looked
        for (run, kimg), paths in list(wanted.items())[distributed.rank() :: distributed.world_size()]:
            for std, snapshot in ema.reconstruct(list(run.times), list(paths), run.lengths[kimg]).items():
                snapshots.save(snapshot, paths[std])
        distributed.barrier()
