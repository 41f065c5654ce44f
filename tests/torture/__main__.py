"""`make torture`: kill -9 and SIGTERM at random moments of every long command, then what it left and what it makes.

python -m tests.torture [--times 20] [NAME ...]
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.rehearsal import fixtures
from tests.rehearsal.server import Server
from tests.repro.pipeline.test_pipeline import Project, miniature
from tests.repro.search.conftest import SETTINGS

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
#: Parts of names of what no command may leave behind.
LEFT = (".tmp", ".parts", ".part", "-spool")
STARTED = 1.5  # seconds that a start takes at least
NETWORK = "posthoc-reconstructions/edm2-img64-xs-0134217-0.110.pkl"


@dataclass(frozen=True)
class Case:
    """A command of the miniature study, and the files that it is for; those it may also leave are no leftovers."""

    arguments: list[str]
    outputs: str
    #: Folders of `out/mini` that it needs.
    needs: tuple[str, ...] = ()


CASES = {
    "train": Case(["-m", "repro", "stage", "train", "mini-main-run"], "out/mini/networks/*/*.safetensors", ("data",)),
    "generate": Case(
        ["-m", "repro", "stage", "generate", "mini-autoguidance"], "out/mini/samples/*/*", ("data", "networks")
    ),
    "sweep": Case(
        ["-m", "repro", "stage", "sweep", "mini-sweep"], "out/mini/results/*/*", ("data", "networks", "references")
    ),
    "guide": Case(
        [
            "-m",
            "repro",
            "guide",
            "--main",
            "mini-main-run",
            "--guide",
            "mini-guide-run",
            "--data",
            "mini-digits",
            "--settings",
            "search.yaml",
        ],
        "out/mini/guide/*.csv",
        ("data", "networks", "references"),
    ),
    "evaluate": Case(
        [
            "-m",
            "metrics",
            "evaluate",
            "images",
            "--ref",
            "reference.npz",
            "--detectors",
            "tint",
            "--cache",
            "kept",
            "--plugin",
            "tests.hostile.plugin",
            "--json",
            "result.json",
            "--workers",
            "1",
        ],
        "result.json",
    ),
    "convert": Case(
        ["-m", "repro", "data", "convert", "images", "--out", "set.zip", "--resolution", "16", "--workers", "1"],
        "set.zip",
    ),
    "fetch": Case(["-m", "repro", "fetch"], "out/fetched/networks/*/*.safetensors"),
}


def main() -> None:
    """Run it; exit code 1 if anything was lost, left or made otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--times", type=int, default=20, help="runs that are ended, of each command and signal")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    server = Server()
    try:
        made = prepare(folder / "made", server)
        failed = [fault for name in arguments.names or CASES for fault in torture(name, made, folder, arguments.times)]
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit("\n".join(failed) or None)


def prepare(folder: Path, server: Server) -> Project:
    """The miniature study from end to end, and images, a reference and published files beside it."""
    project = Project(folder)
    project.dvc("repro")
    (folder / "search.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3000):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"images/{i:05d}.png")
    command = ["-m", "metrics", "reference", "images", "--out", "reference.npz", "--plugin", "tests.hostile.plugin"]
    run(project, [*command, "--detectors", "tint", "--no-cache"])
    server.files[f"/{NETWORK}"] = fixtures.network(NETWORK)
    fetching = miniature() | {key: {} for key in ("data", "train", "reconstruct", "generate", "sweeps")}
    fetching |= {"study": "fetched", "sources": [server.base], "networks": {"fetched-xs": {"fetch": [NETWORK]}}}
    (folder / "fetched.yaml").write_text(yaml.safe_dump(fetching | {"evaluate": {"detectors": []}}))
    return project


def run(project: Project, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project.folder, env=project.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def copied(made: Project, folder: Path, case: Case) -> Project:
    """A project with what the command needs, and nothing of what it makes."""
    project = Project(folder)
    for name in ("search.yaml", "reference.npz"):
        shutil.copy(made.folder / name, folder)
    (folder / "images").symlink_to(made.folder / "images")
    if case is CASES["fetch"]:
        shutil.copy(made.folder / "fetched.yaml", folder / "params.yaml")
    for part in case.needs:
        shutil.copytree(made.folder / "out/mini" / part, folder / "out/mini" / part)
    return project


def torture(name: str, made: Project, folder: Path, times: int) -> list[str]:
    """What went wrong with one command."""
    case = CASES[name]
    straight = copied(made, folder / name, case)
    began = time.monotonic()
    run(straight, case.arguments)
    length, wanted, beside = time.monotonic() - began, outputs(straight, case), listing(straight)
    rng, faults, ended = random.Random(name), [], 0
    for number in range(times):
        for sent in SIGNALS:
            project = copied(made, folder / f"{name}-{number}-{sent.name}", case)
            moment = rng.uniform(min(STARTED, length / 2), length)
            ended += end(project, case.arguments, sent, moment)
            what = f"{name}, {sent.name} after {moment:.1f} s"
            if processes(project):
                faults.append(f"{what}: processes {processes(project)} live on")
            if sent is signal.SIGTERM:
                faults += [f"{what}: left {path}" for path in listing(project) - beside if is_left(path)]
            run(project, case.arguments)
            if outputs(project, case) != wanted:
                faults.append(f"{what}: what it makes when started again differs")
            faults += [f"{what}, then whole: left {path}" for path in sorted(listing(project) - beside)]
            shutil.rmtree(project.folder)
    print(f"torture: {name} ({length:.1f} s), ended {ended} of {2 * times} times, {len(faults)} faults", flush=True)
    return faults


def end(project: Project, arguments: list[str], sent: signal.Signals, moment: float) -> bool:
    """Start a command and end it at a moment; returns whether it was still at work."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(sent)
        said, _ = process.communicate(timeout=60)
        assert "Traceback" not in said, said
        return True
    return False


def processes(project: Project) -> list[int]:
    """Processes that work in the project's folder, after a moment to end."""
    for wait in (0.0, 0.5, 2.0, 5.0):
        time.sleep(wait)
        found = []
        for path in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if os.readlink(path) == str(project.folder):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        if not found:
            break
    return found


def outputs(project: Project, case: Case) -> dict[str, str]:
    """Digests of what the command is for, facts of the run itself apart."""
    found = {}
    for path in sorted(project.folder.glob(case.outputs)):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(json.loads(content)["results"]).encode()
            found[str(path.relative_to(project.folder))] = hashlib.sha256(content).hexdigest()
    assert found, f"nothing at {case.outputs}"
    return found


def listing(project: Project) -> set[str]:
    """Names of all files in the project, those of caches by digest apart."""
    files = (path for path in project.folder.rglob("*") if path.is_file())
    apart = {".dvc", "__pycache__", "kept"}
    return {str(path.relative_to(project.folder)) for path in files if not apart & set(path.parts)}


def is_left(path: str) -> bool:
    return any(part in path for part in LEFT)


if __name__ == "__main__":
    main()
