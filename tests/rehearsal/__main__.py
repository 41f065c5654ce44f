"""Rehearse the ImageNet studies (`make rehearsal`), so that nothing runs for the first time where it is expensive."""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from repro import study as studies
from tests.rehearsal import checks, fixtures
from tests.rehearsal.checkout import ROOT, Checkout, FailedError
from tests.rehearsal.overlay import forbidden, overlay
from tests.rehearsal.server import Server

STUDIES = ("smoke512", "imagenet64", "sensitivity512", "corruptions512", "imagenet512")
FAULTS = {  # of networks that several studies want
    "/posthoc-reconstructions/edm2-img512-xs-0134217-0.125.pkl": [404],
    "/posthoc-reconstructions/edm2-img512-s-2147483-0.070.pkl": [503, ("drop", 50_000)],
    "/posthoc-reconstructions/edm2-img64-xs-0134217-0.110.pkl": [503],
    "/raw-snapshots/edm2-img64-s/edm2-img64-s-1073741-0.100.pkl": [("drop", 1000)],
}
LAUNCHERS = {"smoke512": "torchrun --standalone --nproc-per-node=2"}


def main() -> None:
    """Run it; exit code 1 with what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(STUDIES), help="studies, in the order they are run")
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    began = time.monotonic()
    try:
        rehearse(arguments.names, folder)
    except FailedError as err:
        sys.exit(f"rehearsal failed: {err}")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"rehearsal: everything as it should be, {time.monotonic() - began:.0f} s", flush=True)


def rehearse(names: list[str], folder: Path) -> None:
    """Every study from nothing to its report, then what must hold between them."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {name: yaml.safe_load((ROOT / studies.study_path(name)).read_text()) for name in names}
    with say("fixtures"):
        files = fixtures.served([studies.load(ROOT / studies.study_path(name)) for name in names], folder / "vae")
    server = Server(files)
    server.faults |= {path: list(found) for path, found in FAULTS.items()}
    try:
        checkout = Checkout(folder)
        for name, study in raw.items():
            rehearsed = overlay(study, server.base, LAUNCHERS.get(name, "python"))
            checks.expect(not forbidden(study, rehearsed), f"the overlay changes {forbidden(study, rehearsed)}")
            checkout.write(rehearsed)
        missing = {path.lstrip("/") for path, faults in FAULTS.items() if 404 in faults}
        for name in names:
            one(checkout, name, missing)
        with say("switching studies"):
            switch(checkout, names)
        for path in files:
            checks.downloads(path, server.gets(path), FAULTS.get(path, []))
    finally:
        server.close()


def one(checkout: Checkout, name: str, missing: set[str]) -> None:
    """Run a study, and again, when nothing may be left to do.

    What is in `missing` is not on the server at the first try, which must say so; it is taken out then.
    """
    study = checkout.study(name)
    with say(f"{name}: {len(study.ids()) + 2} stages"):
        checkout.use(name)
        networks = {path for item in study.networks.values() for path in item.files()}
        if networks & missing:
            output = checkout.run(f"{name}-404", "dvc", "repro", fails=True)
            for path in networks & missing:
                checks.expect(f"{path}: 404 Not Found" in output, f"{name}: the missing file {path} is not named")
                missing.discard(path)
        checkout.repro(name)
        checks.everything(checkout, study)
    with say(f"{name}: a second time"):
        ran = checkout.repro(f"{name}-again")
        checks.expect(not ran, f"{name}: a second `dvc repro` ran {', '.join(ran)}")


def switch(checkout: Checkout, names: list[str]) -> None:
    """Another study and back leaves nothing to do."""
    for name in (names[0], names[-1]):
        checkout.use(name)
        ran = checkout.repro(f"{name}-back")
        checks.expect(not ran, f"`study use {name}` and `dvc repro` ran {', '.join(ran)}")


@contextlib.contextmanager
def say(what: str) -> Iterator[None]:
    """Print what is done and how long it took."""
    began = time.monotonic()
    print(f"rehearsal: {what} ...", end="", flush=True)
    yield
    print(f" {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
