"""What a study takes from outside: published networks, their VAE, the sources of data sets and detectors' weights; and
what any study has made already, found by what it is, so that nothing is made twice on one disk."""

import re
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from metrics.detectors import weights
from metrics.files import Downloads, InputError, Source, fetch, fetch_each, folder_lock, link_or_copy, read_lock
from metrics.machine import machine
from repro import snapshots
from repro.encoders import VAE_FILES, vae_folder, vae_revision
from repro.study import OUT, Networks, Study

SUFFIX = ".safetensors"
#: Names of shards, FIRST-LAST, and of networks, RUN-KIMG-STD.
OURS = re.compile(r"\d{6,}-\d{6,}|.+-\d{7}-\d\.\d{3}")


def downloads(study: Study, offline: bool = False, allow_http: bool = False) -> Downloads:
    """How a study's files are fetched; `offline`, `allow_http`: whatever the machine's settings."""
    return Downloads(study.sources, offline=offline or bool(machine().offline), allow_http=allow_http)


def borrow(target: Path, is_same: Callable[[Path], bool], root: Path = OUT) -> bool:
    """Link `target`, a path below `root`, from another study's or stage's file of its section and name.

    Outputs lie at ROOT/STUDY/SECTION/.../NAME. One that does not pass `is_same`, which may raise InputError, is passed
    over. Returns whether there is one.
    """
    section, *below = target.relative_to(root).parts[1:]
    for other in sorted(root.glob("/".join(["*", section, *["*"] * (len(below) - 1), target.name]))):
        same = False
        with suppress(InputError):
            same = other != target and is_same(other)
        if same:
            link_or_copy(other, target)
            return True
    return False


def clear(folder: Path, suffix: str, keep: Iterable[Path]) -> None:
    """Remove networks or shards, known by their names, that the study names no more; other files stay."""
    for path in {*folder.glob(f"*{suffix}")} - {*keep}:
        if OURS.fullmatch(path.stem):
            path.unlink()


def networks(study: Study, item: Networks, folder: Path, settings: Downloads) -> list[Path]:
    """The published networks of `item` in `folder` as .safetensors with the stems of the published names, and the VAE.

    Networks that another study has are linked instead of fetched again; those that the study no longer names are
    removed. The VAE comes from the study's Hugging Face `hub` into the cache of downloads. Raises InputError as
    `fetch_networks` does.
    """
    paths = fetch_networks(item.files(), folder, settings, OUT)
    clear(folder, SUFFIX, paths)
    for name in {str(snapshots.read_metadata(path)["encoder"].get("vae_name", "")) for path in paths} - {""}:
        if not Path(name).is_dir():
            place = f"{name}/resolve/{vae_revision(name)}"
            files = [Source(f"{place}/{file}", vae_folder(name) / file) for file in VAE_FILES]
            fetch(files, replace(settings, bases=study.hub))
    return paths


def fetch_networks(names: Iterable[str], folder: Path, settings: Downloads, root: Path | None = None) -> list[Path]:
    """Published networks as .safetensors in `folder`, each converted as soon as it is there.

    `names` are paths below the base addresses, such as `posthoc-reconstructions/edm2-img512-s-2147483-0.070.pkl`.
    `folder` receives RUN-KIMG-STD.safetensors; what stands there with the recorded digest is not fetched again, and
    what stands in the outputs `root` of all studies is linked. Raises InputError as `metrics.files.fetch_each` does,
    for a file that is no network, and for a network there that comes from another source.
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
            for rest in folder.glob(f"{target.stem}.pkl*"):  # of a run that was killed when it had just converted it
                if rest.suffix != ".lock":
                    rest.unlink(missing_ok=True)
        elif not (root and recorded and borrow(target, partial(_is_made_from, digest=recorded), root)):
            wanted.append(Source(name, target.with_suffix(".pkl"), check=snapshots.load_published))
    with closing(fetch_each(wanted, settings)) as fetched:
        for source in fetched:
            snapshots.save(snapshots.load(source.path), targets[source.name])
            source.path.unlink()
    return list(targets.values())


def _is_made_from(path: Path, digest: str) -> bool:
    return bool(snapshots.read_metadata(path).get("source_sha256") == digest)


def everything(study: Study, offline: bool = False, allow_http: bool = False) -> list[Path]:
    """Fetch all that the stages of `study` will, for machines without a network; returns the folders.

    `offline`: download nothing, but say what is missing and where to put it. `allow_http`: at first use too.
    """
    settings = downloads(study, offline, allow_http)
    work: dict[Path, Callable[[Path, Downloads], object]] = {
        **{study.out / "networks" / key: partial(networks, study, item) for key, item in study.networks.items()},
        **{study.out / "data" / key: data.made.prepare for key, data in study.datasets.items()},
    }
    for folder, obtain in work.items():
        with folder_lock(folder):
            obtain(folder, settings)
    for detector in study.evaluate.detectors:
        weights.ensure(detector, settings.offline)
    return list(work)
