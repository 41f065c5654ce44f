"""The pipeline as users run it: `dvc repro` on a miniature study, killed, resumed, changed and swapped."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
NETWORK = {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "channels_per_head": 8}


def training(name: str, channels: int, steps: int) -> dict[str, Any]:
    batch = 64
    return {
        "data": "mini-digits",
        "config": {
            "name": name,
            "network": {"model_channels": channels, **NETWORK},
            "batch_size": batch,
            "total_nimg": steps * batch,
            "ref_batches": 20,
            "rampup_Mimg": 0.0005,
            "snapshot_nimg": 1024,
            "checkpoint_nimg": 1024,
            "log_nimg": 1024,
        },
    }


def miniature() -> dict[str, Any]:
    """A study with one of everything, in seconds; its name is `mini`."""
    main, guide = (f"mini-{role}/mini-{role}-0000002-0.100.safetensors" for role in ("main", "guide"))
    common = {"data": "mini-digits", "main": main, "seeds": ["0-127", "128-255"]}
    return {
        "study": "mini",
        "toy": {},
        "data": {
            "mini-digits": {
                "kind": "digits",
                "settings": {},
                "reference": {"num_images": 1024, "classifier_steps": 20},
            }
        },
        "images": {},
        "train": {"mini-main-run": training("mini-main", 16, 32), "mini-guide-run": training("mini-guide", 8, 32)},
        "networks": {},
        "models": {},
        "reconstruct": {
            f"mini-{role}": {"source": f"mini-{role}-run", "kimg": 2, "ema_stds": [0.1, 0.15]}
            for role in ("main", "guide")
        },
        "sampler": {"num_steps": 4, "batch_size": 32},
        "shards": {"size": 64},
        "evaluate": {
            "detectors": ["digits"],
            "metrics": ["fd", "precision_recall", "density_coverage"],
            "num_real": 256,
        },
        "generate": {
            "mini-unguided": {"method": "unguided", "guide": main, "guidance": 1.0, **common},
            "mini-autoguidance": {"method": "autoguidance", "guide": guide, "guidance": 1.5, **common},
        },
        "sweeps": {
            "mini-sweep": {
                "method": "autoguidance",
                "main_set": "mini-main",
                "main": main,
                "guide_set": "mini-guide",
                "guide": guide,
                "guidance": 1.5,
                "data": "mini-digits",
                "axis": "guide_ema",
                "values": [0.1, 0.15],
                "seeds": ["1000-1063"],
            }
        },
    }


class Project:
    """A copy of the pipeline in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        (folder / "repro").symlink_to(ROOT / "repro")
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DVC_NO_ANALYTICS": "1",
        }
        self.dvc("init", "--no-scm", "-q")
        shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots", dirs_exist_ok=True)
        self.write(miniature())

    def write(self, study: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def dvc(self, *arguments: str) -> str:
        done = subprocess.run(
            ["dvc", *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["dvc", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def digests(self, pattern: str) -> dict[str, str]:
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.folder / "out").glob(pattern))
        }


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended too early: {process.stdout.read() if process.stdout else ''}"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature study, run once from end to end."""
    project = Project(tmp_path_factory.mktemp("pipeline") / "undisturbed")
    project.dvc("repro")
    return project


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def test_it_runs_from_nothing_to_tables(undisturbed: Project) -> None:
    out = undisturbed.folder / "out" / "mini"
    measures = pd.read_csv(out / "results" / "mini-autoguidance" / "measures.csv")
    assert set(measures.metric) == {
        "fd_digits",
        "precision_digits",
        "recall_digits",
        "density_digits",
        "coverage_digits",
    }
    assert set(measures.block) == {"0-127", "128-255"}
    assert (measures.num_images == 128).all()
    assert measures.value.notna().all()
    assert (measures.guidance == 1.5).all()
    assert measures.main_sha256.str.len().eq(64).all()
    sweep = pd.read_csv(out / "results" / "mini-sweep" / "measures.csv")
    assert sorted(sweep.axis_value.unique()) == [0.1, 0.15]
    assert sorted(sweep.guide_ema.unique()) == [0.1, 0.15]
    assert (out / "report" / "report.html").stat().st_size > 1000
    assert "mini-autoguidance" in undisturbed.dvc("metrics", "show")
    assert "file://" in undisturbed.dvc("plots", "show")


def test_a_second_run_does_nothing(undisturbed: Project) -> None:
    assert stages_run(undisturbed.dvc("repro")) == set()


def test_what_it_runs_on_is_no_part_of_it(undisturbed: Project) -> None:
    (undisturbed.folder / "machine.yaml").write_text("launcher: torchrun --standalone --nproc-per-node=2\nworkers: 1\n")
    assert stages_run(undisturbed.dvc("repro")) == set()
    (undisturbed.folder / "machine.yaml").unlink()


def run_after(project: Project, change: Callable[[dict[str, Any]], None]) -> set[str]:
    """Stages that a change of the study makes necessary."""
    study = miniature()
    change(study)
    project.write(study)
    status = json.loads(project.dvc("status", "--json"))
    project.write(miniature())
    return set(status)


def test_what_decides_an_output_is_known(undisturbed: Project) -> None:
    """The stages that `dvc status` finds changed at once; what depends on them follows when they give other files."""
    keys = ("mini-unguided", "mini-autoguidance")
    assert run_after(undisturbed, lambda s: s["data"]["mini-digits"]["settings"].update(shift=0.1)) == {
        "data@mini-digits",
        "reference@mini-digits",
    }
    assert run_after(undisturbed, lambda s: s["data"]["mini-digits"]["reference"].update(num_images=512)) == {
        "reference@mini-digits"
    }
    assert run_after(undisturbed, lambda s: s["evaluate"].update(k=4)) == {
        *(f"evaluate@{key}" for key in keys),
        "sweep@mini-sweep",
    }
    assert run_after(undisturbed, lambda s: s["train"]["mini-main-run"]["config"].update(seed=5)) == {
        "train@mini-main-run"
    }


def test_other_numerics_are_made_again(undisturbed: Project, tmp_path: Path) -> None:
    versions = (undisturbed.folder / "repro").resolve() / "numerics.yaml"
    (undisturbed.folder / "repro").unlink()
    shutil.copytree(ROOT / "repro", undisturbed.folder / "repro", ignore=shutil.ignore_patterns("__pycache__"))
    copied = undisturbed.folder / "repro" / "numerics.yaml"
    copied.write_text(versions.read_text().replace("metrics: 1", "metrics: 2"))
    changed = set(json.loads(undisturbed.dvc("status", "--json")))
    shutil.rmtree(undisturbed.folder / "repro")
    (undisturbed.folder / "repro").symlink_to(ROOT / "repro")
    assert changed == {"evaluate@mini-unguided", "evaluate@mini-autoguidance", "sweep@mini-sweep"}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("  num_steps: 4\n->  num_step: 4\n", "unknown key sampler.num_step; did you mean 'num_steps'"),
        ("method: autoguidance\n->method: autoguidance\n    rule: linaer\n", "guidance rule 'linaer' is unknown"),
        ("study: mini\n->study: mini\nstudy: other\n", "duplicate"),
        ("study: mini\n->study: ..\n", ""),
    ],
)
def test_a_malformed_study_runs_no_stage(undisturbed: Project, mistake: str, message: str) -> None:
    """DVC or the first stage that it starts says what is wrong, and what is there stays."""
    params = undisturbed.folder / "params.yaml"
    sound, (before, after) = params.read_text(), mistake.split("->")
    assert before in sound
    images = undisturbed.digests("mini/samples/*/*.zip")
    params.write_text(sound.replace(before, after, 1))
    process = undisturbed.start("repro")
    said, _ = process.communicate(timeout=120)
    params.write_text(sound)
    assert process.returncode != 0
    assert message in said
    assert len(stages_run(said)) <= 1
    assert undisturbed.digests("mini/samples/*/*.zip") == images
    assert stages_run(undisturbed.dvc("repro")) == set()


def test_another_study_and_back_runs_nothing(undisturbed: Project) -> None:
    emptied = ("train", "reconstruct", "generate", "sweeps")
    other = miniature() | {"study": "other"} | {section: {} for section in emptied}
    other["data"] = {"other-digits": miniature()["data"]["mini-digits"]}
    undisturbed.write(other)
    assert stages_run(undisturbed.dvc("repro", "data")) == {"data@other-digits"}
    undisturbed.write(miniature())
    assert stages_run(undisturbed.dvc("repro")) == set()


def started_from(undisturbed: Project, folder: Path, *parts: str) -> Project:
    """A project in `folder` with some of the outputs."""
    project = Project(folder)
    for part in parts:
        shutil.copytree(undisturbed.folder / "out/mini" / part, project.folder / "out/mini" / part)
    return project


def test_killed_runs_resume_to_the_same_bits(undisturbed: Project, tmp_path: Path) -> None:
    project = started_from(undisturbed, tmp_path / "killed", "data", "references")
    out = project.folder / "out" / "mini"

    def kill(process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    # While the main network trains, once there is a checkpoint.
    process = project.start("repro", "train")
    wait_for(lambda: any(out.glob("networks/mini-main-run/checkpoint.pt")), process)
    kill(process)
    project.dvc("repro", "train")

    # While EMA networks are reconstructed.
    process = project.start("repro", "reconstruct")
    wait_for(lambda: any(out.glob("networks/mini-main/*.safetensors")), process)
    kill(process)
    project.dvc("repro", "reconstruct")
    assert project.digests("mini/networks/*/*.safetensors") == undisturbed.digests("mini/networks/*/*.safetensors")

    # While images are generated, once there is a shard.
    process = project.start("repro", "generate")
    wait_for(lambda: any(out.glob("samples/*/*.zip")), process)
    kill(process)
    first = {path: path.stat().st_mtime_ns for path in out.glob("samples/*/*.zip")}
    project.dvc("repro", "generate")
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert project.digests("mini/samples/*/*.zip") == undisturbed.digests("mini/samples/*/*.zip")

    # While features are extracted, and while a curve is measured: finished parts stay.
    for stage, part in (("features", "features/*/0*.npz"), ("sweep", "results/mini-sweep/points/*.csv")):
        process = project.start("repro", stage)
        wait_for(lambda pattern=part: any(out.glob(pattern)), process)
        kill(process)
        first = {path: path.stat().st_mtime_ns for path in out.glob(part)}
        project.dvc("repro", stage)
        assert {path: path.stat().st_mtime_ns for path in first} == first
    project.dvc("repro", "evaluate")
    assert project.digests("mini/results/*/measures.csv") == undisturbed.digests("mini/results/*/measures.csv")


def test_a_stage_that_outlives_dvc_and_the_next_run_make_one_set_of_shards(
    undisturbed: Project, tmp_path: Path
) -> None:
    project = started_from(undisturbed, tmp_path / "orphan", "data", "references", "networks")
    process = project.start("repro", "-s", "generate@mini-unguided")
    shards = project.folder / "out/mini/samples/mini-unguided"
    wait_for(lambda: any(shards.glob("*.zip")), process)
    process.kill()
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in shards.glob("*.zip")}
    project.dvc("repro", "-s", "generate@mini-unguided")
    assert {path: path.stat().st_mtime_ns for path in first} == first
    pattern = "mini/samples/mini-unguided/*.zip"
    assert project.digests(pattern) == undisturbed.digests(pattern)


def test_two_processes_make_identical_shards(undisturbed: Project, tmp_path: Path) -> None:
    project = started_from(undisturbed, tmp_path / "two", "data", "networks")
    launcher = "torchrun --standalone --nproc-per-node=2"
    subprocess.run(
        [sys.executable, "-m", "repro", "stage", "generate", "mini-autoguidance"],
        cwd=project.folder,
        env=project.environment | {"REPRO_LAUNCHER": launcher},
        check=True,
        capture_output=True,
        timeout=240,
    )
    pattern = "mini/samples/mini-autoguidance/*.zip"
    assert project.digests(pattern) == undisturbed.digests(pattern)
    assert len(project.digests(pattern)) == 4
