"""Image files as a study's data: what networks train on, and the reference that samples are measured against."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metrics import distributed, statistics
from metrics.evaluation import Extractor
from metrics.features import FeatureSet
from metrics.files import InputError, atomic_write, folder_lock
from metrics.images import open_images
from repro.data import ImageDataset, TrainingData, cifar10
from repro.data.digits import Digits, DigitSettings
from repro.pipeline.acquire import options
from repro.study import Cifar10, ImageFiles, Study, build

CACHE = "features"  # chunks of an unfinished extraction


def training_data(study: Study, key: str) -> TrainingData:
    """What networks are trained on: data set `key` of the study, its files made where they are missing.

    Raises:
        InputError: a data set without images, or see `prepare`.
    """
    item = study.data[key]
    if item.kind == "digits":
        return Digits(build(DigitSettings, item.settings, f"data.{key}.settings"))
    if item.kind == "reference":
        raise InputError(f"data.{key}: published statistics are no images to train on; expected another kind")
    if distributed.rank() == 0:
        with folder_lock(study.out / "data" / key):
            prepare(study, key)
    distributed.barrier()
    use_labels = item.kind == "cifar10" or files(study, key).use_labels
    dataset = ImageDataset(prepare(study, key), use_labels=use_labels)
    if dataset.dtype != np.uint8:
        raise InputError(f"{dataset.path}: holds {dataset.dtype} arrays, expected images; latents need `repro train`")
    return dataset


def prepare(study: Study, key: str) -> Path:
    """The images of a data set of kind `cifar10` or `images`, as a zip or folder; the caller holds the folder's lock.

    Raises:
        InputError: they are not there and cannot be had.
    """
    item = study.data[key]
    if item.kind == "images":
        return Path(files(study, key).path)
    settings = build(Cifar10, item.settings, f"data.{key}.settings")
    return cifar10.prepare(settings, study.out / "data" / key, options(study))


def files(study: Study, key: str) -> ImageFiles:
    """Settings of a data set of kind `images`."""
    return build(ImageFiles, study.data[key].settings, f"data.{key}.settings")


def measure(path: Path, detectors: Sequence[str], folder: Path) -> None:
    """Reference statistics NAME.npz and features NAME-features.npy (float32 [N, D]) of all images, per detector.

    The rows of the features are in a random order, always the same, so that any number of the first ones is a fair
    sample of images that are sorted by class. What stands for these images and weights is not made again; an
    interrupted extraction goes on where it stopped.

    Raises:
        InputError: images that cannot be used, or a detector without weights.
    """
    extractor = Extractor(detectors, cache=folder / CACHE)
    digest = open_images(path).digest
    missing = [name for name in detectors if not _stands(folder, name, extractor, digest)]
    if missing:
        for name, found in extractor.read(path).sets.items():
            if name in missing:
                _save(found, folder, name)
    shutil.rmtree(folder / CACHE, ignore_errors=True)


def _stands(folder: Path, name: str, extractor: Extractor, digest: str) -> bool:
    path = folder / f"{name}.npz"
    if not path.exists():
        return False
    wanted = {**extractor.detectors[name].tags, "source_digest": digest}
    found = statistics.load(path).tags
    return all(found.get(key) == value for key, value in wanted.items())


def _save(found: FeatureSet, folder: Path, name: str) -> None:
    order = np.random.default_rng(0).permutation(found.num_images)
    with atomic_write(folder / f"{name}-features.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, found.gather()[order])
    statistics.save(found.statistics(), folder / f"{name}.npz")  # last: it tells that all is there
