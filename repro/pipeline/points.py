"""Values of seed blocks, one by one: what curves and searches are made of."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from metrics import distributed
from repro.pipeline import acquire
from repro.pipeline.measuring import load_detectors, load_reference, measured_rows, point_digest
from repro.rows import write_rows
from repro.sampling.features import FeatureShards, block_features
from repro.sampling.pairs import Pair
from repro.sampling.shards import generate
from repro.study import Study, parse_seeds


class Points:
    """Measures blocks against a data set, each into a file in `folder` named after all that decides it; extra detectors
    do not look at them.

    One that any study holds already (the unguided one of a curve, say) is taken from there. Under torchrun the ranks
    share the shards of each. Shards of features stand until their point is measured, so that an interruption costs one.
    """

    def __init__(self, study: Study, data: str, folder: Path) -> None:
        place = study.out / "references" / data
        self.study, self.folder, self.evaluate = study, folder, study.evaluate.parts[0].evaluate
        self.reference = load_reference(place, self.evaluate)
        self.form = FeatureShards(load_detectors(self.evaluate.plain, place, distributed.device()))
        self._number = 0

    def measure(self, pair: Pair, block: str, columns: dict[str, Any], description: str) -> Path:
        """The file of rows of one block, with the given columns where it is made now."""
        evaluate, form, rank = self.evaluate, self.form, self._number % distributed.world_size()
        name = point_digest(pair.digest, block, self.reference, evaluate, form.origin)[:16]
        part, self._number = self.folder / f"{name}.csv", self._number + 1
        if not _is_measured(part):
            shards = part.with_suffix("")
            paths = generate(pair, parse_seeds(block), shards, self.study.shards.size, description, form)
            if distributed.rank() == rank:
                features = block_features(paths, parse_seeds(block))
                write_rows(part, measured_rows(*features, self.reference, evaluate, form.detectors, columns))
                shutil.rmtree(shards)
        return part


def _is_measured(part: Path) -> bool:
    """Whether a point stands, here or in another curve, from where it is linked; all ranks agree."""
    if distributed.rank() == 0 and not part.exists():
        acquire.borrow(part, lambda _: True)  # the name is the digest
    return bool(distributed.all_reduce_sum(np.array([float(part.exists())]))[0] == distributed.world_size())
