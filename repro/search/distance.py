"""What a search over real networks minimises: the distance of sampled images, whose features are kept on disk.

A search that was killed samples nothing twice. Under torchrun the ranks share images, not candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from metrics import distributed, frechet
from metrics.features import FeatureSet
from metrics.progress import progress
from metrics.statistics import Statistics
from repro.sampling.batches import grouped
from repro.sampling.dealing import Wanted, plan
from repro.sampling.features import FeatureShards, block_features
from repro.sampling.pairs import Configuration, Pair, load_pair
from repro.sampling.shards import shard_name
from repro.search.runs import Networks
from repro.search.space import Candidate
from repro.strict import digest
from repro.study import Study, parse_seeds


class SampledDistance:
    """The objective: Fréchet distance of sampled images to `real` ones, in the features of the one detector of `form`.

    Features lie in `folder` as KEY/FIRST-LAST.npz, KEY standing for a candidate's networks and how they are sampled.
    """

    def __init__(
        self,
        networks: Networks,
        real: Statistics,
        form: FeatureShards,
        study: Study,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.networks, self.real, self.form = networks, real, form
        self.study, self.folder, self.device = study, folder, device
        #: Files and digests of the networks of what was measured.
        self.provenance: dict[Candidate, dict[str, str]] = {}
        #: Configurations by key -> their features by seeds.
        self.shards: dict[str, dict[range, Path]] = {}
        self._keys: dict[Candidate, str] = {}
        self._values: dict[tuple[str, range], float] = {}
        self._asked: dict[str, set[int]] = {}

    @property
    def images(self) -> int:
        """Different images, in all, behind the values asked for so far."""
        return sum(map(len, self._asked.values()))

    def measure(self, candidates: Sequence[Candidate], seeds: range) -> list[float]:
        """The distance of each candidate, on the images of `seeds`."""
        self.networks.reconstruct(candidates)
        by_key = {self._key(candidate): candidate for candidate in candidates}
        self._sample(by_key, seeds)
        missing = [key for key in by_key if (key, seeds) not in self._values]
        values = np.zeros(len(missing))
        for i in range(distributed.rank(), len(missing), distributed.world_size()):
            values[i] = frechet.frechet_distance(self.features(by_key[missing[i]], seeds).statistics(), self.real)
        values = distributed.all_reduce_sum(values)  # the same bits for all ranks, so that they go the same way
        self._values |= {(key, seeds): float(value) for key, value in zip(missing, values, strict=True)}
        return [self._values[self._key(candidate), seeds] for candidate in candidates]

    def difference(self, a: Candidate, b: Candidate, seeds: range) -> frechet.Estimate:
        """Distance of `a` less that of `b` on the same seeds, both measured before, with its standard error."""
        found = frechet.Estimate(0.0, 0.0)
        if distributed.rank() == 0 and a != b:  # the other ranks follow
            first, second = (self.features(candidate, seeds).gather() for candidate in (a, b))
            found = frechet.paired_difference(first, second, self.real)
        return frechet.Estimate(*distributed.all_reduce_sum(np.array([found.value, found.standard_error])).tolist())

    def features(self, candidate: Candidate, seeds: range) -> FeatureSet:
        """Features of the images of `seeds`, in order, on which a candidate was measured."""
        shards = self.shards[self._key(candidate)]
        members = sorted((s for s in shards if s.start < seeds.stop and seeds.start < s.stop), key=lambda s: s.start)
        (features,) = block_features([shards[s] for s in members], seeds)[1].values()
        return features

    def _load(self, candidate: Candidate) -> Pair:
        return load_pair(Configuration(self.networks.guided(candidate), self.study.sampler), self.device)

    def _key(self, candidate: Candidate) -> str:
        """What a candidate's features are filed under; networks count as what they are, not by name."""
        if candidate not in self._keys:
            pair = self._load(candidate)
            guided = pair.configuration.guided
            self.provenance[candidate] = {"main": Path(guided.main).name, "guide_file": Path(guided.guide or "").name}
            self.provenance[candidate] |= {"main_sha256": pair.main_sha256, "guide_sha256": pair.guide_sha256 or ""}
            key = self._keys[candidate] = digest(pair.digest, self.form.origin)[:24]
            if key not in self.shards:
                files = {path: parse_seeds(path.stem) for path in (self.folder / key).glob(f"*{self.form.suffix}")}
                self.shards[key] = {s: path for path, s in files.items() if self.form.is_whole(path, list(s), pair)}
        return self._keys[candidate]

    def _sample(self, by_key: Mapping[str, Candidate], seeds: range) -> None:
        """Features of the seeds that no shard has yet; the ranks share out the batches to be made."""
        candidates, wanted = dict[Path, Candidate](), list[Wanted]()
        for key, candidate in by_key.items():
            self._asked.setdefault(key, set()).update(seeds)
            for piece in lacking(seeds, self.shards[key], self.study.shards.size):
                path = self.shards[key][piece] = self.folder / key / shard_name(piece, self.form.suffix)
                candidates[path] = candidate
                wanted.append(Wanted(path, grouped(piece, self.study.sampler.batch_size)))
        # Nobody writes before all have looked: all meet here.
        work = plan(wanted, lambda file, part: self.form.seeds_in(part, self._load(candidates[file.path])))
        total = sum(len(job.seeds) for job in work.mine)
        bar = progress("search", total=total, hidden=distributed.rank() > 0)
        with bar, ThreadPoolExecutor(2) as pool:
            for job in work.mine:
                candidate = candidates[job.wanted.path]
                bar.set_description(str(candidate))
                self.form.write(self._load(candidate), job.seeds, job.path, pool, bar)
        work.join(self.form.join)


def lacking(seeds: range, shards: Iterable[range], size: int) -> list[range]:
    """The seeds that are in none of `shards`, in runs cut at multiples of `size`."""
    missing = np.setdiff1d(seeds, [seed for members in shards for seed in members])
    cuts = np.flatnonzero((np.diff(missing) > 1) | (missing[1:] % size == 0)) + 1
    return [range(run[0], run[-1] + 1) for run in np.split(missing, cuts) if len(run)]
