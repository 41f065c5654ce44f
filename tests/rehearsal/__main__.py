"""Rehearse the ImageNet studies (`make rehearsal`), so that nothing runs for the first time where it is expensive.

The studies of a lane share a checkout, as they would at a user's; the lanes run side by side.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import yaml

from repro import study as studies
from repro.study import Study
from tests.rehearsal import checks, fixtures
from tests.rehearsal.checkout import ROOT, Checkout, FailedError
from tests.rehearsal.overlay import forbidden, overlay
from tests.rehearsal.server import Server

LANES = (
    ("smoke512", "imagenet512", "interval512", "bad-versions512"),
    ("smoke64", "imagenet64", "sensitivity512", "corruptions512"),
)
STUDIES = tuple(name for lane in LANES for name in lane)
LAUNCHERS = {"smoke512": "torchrun --standalone --nproc-per-node=2"}
FAULTS = {  # of the networks; 404: what needs it is not possible at first, and is made after a second attempt
    "/posthoc-reconstructions/edm2-img512-xs-0134217-0.125.pkl": [404],
    "/posthoc-reconstructions/edm2-img512-s-2147483-0.070.pkl": [503, ("drop", 50_000)],
    "/posthoc-reconstructions/edm2-img64-xs-0134217-0.175.pkl": [503],
    "/posthoc-reconstructions/edm2-img64-xs-0134217-0.110.pkl": [404],
    "/posthoc-reconstructions/edm2-img64-s-1073741-0.105.pkl": [404],
    "/raw-snapshots/edm2-img64-s/edm2-img64-s-0536870-0.050.pkl": [404],
    "/raw-snapshots/edm2-img512-s/edm2-img512-s-2147483-0.100.pkl": [("drop", 1000)],
}


def main() -> None:
    """Run it; exit code 1 with the first thing that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=STUDIES, help="studies, all by default")
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


def rehearse(names: Sequence[str], folder: Path) -> None:
    """Every study from nothing to its report, and what must hold between them.

    Raises:
        FailedError: something does not hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    real = {name: studies.load(ROOT / studies.study_path(name)) for name in names}
    with say("fixtures"):
        files = fixtures.served(real.values(), folder / "vae")
    lanes = [Lane(folder / lane[0], [real[name] for name in lane if name in real], files) for lane in LANES]
    lanes = [lane for lane in lanes if lane.studies]
    with ThreadPoolExecutor(len(lanes)) as pool:
        jobs = [pool.submit(lane.run) for lane in lanes]
        try:
            failed = [job for job in wait(jobs, return_when=FIRST_EXCEPTION).done if job.exception()]
        finally:
            for lane in lanes:
                lane.stop()
        for job in failed:
            job.result()


class Lane:
    """Studies that run one after the other in a checkout with a server of its own."""

    def __init__(self, folder: Path, found: Sequence[Study], files: Mapping[str, bytes]) -> None:
        self.studies = found
        self.checkout = Checkout(folder)
        self.server = Server(files)
        self.server.faults |= {path: list(faults) for path, faults in FAULTS.items()}
        self.missing = {path for path, faults in FAULTS.items() if 404 in faults}

    def stop(self) -> None:
        """End what is running."""
        self.checkout.stop()
        self.server.close()

    def run(self) -> None:
        """Every study, and again; then another one and back."""
        for study in self.studies:
            raw = yaml.safe_load((ROOT / studies.study_path(study.study)).read_text())
            rehearsed = overlay(raw, self.server.base)
            checks.expect(not forbidden(raw, rehearsed), f"the overlay changes {forbidden(raw, rehearsed)}")
            self.checkout.write(rehearsed)
        for study in self.studies:
            with say(f"{study.study}: {len(study.ids()) + 2} stages"):
                self.once(study.study)
            with say(f"{study.study}: a second time"):
                self.nothing_to_do(study.study)
        with say("studies switched"):
            self.checkout.use(self.studies[0].study if len(self.studies) > 1 else "default")
            if len(self.studies) > 1:
                self.nothing_to_do(self.studies[0].study)
            self.checkout.use(self.studies[-1].study)
            self.nothing_to_do(self.studies[-1].study)
        for path in {path for study in self.studies for path in addresses(study)}:
            checks.served_once(path, self.server.gets(path), FAULTS.get(path, []))

    def once(self, name: str) -> None:
        """A study from nothing, and what came out; without the files that are missing at first, then with them."""
        study = self.checkout.study(name)
        self.checkout.use(name)
        self.checkout.environment["REPRO_LAUNCHER"] = LAUNCHERS.get(name, "python")
        if missing := self.missing & addresses(study):
            self.checkout.repro(f"{name}-missing")
            nothing = not checks.not_possible(self.checkout.folder / study.out, missing)
            self.checkout.run(f"{name}-missing-verify", "python", "-m", "repro", "verify", "--strict", fails=nothing)
            said = self.checkout.run(f"{name}-retry", "python", "-m", "repro", "fetch", "--retry")
            checks.expect("not possible" not in said, f"{name}: a second attempt does not find {missing}")
            self.missing -= missing
        self.checkout.repro(name)
        checks.everything(self.checkout, study)

    def nothing_to_do(self, name: str) -> None:
        """Run the active study when all of it is done."""
        ran = self.checkout.repro(f"{name}-again")
        checks.expect(not ran, f"{name}: `dvc repro` ran {', '.join(ran)} though nothing had changed")


def addresses(study: Study) -> set[str]:
    """Paths on the server of a study's networks."""
    return {f"/{name}" for item in study.networks.values() for name in item.files()}


@contextlib.contextmanager
def say(what: str) -> Iterator[None]:
    """Print what was done and how long it took."""
    began = time.monotonic()
    yield
    print(f"rehearsal: {what}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
