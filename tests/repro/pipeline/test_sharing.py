"""What one lab runs and pushes another one pulls, verifies, measures again and compares, without images."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.repro.pipeline.test_pipeline import ROOT, Project, miniature, stages_run

pytestmark = pytest.mark.slow
CONFIGURATIONS = ("mini-unguided", "mini-autoguidance")


class Lab(Project):
    """The miniature study under git, with the project's settings of DVC's cache."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
        for name in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{name}_NAME": "lab", f"GIT_{name}_EMAIL": "lab@localhost"}
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
        (folder / ".gitignore").write_text("/out/\n/.dvc/cache\n/.dvc/tmp\n")
        self.run("git", "init", "-q", "-b", "main")

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, *arguments: str) -> set[str]:
        return stages_run(self.run("dvc", "repro", *arguments))

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "-q", "-m", message)

    def changed(self, **evaluate: Any) -> None:
        """Write the study with other settings of the evaluation."""
        study = miniature()
        study["evaluate"] |= evaluate
        self.write(study)

    def measures(self, key: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "out" / "mini" / "results" / key / "measures.csv")


def used(*folders: Path) -> int:
    """Bytes on the disk; a file of several names counts once."""
    files = {(s.st_dev, s.st_ino): s.st_size for f in folders for p in f.rglob("*") if p.is_file() for s in [p.stat()]}
    return sum(files.values())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """It ran the study, published and pushed."""
    folder = tmp_path_factory.mktemp("sharing")
    lab = Lab(folder / "lab")
    (folder / "remote").mkdir()
    lab.run("dvc", "repro")
    lab.run("python", "-m", "repro", "report", "--publish")
    lab.run("dvc", "checkout", "--relink")
    lab.run("dvc", "remote", "add", "-q", "-d", "lab", str(folder / "remote"))
    lab.commit("first")
    lab.run("dvc", "push")
    return lab


@pytest.fixture
def clone(lab: Lab, tmp_path: Path) -> Lab:
    """Another lab, which pulled; nothing of its disk is shared with the first."""
    clone = Lab.__new__(Lab)
    clone.folder, clone.environment = tmp_path / "clone", lab.environment
    subprocess.run(["git", "clone", "-q", lab.folder, clone.folder], check=True, env=lab.environment)
    clone.run("dvc", "pull", "--allow-missing")
    return clone


def test_nothing_lies_on_the_disk_twice(lab: Lab) -> None:
    out, cache = lab.folder / "out", lab.folder / ".dvc" / "cache"
    assert used(out, cache) <= 1.05 * used(out)


def test_a_pulled_clone_is_up_to_date_and_verifies(lab: Lab, clone: Lab) -> None:
    assert not [*clone.folder.glob("out/mini/samples/*/*.zip"), *clone.folder.rglob("checkpoint.pt")]
    assert clone.repro("--allow-missing") == set()
    assert clone.digests("mini/results/*/measures.csv") == lab.digests("mini/results/*/measures.csv")
    verdicts = [found.run("python", "-m", "repro", "verify", "--strict") for found in (lab, clone)]
    assert verdicts[0] == verdicts[1]


def test_nothing_is_sampled_unasked(clone: Lab) -> None:
    """Plain `dvc repro` misses the images, and says how to go on without."""
    said = clone.run("dvc", "repro", code=255)
    assert "dvc repro --allow-missing" in said
    assert not [*clone.folder.glob("out/mini/samples/*/*.zip")]
    assert clone.repro("--allow-missing") == set()


def test_a_deleted_result_comes_back_and_nothing_is_reported_without_it(lab: Lab, clone: Lab) -> None:
    result = clone.folder / "out" / "mini" / "results" / "mini-unguided"
    shutil.rmtree(result)
    for command in ("report", "verify"):
        said = clone.run("python", "-m", "repro", command, code=2)
        assert "mini-unguided/measures.csv is not there" in said
    assert "evaluate@mini-unguided" in said
    assert "not run" in clone.run("python", "-m", "repro", "report", "--partial")
    clone.run("dvc", "repro", "--allow-missing", code=255)
    clone.run("dvc", "checkout", "--allow-missing")
    assert clone.digests("mini/results/*/measures.csv") == lab.digests("mini/results/*/measures.csv")
    shutil.rmtree(result)
    shutil.rmtree(clone.folder / ".dvc" / "cache")
    assert clone.repro("-s", "evaluate@mini-unguided") == {"evaluate@mini-unguided"}
    again, before = (found.measures("mini-unguided").drop(columns="commit") for found in (clone, lab))
    pd.testing.assert_frame_equal(again, before)
    assert clone.repro("--allow-missing") <= {"report@mini", "verify@mini"}  # the rows name another commit


def test_another_k_measures_kept_features_again(lab: Lab, clone: Lab) -> None:
    clone.changed(k=4)
    assert clone.repro("--allow-missing", "evaluate") == {f"evaluate@{key}" for key in CONFIGURATIONS}
    ours, theirs = (found.measures("mini-unguided").set_index(["metric", "block"])["value"] for found in (clone, lab))
    assert set((ours != theirs)[lambda differs: differs].index.get_level_values("metric")) == {
        "precision_digits",
        "recall_digits",
    }


def test_what_it_runs_on_and_what_it_runs_with(clone: Lab) -> None:
    (clone.folder / "machine.yaml").write_text("launcher: torchrun --standalone --nproc-per-node=2\n")
    assert clone.repro("--allow-missing") == set()
    study = miniature()
    study["data"]["mini-digits"]["settings"]["shift"] = 0.1
    clone.write(study)
    changed = set(json.loads(clone.run("dvc", "status", "--json", "data", "reference")))
    assert {"data@mini-digits", "reference@mini-digits"} == changed


def test_commits_and_experiments_are_compared(lab: Lab) -> None:
    """The last test: it changes what the lab has committed."""
    key, column = "mini-autoguidance", "mini-autoguidance.fd_digits"
    theirs = {f"{name}@{key}" for name in ("generate", "features", "evaluate")} | {"report@mini", "verify@mini"}
    before = distance(lab.measures(key))
    study = miniature()
    study["generate"][key]["guidance"] = 2.0
    lab.write(study)
    assert lab.repro() == theirs
    lab.run("python", "-m", "repro", "report", "--publish")
    lab.commit("another weight")
    change = json.loads(lab.run("dvc", "metrics", "diff", "HEAD~1", "--json"))["results/mini/metrics.json"][column]
    assert (change["old"], change["new"]) == (before, distance(lab.measures(key)))

    for name, weight in (("more", 3), ("most", 4)):
        said = lab.run("dvc", "exp", "run", "-n", name, "-S", f"generate.{key}.guidance={weight}")
        assert stages_run(said) == theirs
    shown = pd.read_csv(io.StringIO(lab.run("dvc", "exp", "show", "--csv")))
    values = shown.set_index(shown["Experiment"].fillna(shown["rev"]))[f"out/mini/metrics.json:{column}"]
    assert values["most"] == pytest.approx(distance(lab.measures(key)))
    assert len({values["main"], values["more"], values["most"]}) == 3
    difference = json.loads(lab.run("dvc", "exp", "diff", "more", "most", "--json"))["metrics"]["out/mini/metrics.json"]
    assert difference[column]["diff"] == pytest.approx(values["most"] - values["more"])


def distance(measures: pd.DataFrame) -> float:
    return float(measures[measures.metric == "fd_digits"].value.mean())
