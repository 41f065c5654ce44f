"""Features of image sets: extracted once per detector, kept in files with a checksum, resumed after an interruption.

One format holds all kept features: an npz with `DETECTOR/features` [N, D] float32 and `DETECTOR/tags` (JSON), `labels`
[N] int64 where known, `facts` (JSON of whoever wrote it), and `sha256` over all of these, verified on reading.
Extraction keeps chunks in `<cache>/<key>/`, the key a digest of the images' content and of the detector's tags, so that
changed images or settings never meet old features. An index of each image's digest lies beside them, by which a subset
of the images takes its features out of those of the whole. Which images share a batch depends on their order and sizes
alone.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metrics import distributed
from metrics.detectors import Detector, look
from metrics.files import InputError, explained, load_npz, write_npz
from metrics.images import ImageSet
from metrics.progress import progress
from metrics.sizes import TAG
from metrics.statistics import Moments, Statistics, Tag

CHUNK = 1024  # images in a chunk file
INDEX = "images.index"  # beside chunk files: the digest of every image, and the tags
MAX_PIXELS = 2**25  # of a batch: 32 images of 1024 x 1024, of which workers hold a few ahead
Array = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureFile:
    """What a file of features holds: features [N, D] and tags by detector, class of each image [N] where known."""

    features: Mapping[str, Array]
    tags: Mapping[str, Mapping[str, Tag]]
    labels: NDArray[np.int64] | None = None
    #: JSON of whoever wrote the file.
    facts: Mapping[str, Any] = field(default_factory=dict)


def write(path: str | Path, content: FeatureFile) -> None:
    """Write a file of features, atomically."""
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(content.facts, sort_keys=True))}
    for name, features in content.features.items():
        tags = np.array(json.dumps(dict(content.tags[name])))
        arrays |= {f"{name}/features": np.asarray(features, np.float32), f"{name}/tags": tags}
    arrays |= {} if content.labels is None else {"labels": np.asarray(content.labels, np.int64)}
    write_npz(path, arrays | {"sha256": np.array(_checksum(arrays))})


def read(path: str | Path) -> FeatureFile:
    """Read a file of features; raises InputError where it is missing, broken, damaged or of another format."""
    arrays = load_npz(path)
    features = {key.removesuffix("/features"): array for key, array in arrays.items() if key.endswith("/features")}
    labels, remedy = arrays.get("labels"), "write it again with `metrics features`"
    if not features:
        raise InputError(f"{path}: no entry 'DETECTOR/features', found {sorted(arrays)}; {remedy}")
    for name, x in features.items():
        if x.ndim != 2 or x.dtype != np.float32:
            raise InputError(f"{path}: '{name}/features' is {x.dtype} {x.shape}, expected float32 [N, D]; {remedy}")
        if labels is not None and labels.shape != (len(x),):
            raise InputError(f"{path}: {labels.shape} labels for {len(x)} images; {remedy}")
        if not np.isfinite(x).all():
            raise InputError(f"{path}: '{name}/features' holds NaN or infinity; extract the features again")
    with explained(f"{path}: tags, facts or checksum are missing or broken", remedy, (KeyError, ValueError, TypeError)):
        stated = str(arrays.pop("sha256"))
        tags = {name: dict(json.loads(str(arrays[f"{name}/tags"]))) for name in features}
        facts = dict(json.loads(str(arrays["facts"])))
    if stated != _checksum(arrays):
        raise InputError(f"{path}: the checksum does not fit what is in it, so it was damaged; {remedy}")
    return FeatureFile(features, tags, labels, facts)


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        rows = np.ascontiguousarray(array)
        total.update(f"{name} {rows.dtype.str} {rows.shape}\n".encode())
        total.update(rows.data)
    return total.hexdigest()


@dataclass(frozen=True)
class FeatureSet:
    """Features [N, D] float32 of one detector, as far as this process holds them. `labels` [N] int64 where known."""

    num_images: int
    dim: int
    #: Rows -> features in memory, or a chunk file that is read when needed.
    parts: Mapping[range, Array | Path]
    tags: Mapping[str, Tag]
    labels: NDArray[np.int64] | None = None
    #: Whether all processes together hold every row once; else each that has the set holds all of it.
    shared: bool = False
    #: Keeps a temporary folder of chunk files alive.
    keeper: object = None

    @classmethod
    def of(cls, features: Array, tags: Mapping[str, Tag], labels: NDArray[np.int64] | None = None) -> "FeatureSet":
        """Features [N, D] at hand."""
        return cls(len(features), features.shape[1], {range(len(features)): features}, tags, labels)

    def subset(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "FeatureSet":
        """Some of the images, as an index of rows has it, in memory."""
        return self.of(self.gather()[rows], self.tags, None if self.labels is None else self.labels[rows])

    def statistics(self, start: int = 0, stop: int | None = None) -> Statistics:
        """Moments of the rows [start, stop), over all processes, one part in memory at a time."""
        stop = self.num_images if stop is None else stop
        moments = Moments(self.dim)
        for rows in self.parts:
            if rows.start < stop and start < rows.stop:
                moments.update(self._read(rows)[max(start - rows.start, 0) : stop - rows.start])
        if self.shared:
            moments.reduce()
        return moments.finalize({**self.tags, "num_images": stop - start})

    def gather(self) -> Array:
        """All features [N, D] in memory, in every process; those that are there already are not copied."""
        if len(self.parts) == 1 and not self.shared:
            return self._read(*self.parts)
        features = np.zeros((self.num_images, self.dim), np.float32)
        for rows in self.parts:
            features[rows.start : rows.stop] = self._read(rows)
        if self.shared and distributed.world_size() > 1:  # a row is zero in all processes but one
            for chunk in np.split(features, range(CHUNK, self.num_images, CHUNK)):
                chunk[:] = distributed.all_reduce_sum(chunk.astype(np.float64))
        return features

    def _read(self, rows: range) -> Array:
        """Features [len(rows), D]; raises InputError when a chunk file was damaged or removed."""
        source = self.parts[rows]
        if isinstance(source, np.ndarray):
            return source
        (features,) = read(source).features.values()
        if features.shape != (len(rows), self.dim):
            raise InputError(f"{source}: {features.shape}, expected ({len(rows)}, {self.dim}); remove its folder")
        return features


def save(sets: Mapping[str, FeatureSet], path: str | Path) -> None:
    """Write feature sets of the same images to a file; under torchrun every process must call this."""
    gathered = {name: features.gather() for name, features in sets.items()}
    labels = next((features.labels for features in sets.values() if features.labels is not None), None)
    if distributed.rank() == 0:
        write(path, FeatureFile(gathered, {name: features.tags for name, features in sets.items()}, labels))


def load(path: str | Path) -> dict[str, FeatureSet]:
    """The feature sets in a file, with the file as their source; raises InputError as `read` does."""
    kept = read(path)
    return {k: FeatureSet.of(x, {**kept.tags[k], "source": str(path)}, kept.labels) for k, x in kept.features.items()}


def extract(
    images: ImageSet,
    detectors: Mapping[str, Detector],
    cache: Path | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> dict[str, FeatureSet]:
    """Features of all images under every detector, decoding each image once.

    The processes share the chunks. `cache` None keeps them for this call's results only. Raises InputError when a
    detector gives NaN or infinity, naming the images of the chunk.
    """
    count = len(images)
    if not count:
        raise InputError("no images to measure; check the path")
    keeper = None if cache else tempfile.TemporaryDirectory(prefix="features-")
    folder = Path(keeper.name) if keeper else cache or Path()
    mine = [range(count)[i : i + CHUNK] for i in range(0, count, CHUNK)][distributed.rank() :: distributed.world_size()]
    facts = {"images": images.digest, "count": count}
    keys = {name: json.dumps(facts | {"tags": dict(x.tags)}, sort_keys=True) for name, x in detectors.items()}
    places = {name: folder / hashlib.sha256(key.encode()).hexdigest()[:32] for name, key in keys.items()}
    files = {x: {rows: places[x] / _chunk_name(rows.start // CHUNK) for rows in mine} for x in detectors}
    if cache is not None:
        for name, detector in detectors.items():
            _borrow(name, places[name], files[name], images, detector)
    lacking = {chunk: {x: detectors[x] for x in detectors if not files[x][chunk].exists()} for chunk in mine}
    missing = [chunk for chunk in mine if lacking[chunk]]
    batches = {chunk: list(_batches(chunk, batch_size, images.sizes)) for chunk in missing}
    decoded = images.batches([batch for parts in batches.values() for batch in parts], num_workers)
    with progress("features", total=sum(map(len, missing)), hidden=distributed.rank() > 0) as bar:
        for chunk in missing:
            where = f"an image from {images.names[chunk[0]]} to {images.names[chunk[-1]]}"
            found = detect((next(decoded) for _ in batches[chunk]), lacking[chunk], where, bar)
            for name, features in found.items():
                write(files[name][chunk], FeatureFile({name: features}, {name: detectors[name].tags}))
    source = {"source_digest": images.digest, TAG: str(images.size)}
    tags = {name: {**detector.tags, **source} for name, detector in detectors.items()}
    return {
        name: FeatureSet(count, detector.dim, files[name], tags[name], images.labels, shared=True, keeper=keeper)
        for name, detector in detectors.items()
    }


def _chunk_name(number: int) -> str:
    return f"chunk-{number:06d}.npz"


def _borrow(name: str, place: Path, files: Mapping[range, Path], images: ImageSet, detector: Detector) -> None:
    """Make what is missing of `files`, chunks in the folder `place`, out of another set's that has all of the images.

    The other set's features were made in other batches, so that they may differ in the last bits. Leaves the index.
    """
    tags, missing = json.dumps(dict(detector.tags), sort_keys=True), [x for x in files if not files[x].exists()]
    for index in [x for x in sorted(place.parent.glob(f"*/{INDEX}")) if x.parent != place] if missing else []:
        with suppress(InputError, KeyError, ValueError, IndexError):  # of one that is damaged or unfinished
            kept = load_npz(index)
            row = {digest.tobytes(): i for i, digest in enumerate(kept["sha256"])} if str(kept["tags"]) == tags else {}
            rows = np.array([row.get(digest.tobytes(), -1) for digest in images.digests])
            if (rows < 0).any():
                continue
            for chunk in missing:
                wanted = rows[chunk.start : chunk.stop]
                features = np.empty((len(chunk), detector.dim), np.float32)
                for number in np.unique(wanted // CHUNK).tolist():
                    (lent,) = read(index.parent / _chunk_name(number)).features.values()
                    here = wanted // CHUNK == number
                    features[here] = lent[wanted[here] % CHUNK]
                write(files[chunk], FeatureFile({name: features}, {name: detector.tags}))
            break
    if distributed.rank() == 0 and not (place / INDEX).exists():
        write_npz(place / INDEX, {"sha256": images.digests, "tags": np.array(tags)})


def _batches(chunk: range, most: int, sizes: Sequence[tuple[int, int]]) -> Iterator[range]:
    """Batches of at most `most` images and, unless one image is larger, `MAX_PIXELS` in all."""
    start, pixels = chunk.start, 0
    for i in chunk:
        pixels += math.prod(sizes[i])
        if i > start and (i - start == most or pixels > MAX_PIXELS):
            yield range(start, i)
            start, pixels = i, math.prod(sizes[i])
    yield range(start, chunk.stop)


def detect(
    batches: Iterable[Sequence[NDArray[np.uint8]]], detectors: Mapping[str, Detector], where: str = "", bar: Any = None
) -> dict[str, Array]:
    """The loop behind all features: batches of uint8 images [H, W, C] -> [N, D] float32 under every detector.

    Images of equal size within a batch share a call; one channel is shown three times. `where` names them in the error
    when a detector gives NaN or infinity; `bar` is told of every batch. A GPU works on a batch while the next one is
    put together and sent.
    """
    parts: dict[str, list[Array]] = {name: [] for name in detectors}

    def keep(count: int, made: Mapping[str, list[tuple[list[int], torch.Tensor]]]) -> None:
        for name, groups in made.items():
            features = np.empty((count, detectors[name].dim), np.float32)
            for members, found in groups:
                features[members] = found.cpu().numpy()
            check_features(name, features, where)
            parts[name].append(features)
        if bar is not None:
            bar.update(count)

    before: tuple[int, dict[str, list[tuple[list[int], torch.Tensor]]]] | None = None
    for pixels in batches:
        shapes = dict.fromkeys(image.shape for image in pixels)
        groups = [[i for i, image in enumerate(pixels) if image.shape == shape] for shape in shapes]
        stacks = [torch.from_numpy(np.stack([pixels[i] for i in g])).permute(0, 3, 1, 2) for g in groups]
        stacks = [x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x for x in stacks]
        looks = list(zip(groups, [look(detectors, x) for x in stacks], strict=True))
        made = {name: [(members, seen[name]) for members, seen in looks] for name in detectors}
        if before is not None:
            keep(*before)
        before = len(pixels), made
    if before is not None:
        keep(*before)
    return {name: np.concatenate(found) for name, found in parts.items()}


def check_features(name: str, features: Array, where: str = "") -> None:
    """Raise InputError where detector `name` gave NaN or infinity for `where`."""
    if not np.isfinite(features).all():
        raise InputError(f"detector '{name}' gave NaN or infinity for {where or 'an image'}; check its weights")
