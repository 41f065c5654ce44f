"""Can what a study needs be had? One file of each kind is fetched to where the study wants it, and read."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from metrics.detectors.weights import WEIGHTS, cache_folder, ensure
from metrics.files import Downloads, InputError, folder_lock
from metrics.files.reading import files_below
from repro.encoders import StabilityVAEEncoder, vae_folder
from repro.missing import read_missing
from repro.pipeline import acquire
from repro.preflight.checks import Setting, failed, passed, skipped
from repro.study import OUT, Networks, Study
from repro.study.counting import published, shape_of
from repro.study.rates import Finding

REMEDY = "`repro doctor` says which hosts can be reached; `sources` and `hub` of the study may name mirrors"
OPTIONAL = "the study does not rely on it: what needs it will be called not possible, and the rest goes on"


def check_addresses(setting: Setting) -> Iterator[Finding]:
    """A ready-made network, a raw snapshot, reference statistics or data, the VAE, and detectors' weights."""
    study = setting.study
    if setting.offline or acquire.downloads(study).offline:
        yield skipped("all", "offline: nothing is asked for")
        return
    kinds = list(_kinds(study))
    if not kinds:
        yield skipped("all", "the study fetches nothing")
    for about, folder, optional, obtain in kinds:
        before, began = _size(folder), time.monotonic()
        try:
            with folder_lock(folder):
                path = obtain(acquire.downloads(study))
        except InputError as err:
            yield skipped(about, f"{err}: {OPTIONAL}") if optional else failed(about, str(err), REMEDY)
            continue
        seconds, came = time.monotonic() - began, max(_size(folder) - before, 0)
        if path is not None and (missing := read_missing(path)):
            why = missing[""]
            yield skipped(about, f"{why}: {OPTIONAL}") if optional else failed(about, why, REMEDY)
        else:
            yield passed(about, f"{came / 1e6:,.1f} MB in {seconds:.1f} s" if came else "is here already, and sound")


Obtain = Callable[[Downloads], Path | None]


def _kinds(study: Study) -> Iterator[tuple[str, Path, bool, Obtain]]:
    """What it is, the folder that it comes to, whether the study goes on without, and what fetches and reads it."""
    for about, sets in _sets(study).items():
        name, key = min(((item.files()[0], key) for key, item in sets.items()), key=lambda found: _parameters(found[0]))
        folder, optional = study.out / "networks" / key, sets[key].optional
        yield f"{about} {Path(name).name}", folder, optional, _network(name, folder)
    for key, data in study.data.items():
        folder = study.out / "data" / key
        yield f"data {key}", folder, False, partial(acquire.prepare, data, folder)
    recipes = [published(name) for item in study.networks.values() for name in item.files()[:1]]
    if any(recipe is not None and shape_of(recipe).latent for recipe in recipes):
        name = StabilityVAEEncoder.vae_name
        yield f"VAE {name}", vae_folder(name), False, lambda settings: acquire.fetch_vae(study, name, settings)
    for detector in study.evaluate.all_detectors:
        if detector in WEIGHTS:
            yield f"weights of {detector}", cache_folder(), detector not in study.evaluate.plain, _weights(detector)


def _sets(study: Study) -> dict[str, dict[str, Networks]]:
    """Sets of networks by what they are, each that the study goes on without by itself."""
    found: dict[str, dict[str, Networks]] = {}
    for key, item in study.networks.items():
        about = "raw snapshot" if item.raw else "ready-made network"
        found.setdefault(f"{about} of {key}," if item.optional else about, {})[key] = item
    return found


def _network(name: str, folder: Path) -> Obtain:
    return lambda settings: acquire.fetch_networks([name], folder, settings, OUT, retry=True)[0]


def _weights(detector: str) -> Obtain:
    return lambda settings: ensure(detector, settings.offline)


def _parameters(file: str) -> int:
    recipe = published(file)
    return 0 if recipe is None else shape_of(recipe).count().parameters


def _size(folder: Path) -> int:
    return sum(facts.st_size for facts in files_below(folder))
