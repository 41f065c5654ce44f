"""`repro guide` on tiny networks: what it leaves, what it repeats, what it refuses."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from metrics import features
from metrics.files import InputError
from repro import study as studies
from repro.search import SearchSettings, guide
from repro.strict import build, load
from tests.hostile import child

ROOT = Path(__file__).resolve().parents[3]
COMMAND = ["guide", "--main", "main-run", "--guide", "small-run", "--guide", "main-run", "--data", "mini-digits"]
COMMAND += ["--settings", "settings.yaml", "--out"]


def start(folder: Path, out: str, *launcher: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "repro", *COMMAND, out]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def whole(made: Path) -> Path:
    """The outputs of a search that nothing disturbed."""
    child.finish("repro", [*COMMAND, "whole"], made)
    return made / "whole"


def shards(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.glob("features/*/*.npz"))}


def sampled(folder: Path) -> int:
    """Images whose features are kept."""
    return sum(len(features.read(path).features["digits"]) for path in folder.glob("features/*/*.npz"))


def test_a_search_leaves_path_figure_summary_and_entries_for_a_study(made: Path, whole: Path) -> None:
    path, finalists = pd.read_csv(whole / "path.csv"), pd.read_csv(whole / "finalists.csv")
    assert set(path["metric"]) == {"fd_digits"}
    assert path["images"].is_monotonic_increasing
    assert path["main_sha256"].str.len().eq(64).all()
    assert set(path["guide"]) == {"small", "main"}
    assert finalists["mean"].is_monotonic_increasing
    assert path.loc[path["seeds"] == "32-63", "num_images"].eq(32).all()
    assert {"path.png", "path.svg", "study.yaml", "summary.md"} <= {p.name for p in whole.iterdir()}
    assert f"{path['images'].max():,} images" in (whole / "summary.md").read_text()
    study = yaml.safe_load((made / "params.yaml").read_text())
    entries = yaml.safe_load((whole / "study.yaml").read_text())
    for section in ("reconstruct", "generate"):
        study[section] |= entries[section]
    item = build(studies.Study, study).generate["best-autoguidance"]
    assert item.guided.guidance == finalists["guidance"][0]
    assert str(item.guided.guide).endswith(f"{finalists['guide_ema'][0]:.3f}.safetensors")


def test_images_on_record_are_those_that_were_sampled(whole: Path) -> None:
    assert pd.read_csv(whole / "path.csv")["images"].max() == sampled(whole)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_ends_with_the_same_path(made: Path, whole: Path) -> None:
    process = start(made, "killed")
    deadline = time.monotonic() + 60
    while len(shards(made / "killed")) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = shards(made / "killed")
    assert 4 <= len(before) < len(shards(whole))
    finish(start(made, "killed"))
    after = shards(made / "killed")
    assert {name: after[name] for name in before} == before, "nothing was sampled again"
    assert after.keys() == shards(whole).keys()
    assert (made / "killed" / "path.csv").read_bytes() == (whole / "path.csv").read_bytes()


@pytest.mark.slow
def test_two_processes_take_the_same_path(made: Path, whole: Path) -> None:
    finish(start(made, "shared", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"))
    for name in ("path.csv", "finalists.csv", "study.yaml"):
        assert (made / "shared" / name).read_bytes() == (whole / name).read_bytes()


def run_guide(made: Path, monkeypatch: pytest.MonkeyPatch, **change: Any) -> str:
    """The search of COMMAND within this process, with something else than what works."""
    monkeypatch.chdir(made)
    given = {"main": "main-run", "guides": ["small-run", "main-run"], "data": "mini-digits", "detector": "digits"}
    given |= {"folder": Path("refused")}
    settings = replace(
        load(SearchSettings, Path("settings.yaml")), **{k: v for k, v in change.items() if k not in given}
    )
    return guide(studies.load(), **given | {k: v for k, v in change.items() if k in given}, settings=settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"main": "mian-run"}, "did you mean 'main-run'"),
        ({"guides": ["small-run", "small-run"]}, "two runs have the name small"),
        (
            {"guides": ["out/mini/data/mini-digits"]},
            "expected the snapshots RUN-KIMG-STD of one training run, found none",
        ),
        ({"data": "digits"}, "neither a path nor an id of study mini"),
        ({"data": "mini-unmade"}, "with output; run `dvc repro` first"),
        ({"guides": ["settings.yaml"]}, "found none"),
        ({"detector": "inception"}, "inception"),
        ({"guides": ["small-run"], "guide_kimg": [3, 7]}, "no snapshot at 7 kimg; there are snapshots at [1, 2, 3, 4]"),
        ({"seeds": "4-35", "fresh": ["64-95"]}, "let blocks begin at multiples of 8"),
        ({"seeds": "7976-8007"}, "generate.mini-reported reports some of them"),
        ({"guide_kimg": [1], "ema": [0.2, 0.25], "first_ema": 0.2}, "keep snapshots more often"),
        ({"guides": ["main-run"], "guide_kimg": [4]}, "nothing earlier than the main network"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(
    made: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run_guide(made, monkeypatch, **change)
    assert message in str(caught.value)
    assert not (made / "refused").exists()


def test_a_damaged_shard_is_made_again_and_nothing_else_is(
    made: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, made / "damaged")
    before = shards(made / "damaged")
    name = next(iter(before))
    content = (whole / name).read_bytes()
    (made / "damaged" / name).write_bytes(content[:-400] + bytes(200) + content[-200:])
    run_guide(made, monkeypatch, folder=Path("damaged"))
    after = shards(made / "damaged")
    assert {changed for changed in after if after[changed] != before.get(changed)} == {name}
    found, expected = (features.read(folder / name).features["digits"] for folder in (made / "damaged", whole))
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)  # another process, perhaps of more threads


def test_a_shard_of_another_configuration_is_refused(made: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, made / "mixed")
    first, second = sorted((made / "mixed" / "features").iterdir())[:2]
    shutil.copy(next(first.glob("000000-*.npz")), second)
    with pytest.raises(InputError, match="made from another configuration"):
        run_guide(made, monkeypatch, folder=Path("mixed"))


def test_a_fixed_main_network_has_no_ema_to_search(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = "out/mini/networks/main-run/main-0000004-0.050.safetensors"
    summary = run_guide(made, monkeypatch, main=main, guides=["small-run"], folder=Path("fixed"))
    assert "main EMA" not in summary
    assert set(pd.read_csv("fixed/path.csv")["main"]) == {Path(main).name}
    entry = yaml.safe_load(Path("fixed/study.yaml").read_text())["generate"]["best-autoguidance"]
    assert entry["main"] == f"main-run/{Path(main).name}"


def test_weight_one_is_the_same_for_every_guide(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_guide(made, monkeypatch, guidance=[1.0, 1.0], first_guidance=[1.0], folder=Path("unguided"))
    path = pd.read_csv("unguided/path.csv")
    assert path.groupby(["seeds", "main_ema"])["value"].nunique().eq(1).all()
    assert path["guide_sha256"].isna().all()
    assert path["images"].max() == sampled(Path("unguided"))
