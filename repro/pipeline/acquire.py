"""What a study takes from outside: published networks, their VAE, the sources of data sets and detectors' weights; and
what any study has made already, found by what it is, so that nothing is made twice on one disk."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from metrics.detectors import weights
from metrics.files import (
    Downloads,
    FailuresError,
    InputError,
    MissingError,
    Source,
    explained,
    fetch,
    fetch_each,
    folder_lock,
    link_or_copy,
    on_one_line,
    read_lock,
)
from metrics.machine import machine
from repro import snapshots
from repro.encoders import VAE_FILES, vae_folder, vae_revision
from repro.guidance import Guided
from repro.missing import note_missing, read_missing
from repro.sampling.shards import verified
from repro.study import OUT, Data, Networks, Study

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
            verified(path).unlink(missing_ok=True)


def not_possible(study: Study, guided: Guided) -> str:
    """Why a guided network of `study` cannot be had, a network that is missing; empty where nothing is known to be."""
    active = study.spelt_out(guided).active
    found = (read_missing(study.out / "networks" / network) for network in active.networks)
    return next((reasons.get("", "a network is missing") for reasons in found if reasons), "")


def networks(study: Study, item: Networks, folder: Path, settings: Downloads, retry: bool = False) -> list[Path]:
    """The published networks of `item` in `folder` as .safetensors with the stems of the published names, and the VAE.

    Networks that another study has are linked instead of fetched again; those that the study no longer names are
    removed. The VAE comes from the study's Hugging Face `hub` into the cache of downloads. Raises InputError as
    `fetch_networks` does; of optional networks what could not be had is noted as missing instead.
    """
    try:
        paths = fetch_networks(item.files(), folder, settings, OUT, retry)
    except InputError as err:
        if not item.optional or not (isinstance(err, FailuresError) or machine().offline):
            raise
        paths = [*_targets(item.files(), folder).values()]
        for path in paths:
            if not path.exists():
                note_missing(path, {"": _dated(on_one_line(str(err), 300))})
    clear(folder, SUFFIX, paths)
    _fetch_vaes(study, paths, settings)
    return paths


def _fetch_vaes(study: Study, paths: Iterable[Path], settings: Downloads) -> None:
    """The VAEs of networks, in the cache of downloads."""
    names = set()
    for path in (path for path in paths if not read_missing(path)):
        with explained(f"{path}: metadata cannot be used", "expected a sound encoder"):
            names.add(str(snapshots.read_metadata(path)["encoder"].get("vae_name", "")))
    for name in names - {""}:
        fetch_vae(study, name, settings)


def _dated(reason: str) -> str:
    return f"{reason} on {time.strftime('%Y-%m-%d')}"


def lacking(detector: str, settings: Downloads) -> str:
    """Why the published weights of a detector cannot be had; empty where they are on this machine now."""
    try:
        weights.ensure(detector, settings.offline)
    except InputError as err:
        return _dated(f"weights of {detector}: {on_one_line(str(err), 300)}")
    return ""


def obtain(study: Study, guided: Guided) -> None:
    """Fetch the published ones among the networks of a guided network that are not there, and nothing else.

    Raises InputError where one cannot be had, or is not there and has to be made.
    """
    active = study.spelt_out(guided).active
    for network in active.networks:
        key, path = network.split("/")[0], study.out / "networks" / network
        files = study.networks[key].files() if key in study.networks else []
        published = [file for file in files if Path(file).with_suffix(SUFFIX).name == path.name]
        if not path.exists() and published:
            with folder_lock(path.parent):
                _fetch_vaes(study, fetch_networks(published, path.parent, downloads(study), OUT), downloads(study))
        if not path.exists() and key not in study.models:
            raise InputError(f"{path}: no such network; `dvc repro` makes it, with {study.study} as the active study")
    if reason := not_possible(study, guided):
        raise InputError(f"not possible: {reason}")


def prepare(data: Data, folder: Path, settings: Downloads) -> None:
    """Have a data set's files in `folder`, which is not left empty: to DVC that is no missing one."""
    folder.mkdir(parents=True, exist_ok=True)
    data.made.prepare(folder, settings)
    with suppress(OSError):
        folder.rmdir()


def fetch_vae(study: Study, name: str, settings: Downloads) -> None:
    """Have a VAE by its Hugging Face name, from the study's `hub`; a folder is one already."""
    if not Path(name).is_dir():
        place = f"{name}/resolve/{vae_revision(name)}"
        files = [Source(f"{place}/{file}", vae_folder(name) / file) for file in VAE_FILES]
        fetch(files, replace(settings, bases=study.hub))


def fetch_networks(
    names: Iterable[str], folder: Path, settings: Downloads, root: Path | None = None, retry: bool = False
) -> list[Path]:
    """Published networks as .safetensors in `folder`, each converted as soon as it is there.

    `names` are paths below the base addresses, such as `posthoc-reconstructions/edm2-img512-s-2147483-0.070.pkl`.
    `folder` receives RUN-KIMG-STD.safetensors; what stands there with the recorded digest is not fetched again, and
    what stands in the outputs `root` of all studies is linked. In the place of what no address has is a note
    (`repro.missing`), and it is not asked for again, except on `retry`. Raises InputError as
    `metrics.files.fetch_each` does, for a file that is no network, and for a network there that comes from another
    source.
    """
    digests = read_lock(settings.lock)
    targets, wanted = _targets(names, folder), []
    for name, target in targets.items():
        recorded = digests.get(name)
        if read_missing(target):
            if not retry:
                continue
            target.unlink()
        if target.exists():
            if recorded and not _is_made_from(target, recorded):
                found = snapshots.read_metadata(target).get("source_sha256")
                raise InputError(f"{target}: made from a file with sha256 {found}, expected {recorded}; delete it")
            for rest in folder.glob(f"{target.stem}.pkl*"):  # of a run that was killed when it had just converted it
                if rest.suffix != ".lock":
                    rest.unlink(missing_ok=True)
        elif not (root and recorded and borrow(target, partial(_is_made_from, digest=recorded), root)):
            wanted.append(Source(name, target.with_suffix(".pkl"), check=snapshots.load_published))

    def note(source: Source, err: MissingError) -> None:
        note_missing(targets[source.name], {"": _dated("; ".join(err.answers))})

    with closing(fetch_each(wanted, settings, note)) as fetched:
        for source in fetched:
            snapshots.save(snapshots.load(source.path), targets[source.name])
            source.path.unlink()
    return list(targets.values())


def _targets(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Where each published network goes."""
    return {name: folder / Path(urlsplit(name).path).with_suffix(SUFFIX).name for name in names}


def _is_made_from(path: Path, digest: str) -> bool:
    return bool(snapshots.read_metadata(path).get("source_sha256") == digest)


def everything(
    study: Study, offline: bool = False, allow_http: bool = False, retry: bool = False
) -> tuple[list[Path], list[str], list[str]]:
    """Fetch all that the stages of `study` will, for machines without a network.

    Returns the folders, what no address has, and what failed; a failure does not keep it from the rest. `offline`:
    download nothing, but say what is missing and where to put it. `allow_http`: at first use too. `retry`: ask again
    for what no address had.
    """
    settings = downloads(study, offline, allow_http)
    get = partial(networks, study, retry=retry)
    work: dict[Path, Callable[[Path, Downloads], object]] = {
        **{study.out / "networks" / key: partial(get, item) for key, item in study.networks.items()},
        **{study.out / "data" / key: partial(prepare, data) for key, data in study.datasets.items()},
    }
    absent: list[str] = []
    failures: list[str] = []
    for folder, obtain in work.items():
        with _noted(failures), folder_lock(folder):
            obtain(folder, settings)
        absent += [f"{path}: {why['']}" for path in sorted(folder.glob(f"*{SUFFIX}")) if (why := read_missing(path))]
    for detector in study.evaluate.plain:
        with _noted(failures):
            weights.ensure(detector, settings.offline)
    absent += filter(None, (lacking(part.folder, settings) for part in study.evaluate.parts[1:]))
    return list(work), absent, failures


@contextmanager
def _noted(failures: list[str]) -> Iterator[None]:
    """Add what goes wrong inside to a list."""
    try:
        yield
    except FailuresError as err:
        failures += err.failures
    except InputError as err:
        failures.append(str(err))
