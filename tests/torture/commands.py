"""The long commands on a miniature study, ended by kill -9 and SIGTERM at random moments, and what must hold then."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.hostile import child
from tests.rehearsal import fixtures
from tests.rehearsal.server import Server
from tests.repro.pipeline.test_pipeline import miniature
from tests.repro.search.conftest import SETTINGS

PATIENCE = 120  # seconds that a command may take, and 20 that its children may outlive it
NETWORKS = [f"posthoc-reconstructions/edm2-img64-xs-0134217-0.{std}.pkl" for std in (110, 135, 150)]
SEARCH = ["--main", "mini-main-run", "--guide", "mini-guide-run", "--data", "mini-digits", "--settings", "search.yaml"]
BLOCKS = {"seeds": "2048-2111", "fresh": ["2112-2175", "2176-2239"], "guide_kimg": [1]}
SHORT = {"total_nimg": 1024, "checkpoint_nimg": 256, "log_nimg": 256}  # of the training that is ended
KEPT = ["--cache", "kept", "--json", "a.json"]
TINT = ["--plugin", "tests.hostile.plugin", "--detectors", "tint"]


@dataclass(frozen=True)
class Command:
    """A command line, the files that it is for, and the parts of `out/mini` that it needs."""

    program: str
    arguments: Sequence[str]
    outputs: str
    needs: Sequence[str] = ()

    def run(self, folder: Path) -> None:
        """Run it to its end."""
        child.finish(self.program, self.arguments, folder)

    def end(self, folder: Path, sent: signal.Signals, moment: float) -> bool:
        """Start it and end it at a moment; returns whether it was still at work."""
        with tempfile.TemporaryDirectory() as place:
            process = child.start(self.program, self.arguments, folder, place, bounded=False)
            process.join(moment)
            working = process.is_alive()
            if working:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(process.pid or 0, sent)
                process.join(PATIENCE)
            assert process.exitcode is not None, f"{self.arguments}: still running {PATIENCE} s after {sent.name}"
            said = Path(place, "err").read_text(errors="replace")
            assert "Traceback" not in said, said
            if sent is signal.SIGTERM:
                left = {path.name for path in Path(place).iterdir()} - {"out", "err", "usage", "torchinductor_root"}
                assert not left, f"{self.arguments}: left {left} in the folder of temporary files"
                # from the handler on; before it a process that was just started ends as any does
                assert process.exitcode in (0, 130, 143, -signal.SIGTERM), f"ends with {process.exitcode}: {said}"
        return working


def stage(name: str, key: str, outputs: str, *needs: str) -> Command:
    return Command("repro", ["stage", name, key], outputs, needs)


COMMANDS = {
    "train": stage("train", "mini-main-run", "out/mini/networks/mini-main-run/*.safetensors", "data"),
    "generate": stage("generate", "mini-autoguidance", "out/mini/samples/*/*.zip", "data", "networks"),
    "evaluate": Command(
        "metrics",
        ["evaluate", "images", "--ref", "reference.npz", *TINT, *KEPT, "--workers", "1"],
        "a.json",
    ),
    "evaluate-packed": Command(
        "metrics",
        ["evaluate", "images.tar.gz", "--ref", "reference.npz", *TINT, *KEPT, "--workers", "1"],
        "a.json",
    ),
    "sweep": stage("sweep", "mini-sweep", "out/mini/results/*/measures.csv", "data", "networks", "references"),
    "guide": Command("repro", ["guide", *SEARCH, "--out", "found"], "found/*.csv", ("data", "networks", "references")),
    "fetch": Command("repro", ["fetch"], "out/fetched/networks/*/*.safetensors"),
    "convert": Command(
        "repro",
        ["data", "convert", "images", "--out", "set.zip", "--resolution", "16", "--workers", "1"],
        "set.zip",
    ),
}


def prepare(folder: Path, server: Server, images: int = 2000) -> Path:
    """A folder with all that the commands need: the miniature study so far, images and their reference, networks."""
    folder.mkdir(parents=True)
    study = miniature()
    for run in study["train"].values():
        run["config"]["network"]["model_channels"] = 8
    study["sampler"]["num_steps"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(study))
    entries = [("data", "mini-digits"), ("reference", "mini-digits")]
    entries += [(section, key) for section in ("train", "reconstruct") for key in study[section]]
    for name, key in entries:
        stage(name, key, "").run(folder)
    (folder / "search.yaml").write_text(yaml.safe_dump(SETTINGS | BLOCKS))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(images):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"images/{i:05d}.png")
    Command("metrics", ["reference", "images", "--out", "reference.npz", *TINT, "--no-cache"], "").run(folder)
    with tarfile.open(folder / "images.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(folder / "images", ".")
    server.files |= {f"/{name}": fixtures.network(name) for name in NETWORKS}
    fetched = study | {key: {} for key in ("data", "train", "reconstruct", "generate", "sweeps")}
    fetched |= {"study": "fetched", "sources": [server.base], "networks": {"fetched-xs": {"fetch": NETWORKS}}}
    (folder / "fetch.yaml").write_text(yaml.safe_dump(fetched | {"evaluate": {"detectors": []}}))
    study["train"]["mini-main-run"]["config"] |= SHORT
    (folder / "train.yaml").write_text(yaml.safe_dump(study))
    return folder


def copied(made: Path, folder: Path, name: str) -> Path:
    """A folder with what a command needs, and nothing of what it makes."""
    folder.mkdir(parents=True)
    for file in ("search.yaml", "reference.npz", "images.tar.gz"):
        shutil.copy(made / file, folder)
    study = made / f"{name}.yaml"
    shutil.copy(study if study.exists() else made / "params.yaml", folder / "params.yaml")
    (folder / "images").symlink_to(made / "images")
    for part in COMMANDS[name].needs:
        shutil.copytree(made / "out/mini" / part, folder / "out/mini" / part)
    return folder


def torture(name: str, made: Path, folder: Path, times: int) -> str:
    """End a command `times` times by each signal; what was done. AssertionError names the first thing that went wrong.

    What it makes when started again is what it makes undisturbed, in the same files, and no process lives on.
    """
    command, rng, ended, took = COMMANDS[name], random.Random(name), 0, 0.0
    for undisturbed in (folder / f"{name}-once", folder / f"{name}-twice"):
        copied(made, undisturbed, name)
        began = time.monotonic()
        command.run(undisturbed)
        took = time.monotonic() - began
    wanted, files = outputs(undisturbed, command), listing(undisturbed)
    assert wanted, f"{name} made nothing"
    assert outputs(folder / f"{name}-once", command) == wanted, f"{name} differs from run to run"
    for number in range(times):
        for sent in (signal.SIGKILL, signal.SIGTERM):
            moment = rng.uniform(0, took)
            what = f"{name}, ended by {sent.name} after {moment:.2f} of {took:.2f} s"
            place = copied(made, folder / f"{name}-{number}-{sent.name}", name)
            ended += command.end(place, sent, moment)
            assert not living(place), f"{what}: processes {living(place)} live on"
            if sent is signal.SIGTERM:
                left = [path for path in listing(place) - files if not path.endswith((".part", ".part.json"))]
                assert not any(path.endswith((".tmp", ".holder")) for path in left), f"{what}: left {left}"
            command.run(place)
            assert outputs(place, command) == wanted, f"{what}: what it makes when started again differs"
            assert listing(place) == files, f"{what}, then whole: {sorted(listing(place) ^ files)}"
            shutil.rmtree(place)
    return f"{name}: {took:.1f} s undisturbed, ended at work {ended} of {2 * times} times, nothing lost, nothing left"


def outputs(folder: Path, command: Command) -> dict[str, str]:
    """Digests of the files that a command is for."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(command.outputs))
    }


def listing(folder: Path) -> set[str]:
    """All files below a folder, links not followed; without the stamps that folders of networks carry."""
    found = {os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names}
    return {re.sub(r"-[0-9a-f]{8}/", "/", name) for name in found}


def living(folder: Path, patience: float = 20) -> list[int]:
    """Processes that work in a folder, once they have had the time to notice that their parent is no more."""
    deadline = time.monotonic() + patience
    while found := [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _place(int(pid)) == folder]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return found


def _place(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None
