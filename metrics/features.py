"""Features of image sets: extracted once per detector, kept in chunk files, resumed after an interruption.

Chunk files lie in `<cache>/<key>/`, the key a digest of the images' content and of the detector's tags, so
that changed images or settings never meet old features. A chunk is written to a temporary name and renamed,
so what is there is whole. Which images share a batch depends on their order alone, never on the number of
processes, on what was resumed or on what other detectors do.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from metrics import distributed
from metrics.detectors import Detector
from metrics.files import InputError, atomic_write, load_npz
from metrics.statistics import Moments, Statistics, Tag

CHUNK = 1024  # images in a chunk file


class Images(Protocol):
    """What extraction asks of an image set; see `metrics.images.open_images`."""

    names: Sequence[str]
    digest: str
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def batches(self, batches: Sequence[Sequence[int]], num_workers: int) -> Iterator[list[np.ndarray]]: ...


@dataclass(frozen=True)
class FeatureSet:
    """Features [N, D] float32 of one detector, in this process the chunks `parts` from the rows `starts` on.

    `labels` [N] int64 where known. All processes together hold every row once.
    """

    num_images: int
    dim: int
    parts: Sequence[np.ndarray]
    starts: Sequence[int]
    tags: Mapping[str, Tag]
    labels: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray, tags: Mapping[str, Tag], labels: np.ndarray | None = None) -> "FeatureSet":
        """Features [N, D] that this process holds alone."""
        return cls(len(features), features.shape[1], [features], [0], tags, labels)

    def with_source(self, source: str) -> "FeatureSet":
        """The same features under another `source` tag."""
        return replace(self, tags={**self.tags, "source": source})

    def statistics(self, start: int = 0, stop: int | None = None) -> Statistics:
        """Moments of the rows [start, stop), over all processes."""
        stop = self.num_images if stop is None else stop
        moments = Moments(self.dim)
        for first, part in zip(self.starts, self.parts, strict=True):
            moments.update(part[max(start - first, 0) : max(stop - first, 0)])
        return moments.reduce().finalize({**self.tags, "num_images": stop - start})

    def gather(self) -> np.ndarray:
        """All features [N, D] in memory, in every process."""
        if distributed.world_size() == 1:
            return np.concatenate([np.asarray(part) for part in self.parts])
        features = np.empty((self.num_images, self.dim), np.float32)
        for start in range(0, self.num_images, CHUNK):  # a sum of rows that one process holds and others leave 0
            rows = np.zeros((min(CHUNK, self.num_images - start), self.dim))
            for first, part in zip(self.starts, self.parts, strict=True):
                lo, hi = max(start, first), min(start + len(rows), first + len(part))
                if lo < hi:
                    rows[lo - start : hi - start] = part[lo - first : hi - first]
            features[start : start + CHUNK] = distributed.all_reduce_sum(rows)
        return features


def default_cache() -> Path:
    """Where features are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "autoguidance-repro" / "features"


def extract(
    images: Images,
    detectors: Mapping[str, Detector],
    cache: Path | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    description: str = "features",
) -> dict[str, FeatureSet]:
    """Features of all images under every detector, decoding each image once.

    Chunk k belongs to process k modulo the world size. `cache` None keeps them for this call's results only.
    Raises InputError when a detector gives NaN or infinity, naming the images of the batch.
    """
    if len(images) == 0:
        raise InputError("no images to measure; check the path")
    with ExitStack() as stack:
        folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="features-")))
        files = {name: _chunk_files(folder, images, detector) for name, detector in detectors.items()}
        mine = range(distributed.rank(), -(-len(images) // CHUNK), distributed.world_size())
        missing = {chunk: [name for name in detectors if not files[name][chunk].exists()] for chunk in mine}
        _extract_chunks(
            images,
            detectors,
            {chunk: {name: files[name][chunk] for name in names} for chunk, names in missing.items() if names},
            batch_size,
            num_workers,
            description,
        )
        return {
            name: FeatureSet(
                len(images),
                detector.dim,
                # Without a cache the files go away with this block, so their content is read now.
                [_read_chunk(files[name][chunk], detector.dim, mapped=cache is not None) for chunk in mine],
                [chunk * CHUNK for chunk in mine],
                {**detector.tags, "source_digest": images.digest},
                images.labels,
            )
            for name, detector in detectors.items()
        }


def _chunk_files(cache: Path, images: Images, detector: Detector) -> list[Path]:
    key = json.dumps({"images": images.digest, "count": len(images), "tags": dict(detector.tags)}, sort_keys=True)
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    return [folder / f"chunk-{chunk:06d}.npy" for chunk in range(-(-len(images) // CHUNK))]


def _extract_chunks(
    images: Images,
    detectors: Mapping[str, Detector],
    missing: Mapping[int, Mapping[str, Path]],
    batch_size: int,
    num_workers: int,
    description: str,
) -> None:
    """Make the `missing` files {chunk: {detector: path}}."""
    batches: list[tuple[int, range]] = []
    for chunk in missing:
        stop = min((chunk + 1) * CHUNK, len(images))
        batches += [(chunk, range(i, min(i + batch_size, stop))) for i in range(chunk * CHUNK, stop, batch_size)]
    done: dict[str, list[np.ndarray]] = {}
    total = sum(len(members) for _, members in batches)
    decoded = images.batches([members for _, members in batches], num_workers)
    with tqdm(total=total, unit="img", desc=description, disable=None if distributed.rank() == 0 else True) as bar:
        for (chunk, members), pixels in zip(batches, decoded, strict=True):
            for name in missing[chunk]:
                features = detect(detectors[name], pixels)
                if not np.isfinite(features).all():
                    raise InputError(
                        f"detector '{name}' gave NaN or infinity for an image from {images.names[members[0]]} "
                        f"to {images.names[members[-1]]}; check its weights"
                    )
                done.setdefault(name, []).append(features)
            if members.stop == min((chunk + 1) * CHUNK, len(images)):
                for name, path in missing[chunk].items():
                    _write_chunk(path, np.concatenate(done.pop(name)))
            bar.update(len(members))


def detect(detector: Detector, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Features [N, D] float32 of uint8 HWC images, those of equal size in one call."""
    features = np.empty((len(pixels), detector.dim), np.float32)
    shapes = [image.shape for image in pixels]
    for shape in dict.fromkeys(shapes):
        members = [i for i, other in enumerate(shapes) if other == shape]
        batch = torch.from_numpy(np.stack([pixels[i] for i in members])).permute(0, 3, 1, 2)
        features[members] = detector(batch).cpu().numpy()
    return features


def _write_chunk(path: Path, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, features)


def _read_chunk(path: Path, dim: int, mapped: bool) -> np.ndarray:
    features = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    if features.ndim != 2 or features.shape[1] != dim or features.dtype != np.float32:
        raise InputError(
            f"{path}: expected float32 features [N, {dim}], found {features.dtype} {features.shape}; delete it"
        )
    return features


def save(sets: Mapping[str, FeatureSet], path: str | Path) -> None:
    """Write a feature file: npz with `DETECTOR/features`, `DETECTOR/tags` (JSON) and, where known, `labels`."""
    arrays: dict[str, np.ndarray] = {}
    for name, features in sets.items():
        arrays[f"{name}/features"] = features.gather()
        arrays[f"{name}/tags"] = np.array(json.dumps(dict(features.tags)))
        if features.labels is not None:
            arrays["labels"] = features.labels
    if distributed.rank() == 0:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def load(path: str | Path) -> dict[str, FeatureSet]:
    """Read a feature file; raises InputError when it is missing, broken or of another format."""
    return from_arrays(load_npz(path), path)


def from_arrays(arrays: Mapping[str, np.ndarray], path: str | Path) -> dict[str, FeatureSet]:
    """The feature sets in a feature file's arrays; `path` serves the messages and the `source` tag."""
    names = [key.removesuffix("/features") for key in arrays if key.endswith("/features")]
    labels = arrays.get("labels")
    sets = {}
    for name in names:
        features = arrays[f"{name}/features"]
        try:
            tags = json.loads(str(arrays[f"{name}/tags"]))
        except (KeyError, ValueError):
            raise InputError(
                f"{path}: '{name}/tags' is missing or unreadable; write it with `metrics features`"
            ) from None
        if features.ndim != 2 or features.dtype != np.float32:
            raise InputError(
                f"{path}: '{name}/features' is {features.dtype} {features.shape}, expected float32 [N, D]; "
                "write it with `metrics features`"
            )
        if labels is not None and labels.shape != (len(features),):
            raise InputError(
                f"{path}: {labels.shape} labels for {len(features)} images; write it with `metrics features`"
            )
        if not np.isfinite(features).all():
            raise InputError(f"{path}: '{name}/features' holds NaN or infinity; extract the features again")
        # Several processes read the same file: the first one holds its rows.
        own = distributed.rank() == 0
        sets[name] = FeatureSet(
            len(features), features.shape[1], [features] if own else [], [0] if own else [],
            {**tags, "source": str(path)}, labels,
        )  # fmt: skip
    if not sets:
        raise InputError(
            f"{path}: no entry 'DETECTOR/features', found {sorted(arrays)}; write it with `metrics features`"
        )
    return sets
