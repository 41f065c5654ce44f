"""docs/own-model.md from nothing to a table and a claim: its module and its study, with few images, stage by stage."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from repro import __main__ as command_line
from repro import report
from repro import study as studies
from repro.pipeline.stages import STAGES
from repro.study import Study
from repro.verdicts import verify
from tests.repro.adapters.networks import saved, transformer, vae

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own-model.md").read_text()
(MODULE,) = re.findall(r"```python\n# mymodels\.py\n(.*?)```", PAGE, re.DOTALL)
(STUDY,) = re.findall(r"```yaml\n# studies/ours\.yaml\n(.*?)```", PAGE, re.DOTALL)


def few(whole: dict[str, Any]) -> dict[str, Any]:
    """The study with two blocks of 32 images in two steps, against few digits."""
    whole["data"]["ours-data"]["reference"] = {"num_images": 64, "classifier_steps": 2}
    whole |= {"sampler": {"num_steps": 2, "batch_size": 16}, "shards": {"size": 32}}
    for item in whole["generate"].values():
        item["seeds"] = ["0-31", "32-63"]
    return whole


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the module, weights, a pipeline, and the study as the active one."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        (folder / "mymodels.py").write_text(MODULE)
        namespace: dict[str, Any] = {}
        exec(MODULE, namespace)
        for seed, name in enumerate(("main", "early")):
            torch.manual_seed(seed)
            torch.save(namespace["Network"]().state_dict(), folder / f"{name}.pt")
        saved(folder / "dit", transformer(), diffusers.DDIMScheduler(clip_sample=False), vae())
        (folder / "params.yaml").write_text(yaml.safe_dump(few(yaml.safe_load(STUDY)), sort_keys=False))
        yield folder
        sys.modules.pop("mymodels", None)


@pytest.fixture(scope="module")
def study(place: Path) -> Study:
    """The study, run."""
    found = studies.load()
    ids = {"data": found.data, "reference": found.data, "models": found.models, "blends": found.blends}
    for stage, items in (ids | dict.fromkeys(("generate", "features", "evaluate"), found.generate)).items():
        for key in items:
            STAGES[stage](found, key)
    return found


def test_every_model_has_its_rows_and_the_claim_its_verdict(study: Study) -> None:
    report.report(study)
    table = pd.read_csv(study.out / "report" / "ours-data.csv").set_index("configuration")
    assert set(table.index) == set(study.generate)
    means = table.loc[table["metric"] == "fd_digits", "mean"]
    assert means.nunique() == len(means)  # no two are the same model
    assert (means > 0).all()
    assert table.loc["ours-eps-both", "weights"] == "1.75 + 1.25"
    assert table.loc["ours-dit-cfg", "guide_degradations"] == "null_class=1"
    shown = (study.out / "report" / "ours-data.md").read_text()
    assert "of each guide" in shown
    assert "1.75 + 1.25" in shown
    lines: list[str] = []
    verify(study, lines.append)
    verdicts = pd.read_csv(study.out / "verdicts.csv")
    assert list(verdicts["claim"]) == ["My guide lowers FD_digits"]
    assert not {"not run", "not comparable"} & set(verdicts["verdict"])


def test_its_levels_are_each_model_s_own(study: Study) -> None:
    solvers = {}
    for key in ("ours-eps-unguided", "ours-flow-unguided", "ours-native-unguided"):
        rows = pd.read_csv(study.out / "results" / key / "measures.csv")
        solvers[key] = rows["solver"].iloc[0]
    assert '"sigma_max": 157' in solvers["ours-eps-unguided"]
    assert "sigma_max" not in solvers["ours-flow-unguided"]  # EDM's
    assert "sigma_max" not in solvers["ours-native-unguided"]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m repro")]


@pytest.mark.parametrize("arguments", [a for a in commands() if a[0] in ("generate", "image")], ids=" ".join)
def test_its_commands_work(study: Study, place: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["--seeds", "0-1", "--steps", "2", "--batch-size", "2"] if arguments[0] == "generate" else []
    arguments = [word.replace("dit-xl-2-256/", "dit") for word in arguments]
    assert command_line.command_line.run(command_line.cli, "repro", [*arguments, *few]) == 0


def test_its_other_commands_are_there() -> None:
    others = [arguments for arguments in commands() if arguments[0] not in ("generate", "image")]
    assert [arguments[0] for arguments in others] == ["study", "report", "verify"]
    for name in {arguments[0] for arguments in others}:
        assert command_line.command_line.run(command_line.cli, "repro", [name, "--help"]) == 0
