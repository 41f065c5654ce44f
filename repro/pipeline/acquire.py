"""What a study takes from outside: published networks, their VAE, reference statistics and detectors' weights."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from metrics import references, statistics
from metrics.detectors import weights
from metrics.files import InputError, folder_lock, link_or_copy
from repro import snapshots
from repro.data import cifar10
from repro.encoders import VAE_FILES, vae_folder
from repro.pipeline.fetch import Options, Source, fetch, fetch_networks, read_lock
from repro.study import OUT, Cifar10, Networks, PublishedReference, Study, build

OFFLINE = "AUTOGUIDANCE_OFFLINE"
"""Environment variable: where it is set, nothing is downloaded."""
SUFFIX = ".safetensors"


def options(study: Study) -> Options:
    """How a study's files are fetched."""
    return Options(bases=study.sources, offline=bool(os.environ.get(OFFLINE)))


def networks(study: Study, item: Networks, folder: Path) -> list[Path]:
    """The published networks of `item` in `folder` as .safetensors with the stems of the published names, and the VAE.

    Networks that another study has are linked instead of fetched again; those that the study no longer names
    are removed.

    Raises:
        InputError: see `repro.fetch.fetch_networks`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = options(study)
    _borrow(item.files(), folder, settings)
    paths = fetch_networks(item.files(), folder, settings)
    for path in set(folder.glob(f"*{SUFFIX}")) - set(paths):
        path.unlink()
    for name in sorted({_vae_name(path) for path in paths} - {""}):
        vae(study, name)
    return paths


def _vae_name(path: Path) -> str:
    """Name of the VAE that a network's latents are decoded by; empty for networks of pixels."""
    return str(snapshots.read_metadata(path)["encoder"].get("vae_name", ""))


def vae(study: Study, name: str) -> Path:
    """Folder of the VAE `name` of the Hugging Face hub; its files are fetched into the cache of downloads.

    Raises:
        InputError: see `repro.fetch.fetch`.
    """
    folder = vae_folder(name)
    if not Path(name).is_dir():
        sources = [Source(f"{name}/resolve/main/{file}", folder / file) for file in VAE_FILES]
        fetch(sources, replace(options(study), bases=study.hub))
    return folder


def _borrow(names: list[str], folder: Path, settings: Options) -> None:
    """Link networks that stand in another stage's folder and were made from the file that is recorded for `names`."""
    digests = read_lock(settings.lock)
    for name in names:
        target = folder / f"{Path(urlsplit(name).path).stem}{SUFFIX}"
        recorded = digests.get(name)
        if target.exists() or recorded is None:
            continue
        for other in OUT.glob(f"*/networks/*/{target.name}"):
            with contextlib.suppress(InputError):
                if snapshots.read_metadata(other).get("source_sha256") == recorded:
                    link_or_copy(other, target)
                    break


def reference(study: Study, settings: PublishedReference, folder: Path) -> None:
    """Published statistics as one file DETECTOR.npz in `folder` for each of the settings' detectors.

    The detectors' weights are looked for, too: a missing file shows now, not after hours of sampling.

    Raises:
        InputError: something cannot be fetched, or the statistics lack a detector.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(urlsplit(settings.statistics).path).name
    fetch([Source(settings.statistics, path)], options(study))
    published = references.load(path)
    if published is None:
        raise InputError(f"{path}: holds no statistics; expected EDM2's pickle")
    for detector, key in settings.detectors.items():
        _weights(detector, offline=options(study).offline)
        found = published.require(references.EDM2_DETECTORS[key])
        tags = {"detector": detector, "source": settings.statistics}
        statistics.save(replace(found, tags=tags), folder / f"{detector}.npz")


def _weights(detector: str, offline: bool) -> None:
    """Have the published weights of `detector`; other detectors bring their own."""
    if detector not in weights.WEIGHTS:
        return
    if offline and weights.locate(detector) is None:
        wanted = weights.WEIGHTS[detector][0]
        raise InputError(f"offline, and {wanted.filename} is missing; put {wanted.urls[0]} in {weights.cache_folder()}")
    weights.find(detector)


def everything(study: Study) -> list[Path]:
    """Fetch all that the stages of `study` will, for machines without a network; returns the folders."""
    folders = []
    for key, item in study.networks.items():
        if item.files():
            folders.append(study.out / "networks" / key)
            with folder_lock(folders[-1]):
                networks(study, item, folders[-1])
    for key, data in study.data.items():
        if data.kind == "reference":
            folders.append(study.out / "data" / key)
            with folder_lock(folders[-1]):
                reference(study, build(PublishedReference, data.settings), folders[-1])
        if data.kind == "cifar10":
            folders.append(study.out / "data" / key)
            with folder_lock(folders[-1]):
                cifar10.prepare(build(Cifar10, data.settings), folders[-1], options(study))
        if data.kind in ("cifar10", "images"):
            for detector in study.evaluate.detectors:
                _weights(detector, options(study).offline)
    return folders
