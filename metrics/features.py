"""Features of image sets: extracted once per detector, kept in chunk files, resumed after an interruption.

Chunk files lie in `<cache>/<key>/`, the key a digest of the images' content and of the detector's tags, so
that changed images or settings never meet old features. A chunk is written to a temporary name and renamed,
so what is there is whole. Which images share a batch depends on their order alone, never on the number of
processes, on what was resumed or on what other detectors do.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from metrics import distributed
from metrics.detectors import Detector
from metrics.files import InputError, atomic_write, downloads, load_npz
from metrics.statistics import Moments, Statistics, Tag

CHUNK = 1024  # images in a chunk file


class Images(Protocol):
    """What extraction asks of an image set; see `metrics.images.open_images`."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def digest(self) -> str: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def batches(self, batches: Sequence[Sequence[int]], num_workers: int | None) -> Iterator[list[np.ndarray]]: ...


@dataclass(frozen=True)
class Part:
    """Rows [start, start + count) of a feature set: in memory, or in a chunk file read when needed."""

    start: int
    count: int
    source: np.ndarray | Path

    def read(self, dim: int) -> np.ndarray:
        """The rows, [count, dim] float32; raises InputError when a chunk file was damaged or removed."""
        if isinstance(self.source, np.ndarray):
            return self.source
        try:
            rows = np.load(self.source, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise InputError(
                f"{self.source}: kept features are gone or broken; remove its folder and run again"
            ) from None
        if rows.shape != (self.count, dim) or rows.dtype != np.float32:
            raise InputError(
                f"{self.source}: {rows.dtype} {rows.shape}, expected float32 ({self.count}, {dim}); "
                "remove its folder and run again"
            )
        return rows


@dataclass(frozen=True)
class FeatureSet:
    """Features [N, D] float32 of one detector, as the parts that this process holds.

    All processes together hold every row once. `labels` [N] int64 where known.
    """

    num_images: int
    dim: int
    parts: Sequence[Part]
    tags: Mapping[str, Tag]
    labels: np.ndarray | None = None
    keeper: object = None
    """Keeps a temporary folder of chunk files alive."""

    @classmethod
    def of(cls, features: np.ndarray, tags: Mapping[str, Tag], labels: np.ndarray | None = None) -> "FeatureSet":
        """Features [N, D] that every process has read: the first one holds them."""
        parts = [Part(0, len(features), features)] if distributed.rank() == 0 else []
        return cls(len(features), features.shape[1], parts, tags, labels)

    def with_source(self, source: str) -> "FeatureSet":
        """The same features under another `source` tag."""
        return replace(self, tags={**self.tags, "source": source})

    def statistics(self, start: int = 0, stop: int | None = None) -> Statistics:
        """Moments of the rows [start, stop), over all processes, one part in memory at a time."""
        stop = self.num_images if stop is None else stop
        moments = Moments(self.dim)
        for part in self.parts:
            if part.start < stop and start < part.start + part.count:
                rows = part.read(self.dim)
                moments.update(rows[max(start - part.start, 0) : stop - part.start])
        return moments.reduce().finalize({**self.tags, "num_images": stop - start})

    def gather(self) -> np.ndarray:
        """All features [N, D] in memory, in every process."""
        features = np.zeros((self.num_images, self.dim), np.float32)
        for part in self.parts:
            features[part.start : part.start + part.count] = part.read(self.dim)
        if distributed.world_size() > 1:  # a row is zero in all processes but one
            for start in range(0, self.num_images, CHUNK):
                rows = features[start : start + CHUNK]
                rows[:] = distributed.all_reduce_sum(rows.astype(np.float64))
        return features


def default_cache() -> Path:
    """Where features are kept unless told otherwise."""
    return downloads.cache_root() / "features"


def extract(
    images: Images,
    detectors: Mapping[str, Detector],
    cache: Path | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    description: str = "features",
) -> dict[str, FeatureSet]:
    """Features of all images under every detector, decoding each image once.

    Chunk k belongs to process k modulo the world size. `cache` None keeps them for this call's results only.
    Raises InputError when a detector gives NaN or infinity, naming the images of the batch.
    """
    if len(images) == 0:
        raise InputError("no images to measure; check the path")
    keeper = None if cache else tempfile.TemporaryDirectory(prefix="features-")
    folder = cache or Path(keeper.name if keeper else "")
    files = {name: _chunk_files(folder, images, detector) for name, detector in detectors.items()}
    mine = range(distributed.rank(), -(-len(images) // CHUNK), distributed.world_size())
    missing = {
        chunk: {name: files[name][chunk] for name in detectors if not files[name][chunk].exists()} for chunk in mine
    }
    missing = {chunk: paths for chunk, paths in missing.items() if paths}
    _extract_chunks(images, detectors, missing, batch_size, num_workers, description)
    sizes = {chunk: min(CHUNK, len(images) - chunk * CHUNK) for chunk in mine}
    return {
        name: FeatureSet(
            len(images),
            detector.dim,
            [Part(chunk * CHUNK, size, files[name][chunk]) for chunk, size in sizes.items()],
            {**detector.tags, "source_digest": images.digest},
            images.labels,
            keeper,
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
    num_workers: int | None,
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
        sets[name] = FeatureSet.of(features, {**tags, "source": str(path)}, labels)
    if not sets:
        raise InputError(
            f"{path}: no entry 'DETECTOR/features', found {sorted(arrays)}; write it with `metrics features`"
        )
    return sets
