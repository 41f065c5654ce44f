"""Features of images that come batch by batch, from a loader, a generator or a training loop, in bounded memory."""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from metrics import distributed
from metrics.detectors import Detector, look
from metrics.features import CHUNK, Array, FeatureFile, FeatureSet, check_features, write
from metrics.files import InputError
from metrics.images.memory import NAME
from metrics.references import Reference
from metrics.sizes import TAG, Extent


class Stream:
    """Features of what `add` is given, in order; of more than CHUNK images all but the last lie on the disk.

    Of several processes each adds its share; together they hold the images of the first, then those of the second, ...
    """

    def __init__(self, detectors: Mapping[str, Detector]) -> None:
        self.detectors = detectors
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._parts: dict[str, dict[range, Array | Path]] = {name: {} for name in detectors}
        self._waiting: dict[str, list[Array]] = {name: [] for name in detectors}
        self._digests: list[bytes] = []
        self._sizes: set[tuple[int, int]] = set()
        self._written = 0

    def add(self, batch: Tensor) -> None:
        """Add images uint8 [n, 3, H, W] on any device; raises InputError when a detector gives NaN or infinity."""
        found = {name: features.cpu().numpy() for name, features in look(self.detectors, batch).items()}
        for name, features in found.items():
            check_features(name, features)
            self._waiting[name].append(features.astype(np.float32, copy=False))
        pixels = batch.permute(0, 2, 3, 1).cpu().numpy()  # [n, H, W, 3]
        # The content digest of `metrics.images`, so that the same images have it however they come.
        shape = str(pixels.shape[1:]).encode()
        self._digests += [hashlib.sha256(shape + image.tobytes()).digest() for image in pixels]
        self._sizes.add((pixels.shape[1], pixels.shape[2]))
        if len(self._digests) - self._written >= CHUNK:
            self._spill()

    def _spill(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="features-")
        rows = range(self._written, len(self._digests))
        for name, waiting in self._waiting.items():
            path = Path(self._folder.name) / f"{name}-{rows.start:09d}.npz"
            write(path, FeatureFile({name: np.concatenate(waiting)}, {name: self.detectors[name].tags}))
            self._parts[name][rows], self._waiting[name] = path, []
        self._written = rows.stop

    def reference(self, name: str = NAME) -> Reference:
        """What all processes have added, called `name`; every process must ask. InputError where that is nothing."""
        shares = distributed.all_gather((self._digests, self._sizes))
        before = sum(len(digests) for digests, _ in shares[: distributed.rank()])
        digests = [digest for share, _ in shares for digest in share]
        if not digests:
            raise InputError(f"{name}: there were none; give at least 2")
        facts = {
            "source": name,
            "source_digest": hashlib.sha256(b"".join(digests)).hexdigest(),
            TAG: str(Extent.of(size for _, sizes in shares for size in sizes)),
        }
        sets = {}
        for key, detector in self.detectors.items():
            parts = dict(self._parts[key])
            if self._waiting[key]:
                parts[range(self._written, len(self._digests))] = np.concatenate(self._waiting[key])
            held = {range(rows.start + before, rows.stop + before): part for rows, part in parts.items()}
            tags = {**detector.tags, **facts}
            sets[key] = FeatureSet(len(digests), detector.dim, held, tags, shared=True, keeper=self._folder)
        return Reference(name, facts["source_digest"], features=sets)


def extract(batches: Iterable[Tensor], detectors: Mapping[str, Detector]) -> Reference:
    """Features of all batches of images uint8 [n, 3, H, W]; of several processes each gives its share."""
    stream = Stream(detectors)
    for batch in batches:
        stream.add(batch)
    return stream.reference()
