"""A copy of the project's tracked files in a folder of its own, and commands run in it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from metrics.files import LOCK
from repro.study import Study, load, study_path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 2400  # seconds that one command may take: imagenet512 has 96 stages, and machines are slow at times


class FailedError(Exception):
    """A rehearsal went wrong; the message says what."""


class Checkout:
    """The project as a user has it, whose caches and downloads stay below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            if (ROOT / name).is_file():  # not deleted, not a submodule
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        (self.folder / LOCK).unlink(missing_ok=True)  # digests of the real files
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "DVC_SITE_CACHE_DIR": str(folder / "dvc-site"),
            "HF_HUB_OFFLINE": "1",  # all that diffusers may load is there
            "OMP_NUM_THREADS": "1",  # lanes are what keeps the cores busy
        }
        self.stopped = False
        self.run("init", "dvc", "config", "--local", "core.no_scm", "true")

    def run(self, log: str, *command: str, fails: bool = False) -> str:
        """Output of a command, also kept as a log.

        Raises:
            FailedError: it fails, or does not where it should, with the end of its output.
        """
        if self.stopped:
            raise FailedError("stopped")
        path = self.logs / f"{log}.log"
        with open(path, "w") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.process = process
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.stop()
                raise FailedError(f"`{' '.join(command)}` did not end within {PATIENCE} s") from None
        output = path.read_text()
        if (process.returncode != 0) != fails:
            end = "\n".join(output.splitlines()[-30:])
            raise FailedError(f"`{' '.join(command)}` ended with {process.returncode}; the end of its output:\n{end}")
        return output

    def stop(self) -> None:
        """End the command under way, with its children, which DVC would leave running."""
        self.stopped = True
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def repro(self, log: str, fails: bool = False) -> list[str]:
        """The stages that `dvc repro` ran."""
        output = self.run(log, "dvc", "repro", fails=fails)
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]

    def use(self, name: str) -> None:
        """Make a study the active one."""
        self.run(f"use-{name}", "python", "-m", "repro", "study", "use", name)

    def write(self, study: dict[str, Any]) -> None:
        """Replace a study's file."""
        (self.folder / study_path(study["study"])).write_text(yaml.safe_dump(study, sort_keys=False))

    def study(self, name: str) -> Study:
        """A study as it is rehearsed."""
        return load(self.folder / study_path(name))

    def finished(self) -> set[str]:
        """Names of all stages that were ever finished."""
        return set(yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"])
