"""`repro guide`: the search of `repro.search` over real networks, with everything it makes kept on disk.

In the output folder lie the networks that were reconstructed, the features of every image that was sampled, and the
path so far, so that a run that was killed repeats nothing. Under torchrun the ranks share images, not candidates.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from metrics import distributed
from metrics import statistics as stats
from metrics.files import InputError, atomic_write, write_text
from metrics.frechet import Estimate, Gaussian, frechet_distance, paired_difference
from repro import ema, snapshots
from repro.pipeline.evaluate import FD_NAMES, Reference, provenance, sample_features
from repro.pipeline.stages import rank0_lock
from repro.report import figures
from repro.sampling.shards import Configuration, Pair, load_pair
from repro.search.race import Candidate, Finalist, Interval, Row, Search, SearchSettings, Space
from repro.search.runs import Run, locate, read_run
from repro.study import Sampler, Study, build, nearest, parse_seeds
from repro.verdicts.measures import metric

PATH, FINALISTS, SNIPPET, SUMMARY = "path.csv", "finalists.csv", "study.yaml", "summary.md"


# --- What can be tried -----------------------------------------------------------------------------------------


def check_seeds(study: Study, settings: SearchSettings) -> None:
    """Refuse blocks that cut batches, or that the study reports.

    Raises:
        InputError: naming block and remedy.
    """
    batch, smallest = study.sampler.batch_size, settings.sizes[0]
    for block in (settings.seeds, *settings.fresh):
        if parse_seeds(block).start % batch or smallest % batch:
            raise InputError(
                f"seeds {block}: batches are whole multiples of {batch} seeds (sampler.batch_size); let blocks begin "
                f"at one, and the smallest rung ({smallest} images) be one"
            )
    for key, item in study.generate.items():
        if set(item.all_seeds()) & set(parse_seeds(settings.seeds)):
            raise InputError(
                f"seeds {settings.seeds}: generate.{key} reports some of them; what a setting was chosen on "
                "cannot judge it, give other seeds"
            )


def read_networks(study: Study, main: str, guides: Sequence[str]) -> tuple[Path | Run, list[Run]]:
    """The main network, one file or a run, and the runs of guides."""
    place = locate(study, "networks", main)
    runs = [read_run(source, locate(study, "networks", source)) for source in guides]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"guides {', '.join(guides)}: two runs have the name {name}; give each once")
    return (place if place.is_file() else read_run(main, place)), runs


def space_of(main: Path | Run, guides: Sequence[Run], settings: SearchSettings) -> Space:
    """Everything that can be tried; a main network is never its own guide at the end of its training."""
    lattice, limit = settings.ema_lattice, settings.profile_error
    times: dict[str, dict[int, Interval]] = {}
    for run in guides:
        own = isinstance(main, Run) and main.folder == run.folder
        kimgs = settings.guide_kimg or run.halvings()
        kept = [kimg for kimg in sorted(kimgs) if not (own and run.at(kimg) == run.nimg[-1])]
        if not kept:
            raise InputError(f"{run.folder}: nothing earlier than the main network itself; keep earlier snapshots")
        times[run.name] = {kimg: run.ema_range(kimg, lattice, limit) for kimg in kept}
    last = main.ema_range(main.nimg[-1] // 1000, lattice, limit) if isinstance(main, Run) else None
    return Space(settings, times, last)


# --- Measuring -------------------------------------------------------------------------------------------------


class SampledDistance:
    """The objective: Fréchet distance of sampled images to a data set, by one detector of `reference`.

    Features of pair P and seeds A to B are FEATURES/P/A-B.npy, float32; whatever is there is not sampled again.
    """

    def __init__(
        self, main: Path | Run, guides: Sequence[Run], reference: Reference, sampler: Sampler, folder: Path, device: Any
    ) -> None:
        self.main, self.guides = main, {run.name: run for run in guides}
        (self.detector,) = reference.detectors
        self.reference, self.sampler, self.device, self.folder = reference, sampler, device, folder
        self._target = Gaussian.of(reference.statistics[self.detector])
        self._facts: dict[Candidate, tuple[str, dict[str, Any]]] = {}
        self._values: dict[tuple[str, range], float] = {}
        self._asked: dict[tuple[str, int], int] = {}

    @property
    def images(self) -> int:
        return sum(self._asked.values())

    @property
    def pairs(self) -> int:
        """Different configurations measured so far."""
        return len({key for key, _ in self._asked})

    def measure(self, candidates: Sequence[Candidate], seeds: range) -> list[float]:
        self._reconstruct(candidates)
        keys = {candidate: self.identify(candidate)[0] for candidate in candidates}
        self._sample({key: candidate for candidate, key in keys.items()}, seeds)
        for key in keys.values():
            self._asked[key, seeds.start] = max(self._asked.get((key, seeds.start), 0), len(seeds))
        missing = [key for key in dict.fromkeys(keys.values()) if (key, seeds) not in self._values]
        values = np.zeros(len(missing))
        for i in range(distributed.rank(), len(missing), distributed.world_size()):
            values[i] = self._distance(missing[i], seeds)
        if missing:  # the same bits for all ranks, so that they go the same way
            values = distributed.all_reduce_sum(values)
        self._values |= {(key, seeds): float(value) for key, value in zip(missing, values, strict=True)}
        return [self._values[keys[candidate], seeds] for candidate in candidates]

    def difference(self, a: Candidate, b: Candidate, seeds: range) -> Estimate:
        found = np.zeros(2)
        if distributed.rank() == 0:  # the others follow, so that all go the same way
            first, second = (self.features(self.identify(c)[0], seeds) for c in (a, b))
            estimate = paired_difference(first, second, self._target)
            found[:] = estimate.value, estimate.standard_error
        value, error = distributed.all_reduce_sum(found)
        return Estimate(float(value), float(error))

    def configuration(self, candidate: Candidate) -> Configuration:
        """How a candidate is sampled; at weight 1 there is no guide."""
        guided = candidate.guidance != 1
        return Configuration(
            main=str(self._main_file(candidate)),
            guide=str(self._guide_file(candidate)) if guided else None,
            guidance=candidate.guidance,
            sampler=self.sampler,
        )

    def identify(self, candidate: Candidate) -> tuple[str, dict[str, Any]]:
        """What a candidate's features are filed under, whatever folders its networks lie in, and its provenance."""
        if candidate not in self._facts:
            pair = self._load(candidate)
            anywhere = replace(pair, configuration=replace(pair.configuration, main="", guide=None))
            tags = dict(self.reference.detectors[self.detector].tags)
            key = hashlib.sha256(f"{anywhere.digest} {json.dumps(tags, sort_keys=True)}".encode()).hexdigest()[:24]
            c = pair.configuration
            facts = {
                "main": Path(c.main).name,
                "guide_file": "" if c.guide is None else Path(c.guide).name,
                "main_sha256": pair.main_sha256,
                "guide_sha256": pair.guide_sha256 or "",
            }
            self._facts[candidate] = key, facts
        return self._facts[candidate]

    def _load(self, candidate: Candidate) -> Pair:
        return load_pair(self.configuration(candidate), self.device)

    def _main_file(self, candidate: Candidate) -> Path:
        if isinstance(self.main, Path):
            return self.main
        assert candidate.main_ema is not None  # the space has one for a run
        return self._network(self.main, self.main.nimg[-1], candidate.main_ema)

    def _guide_file(self, candidate: Candidate) -> Path:
        run = self.guides[candidate.guide]
        return self._network(run, run.at(candidate.kimg), candidate.guide_ema)

    def _network(self, run: Run, nimg: int, std: float) -> Path:
        """Where the network of an EMA length lies, made or to be made; other snapshots, another folder."""
        folder = self.folder / "networks" / f"{run.name}-{run.stamp}"
        return folder / snapshots.format_name(run.name, nimg // 1000, std)

    def _reconstruct(self, candidates: Sequence[Candidate]) -> None:
        """Make the networks that are missing; one pass over a run's snapshots per training length."""
        wanted: dict[tuple[Path, int], tuple[Run, dict[float, Path]]] = {}
        for c in candidates:
            needed = [(self.guides[c.guide], self.guides[c.guide].at(c.kimg), c.guide_ema)] if c.guidance != 1 else []
            if isinstance(self.main, Run) and c.main_ema is not None:
                needed.append((self.main, self.main.nimg[-1], c.main_ema))
            for run, nimg, std in needed:
                path = self._network(run, nimg, std)
                if not path.exists():
                    wanted.setdefault((run.folder, nimg), (run, {}))[1][std] = path
        distributed.barrier()  # nobody writes before all have looked
        for (_, nimg), (run, paths) in list(wanted.items())[distributed.rank() :: distributed.world_size()]:
            for std, snapshot in ema.reconstruct(list(run.times), list(paths), nimg).items():
                snapshots.save(snapshot, paths[std])
        distributed.barrier()

    def _sample(self, pairs: Mapping[str, Candidate], seeds: range) -> None:
        """Features of the seeds that no file has yet, shared out among the ranks in files of a shard's size."""
        work = [
            (key, candidate, piece)
            for key, candidate in pairs.items()
            for piece in _pieces(seeds, self._files(key), self.sampler.shard_size)
        ]
        distributed.barrier()
        for key, candidate, piece in work[distributed.rank() :: distributed.world_size()]:
            features = sample_features(self._load(candidate), piece, self.reference, str(candidate))[self.detector]
            path = self.folder / "features" / key / f"{piece[0]}-{piece[-1]}.npy"
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.save(file, features)
        distributed.barrier()

    def _files(self, key: str) -> dict[range, Path]:
        """Files of a pair's features by their seeds."""
        return {parse_seeds(path.stem): path for path in sorted((self.folder / "features" / key).glob("*.npy"))}

    def features(self, key: str, seeds: range) -> NDArray[np.float32]:
        """Features [N, D] of `seeds`, in order."""
        parts = []
        for members, path in sorted(self._files(key).items(), key=lambda item: item[0].start):
            first, stop = max(members.start, seeds.start), min(members.stop, seeds.stop)
            if first < stop:
                array = _read_features(path, len(members), self.reference.detectors[self.detector].dim)
                parts.append(array[first - members.start : stop - members.start])
        return np.concatenate(parts)

    def _distance(self, key: str, seeds: range) -> float:
        tags = self.reference.detectors[self.detector].tags
        return frechet_distance(stats.from_features(self.features(key, seeds), tags), self._target)


def _pieces(seeds: range, have: Mapping[range, Path], size: int) -> list[range]:
    """The seeds that `have` lacks, in runs cut at multiples of `size`."""
    covered = {seed for members in have for seed in members}
    pieces: list[range] = []
    for seed in seeds:
        if seed in covered:
            continue
        if pieces and pieces[-1].stop == seed and seed % size:
            pieces[-1] = range(pieces[-1].start, seed + 1)
        else:
            pieces.append(range(seed, seed + 1))
    return pieces


def _read_features(path: Path, count: int, dim: int) -> NDArray[np.float32]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise InputError(f"{path}: not a sound file of features ({err}); remove it and run again") from err
    if array.shape != (count, dim):
        raise InputError(f"{path}: features {list(array.shape)}, expected {[count, dim]}; remove it and run again")
    return array


# --- The command -----------------------------------------------------------------------------------------------


def load_settings(path: Path) -> SearchSettings:
    """Search settings from YAML, strictly.

    Raises:
        InputError: naming file and key.
    """
    try:
        return build(SearchSettings, yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as err:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(err).split())})") from err
    except InputError as err:
        raise InputError(f"{path}: {err}") from None


def guide(
    study: Study, main: str, guides: Sequence[str], data: str, settings: SearchSettings, detector: str, folder: Path
) -> str:
    """Search, write everything to `folder`, and return the summary.

    Args:
        study: gives sampler and detectors, and its ids can name the rest.
        main: run (id or folder) whose last snapshots the main network is reconstructed from, or a network file.
        guides: runs of which a snapshot can be the guide.
        data: data set measured against, an id or a folder as the stage `data` leaves it.
        settings: what is tried on which seeds.
        detector: whose Fréchet distance is minimised.
        folder: for outputs and everything worth keeping.
    """
    if detector not in study.evaluate.detectors:
        raise InputError(
            f"detector '{detector}': not one of study {study.study}'s{nearest(detector, study.evaluate.detectors)}"
        )
    check_seeds(study, settings)
    network, runs = read_networks(study, main, guides)
    space = space_of(network, runs, settings)
    device = distributed.device()
    reference = Reference(
        locate(study, "data", data), replace(study.evaluate, detectors=[detector], metrics=["fd"]), device
    )
    objective = SampledDistance(network, runs, reference, study.sampler, folder, device)
    name = FD_NAMES.get(detector, f"fd_{detector}")
    with rank0_lock(folder):
        facts = {"metric": name, "detector_sha256": reference.detectors[detector].tags.get("weights_sha256", "")}
        facts |= {"reference_sha256": reference.sha256[detector], **provenance(device)}

        def write(path: list[Row]) -> None:
            if distributed.rank() == 0:
                _write_csv(folder / PATH, [_row(row) | objective.identify(row.candidate)[1] | facts for row in path])

        search = Search(space, objective, write)
        finalists = search.run()
        text = _summary(finalists, space, objective, name)
        if distributed.rank() == 0:
            rows = [_finalist(item) | objective.identify(item.candidate)[1] | facts for item in finalists]
            _write_csv(folder / FINALISTS, rows)
            write_text(folder / SNIPPET, snippet(objective, finalists[0].candidate, data, settings))
            write_text(folder / SUMMARY, text)
            table = pd.read_csv(folder / PATH)
            figures.save(lambda: figures.draw_search(table, name), folder / "path")
    return text


def _row(row: Row) -> dict[str, Any]:
    facts = asdict(row)
    candidate = facts.pop("candidate")
    return {"step": facts.pop("step"), "stage": facts.pop("stage"), **candidate, **facts}


def _finalist(item: Finalist) -> dict[str, Any]:
    fresh = {"mean": item.mean, "min": min(item.fresh), "max": max(item.fresh)}
    return {
        **asdict(item.candidate),
        "search": item.search,
        **fresh,
        "values": ";".join(f"{value:.8g}" for value in item.fresh),
    }


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _summary(finalists: list[Finalist], space: Space, objective: SampledDistance, name: str) -> str:
    """The best setting, its rivals, and what the search took."""
    label, decimals = metric(name).label, metric(name).decimals
    s = space.settings
    full = len(parse_seeds(s.seeds))
    lines = [f"Best guide by {label} on {len(s.fresh)} fresh blocks of {full} images: mean (least to greatest).", ""]
    for item in finalists:
        low, high = min(item.fresh), max(item.fresh)
        lines.append(f"- {item.mean:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f}): {item.candidate}")
    grid = space.size()
    lines += [
        "",
        f"{objective.images:,} images of {objective.pairs} configurations; all {grid:,} settings of the lattice would "
        f"take {grid * full:,} images. The settings for a study are in {SNIPPET}.",
        "",
    ]
    return "\n".join(lines)


def snippet(objective: SampledDistance, best: Candidate, data: str, settings: SearchSettings) -> str:
    """A study's entries for the best setting, as YAML: what to reconstruct and what to generate."""
    run = objective.guides[best.guide]
    reconstruct: dict[str, Any] = {
        "best-guide": {"source": run.source, "kimg": best.kimg, "ema_stds": [best.guide_ema]},
    }
    main = str(objective.main)
    if isinstance(objective.main, Run):
        kimg = objective.main.nimg[-1] // 1000
        reconstruct["best-main"] = {"source": objective.main.source, "kimg": kimg, "ema_stds": [best.main_ema]}
        main = f"best-main/{snapshots.format_name('best-main', kimg, best.main_ema or 0.0)}"
    else:
        main = f"{objective.main.parent.name}/{objective.main.name}"
    entry = {
        "method": "autoguidance",
        "main": main,
        "guide": f"best-guide/{snapshots.format_name('best-guide', best.kimg, best.guide_ema)}",
        "guidance": best.guidance,
        "data": data,
        "seeds": [settings.fresh[0]],
    }
    entries = {"reconstruct": reconstruct, "generate": {"best-autoguidance": entry}}
    return "# Ids of runs that the study does not have are folders; enter those under `networks`.\n" + yaml.safe_dump(
        entries, sort_keys=False
    )
