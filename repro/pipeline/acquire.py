"""What a study takes from outside: published networks, their VAE, the sources of data sets and detectors' weights."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from metrics.detectors import weights
from metrics.files import Downloads, InputError, Source, fetch, fetch_each, folder_lock, read_lock
from metrics.machine import machine
from repro import snapshots
from repro.encoders import VAE_FILES, vae_folder
from repro.pipeline.store import Store
from repro.study import OUT, Networks, Study

SUFFIX = ".safetensors"


def downloads(study: Study, offline: bool = False) -> Downloads:
    """How a study's files are fetched; `offline`: whatever the machine's setting."""
    return Downloads(bases=study.sources, offline=offline or bool(machine().offline))


def networks(study: Study, item: Networks, folder: Path, store: Store, settings: Downloads) -> list[Path]:
    """The published networks of `item` in `folder` as .safetensors with the stems of the published names, and the VAE.

    Networks that another study has are linked instead of fetched again; those that the study no longer names
    are removed.

    Raises:
        InputError: see `fetch_networks`.
    """
    paths = fetch_networks(item.files(), folder, settings, store)
    for path in set(folder.glob(f"*{SUFFIX}")) - set(paths):
        path.unlink()
    for name in {str(snapshots.read_metadata(path)["encoder"].get("vae_name", "")) for path in paths} - {""}:
        vae(name, replace(settings, bases=study.hub))
    return paths


def fetch_networks(names: Iterable[str], folder: Path, settings: Downloads, store: Store | None = None) -> list[Path]:
    """Published networks as .safetensors in `folder`, each converted as soon as it is there.

    Args:
        names: paths below the base addresses, such as `posthoc-reconstructions/edm2-img512-s-2147483-0.070.pkl`.
        folder: receives RUN-KIMG-STD.safetensors; what stands there with the recorded digest is not fetched again.
        settings: how to fetch.
        store: what other studies have.

    Raises:
        InputError: see `metrics.files.fetch_each`; a file that is no network; a network there that comes from another
            source.
    """
    digests = read_lock(settings.lock)
    targets = {name: folder / Path(urlsplit(name).path).with_suffix(SUFFIX).name for name in names}
    wanted = []
    for name, target in targets.items():
        recorded = digests.get(name)
        if target.exists():
            if recorded and not _is_made_from(target, recorded):
                found = snapshots.read_metadata(target).get("source_sha256")
                raise InputError(f"{target}: made from a file with sha256 {found}, expected {recorded}; delete it")
        elif not (store and recorded and store.borrow(target, partial(_is_made_from, digest=recorded))):
            wanted.append(Source(name, target.with_suffix(".pkl")))
    with closing(fetch_each(wanted, settings)) as fetched:
        for source in fetched:
            snapshots.save(snapshots.load(source.path), targets[source.name])
            source.path.unlink()
    return list(targets.values())


def _is_made_from(path: Path, digest: str) -> bool:
    """Whether a network was converted from the published file with that digest."""
    return bool(snapshots.read_metadata(path).get("source_sha256") == digest)


def vae(name: str, hub: Downloads) -> Path:
    """Folder of the VAE `name` of the Hugging Face `hub`; its files are fetched into the cache of downloads.

    Raises:
        InputError: see `metrics.files.fetch_each`.
    """
    folder = vae_folder(name)
    if not Path(name).is_dir():
        sources = [Source(f"{name}/resolve/main/{file}", folder / file) for file in VAE_FILES]
        fetch(sources, hub)
    return folder


def everything(study: Study, offline: bool = False) -> list[Path]:
    """Fetch all that the stages of `study` will, for machines without a network; returns the folders.

    `offline`: download nothing, but say what is missing and where to put it.
    """
    settings, store, folders = downloads(study, offline), Store(OUT), []
    for key, item in study.networks.items():
        folders.append(study.out / "networks" / key)
        with folder_lock(folders[-1]):
            networks(study, item, folders[-1], store, settings)
    for key, data in study.datasets.items():
        folders.append(study.out / "data" / key)
        with folder_lock(folders[-1]):
            data.made.prepare(folders[-1], settings)
    for detector in study.evaluate.detectors:
        weights.ensure(detector, settings.offline)
    return folders
