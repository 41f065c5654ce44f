"""What a study takes from outside: published networks and reference statistics, at the addresses it names."""

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from metrics import references, statistics
from metrics.files import InputError, folder_lock
from repro import snapshots
from repro.fetch import Options, Source, fetch, fetch_networks, read_lock
from repro.study import OUT, Networks, PublishedReference, Study, build

OFFLINE = "AUTOGUIDANCE_OFFLINE"
"""Environment variable: where it is set, nothing is downloaded."""
SUFFIX = ".safetensors"


def options(study: Study) -> Options:
    """How a study's files are fetched."""
    return Options(bases=study.sources, offline=bool(os.environ.get(OFFLINE)))


def networks(study: Study, item: Networks, folder: Path) -> list[Path]:
    """The published networks of `item` in `folder` as .safetensors with the stems of the published names.

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
    return paths


def _borrow(names: list[str], folder: Path, settings: Options) -> None:
    """Link networks that stand in another stage's folder and were made from the file that is recorded for `names`."""
    digests = read_lock(settings.lock)
    for name in names:
        target = folder / f"{Path(urlsplit(name).path).stem}{SUFFIX}"
        recorded = digests.get(settings.addresses(Source(name, target))[0])
        if target.exists() or recorded is None:
            continue
        for other in OUT.glob(f"*/networks/*/{target.name}"):
            with contextlib.suppress(InputError):
                if snapshots.read_metadata(other).get("source_sha256") == recorded:
                    link(other, target)
                    break


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the file system has no links."""
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def reference(study: Study, settings: PublishedReference, folder: Path) -> None:
    """Published statistics as one file DETECTOR.npz in `folder` for each of the settings' detectors.

    Raises:
        InputError: they cannot be fetched, or lack a detector.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(urlsplit(settings.statistics).path).name
    fetch([Source(settings.statistics, path)], options(study))
    published = references.load(path)
    if published is None:
        raise InputError(f"{path}: holds no statistics; expected EDM2's pickle")
    for detector, key in settings.detectors.items():
        found = published.require(references.EDM2_DETECTORS[key])
        tags = {"detector": detector, "source": settings.statistics}
        statistics.save(replace(found, tags=tags), folder / f"{detector}.npz")


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
    return folders
