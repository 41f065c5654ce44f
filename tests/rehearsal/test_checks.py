"""A rehearsal fails where a study is not whole, or where a meaningless number could be taken for a result."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from repro.report.write import report
from repro.rows import Row, write_rows
from repro.strict import build
from repro.study import Study
from repro.verdicts.published import verify
from tests.rehearsal import checks
from tests.rehearsal.checkout import FailedError
from tests.rehearsal.overlay import overlay
from tests.rehearsal.standin import DISTANCES

ROOT = Path(__file__).parents[2]
KEY = "imagenet64-s-autoguidance-fid"


class Done:
    """A checkout in which a study has run."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder = folder
        self.stages = study.ids() | {f"report@{study.study}", f"verify@{study.study}"}

    def finished(self) -> set[str]:
        return self.stages


@pytest.fixture(scope="module")
def study() -> Study:
    raw = yaml.safe_load((ROOT / "studies" / "imagenet64.yaml").read_text())
    return build(Study, overlay(raw, "http://127.0.0.1:1"))


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with measures made up under the stand-ins, and the real report and verdicts on them."""
    folder = tmp_path_factory.mktemp("finished")
    for key, item in study.generate.items():
        rows = [
            Row(study.study, key, item.method, block, metric, 100.0 + number, 8, main="m", detector=detector)
            for number, block in enumerate(item.seeds)
            for detector, metric in DISTANCES.items()
        ]
        write_rows(folder / study.out / "results" / key / "measures.csv", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report(study)
        verify(study, lambda line: None)
    return folder


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(path)).to_csv(path, index=False)


def row_lost(out: Path) -> None:
    edit(out / "results" / KEY / "measures.csv", lambda rows: rows.iloc[1:])


def value_lost(out: Path) -> None:
    edit(out / "results" / KEY / "measures.csv", lambda rows: rows.assign(value=float("nan")))


def called_fid(out: Path) -> None:
    edit(out / "results" / KEY / "measures.csv", lambda rows: rows.replace("fid_meaningless", "fid"))


def judged(out: Path) -> None:
    edit(out / "published.csv", lambda rows: rows.replace("not comparable", "better"))


def waived_judged(out: Path) -> None:
    edit(out / "published.csv", lambda rows: rows.replace("not possible", "not run"))


def cell_lost(out: Path) -> None:
    edit(out / "published.csv", lambda rows: rows[rows["configuration"] != KEY])


def claim_judged(out: Path) -> None:
    edit(out / "verdicts.csv", lambda rows: rows.assign(verdict="holds"))


def warning_lost(out: Path) -> None:
    path = out / "report" / "imagenet64-reference.md"
    path.write_text(path.read_text().replace("meaningless", ""))


def label_lost(out: Path) -> None:
    edit(out / "report" / "imagenet64-reference.csv", lambda rows: rows.replace("fid_meaningless", "fid"))


def table_lost(out: Path) -> None:
    (out / "report" / "table1.tex").unlink()


def metric_renamed(out: Path) -> None:
    path = out / "metrics.json"
    path.write_text(path.read_text().replace("fid_meaningless", "fid"))


DAMAGES = {
    row_lost: "5 rows of measures",
    value_lost: "not finite",
    called_fid: "measures",
    judged: "is 'better', expected 'not comparable'",
    waived_judged: "is 'not run', expected 'not possible",
    cell_lost: "verdicts on",
    claim_judged: "meaningless numbers decide",
    warning_lost: "does not say 'meaningless'",
    label_lost: "without a warning",
    table_lost: "was not written",
    metric_renamed: "fid without a warning",
}


def test_a_finished_rehearsal_passes(study: Study, finished: Path) -> None:
    checks.everything(Done(finished, study), study)


def test_a_stage_that_did_not_run_is_named(study: Study, finished: Path) -> None:
    checkout = Done(finished, study)
    checkout.stages.remove(f"evaluate@{KEY}")
    with pytest.raises(FailedError, match=f"evaluate@{KEY}.* did not run"):
        checks.everything(checkout, study)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found(study: Study, finished: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    damage(tmp_path / study.out)
    with pytest.raises(FailedError, match=DAMAGES[damage]):
        checks.everything(Done(tmp_path, study), study)


def test_a_network_that_is_fetched_twice_is_found() -> None:
    checks.served_once("/x", [None, "bytes=5-"], [("drop", 5)])
    with pytest.raises(FailedError, match="/x: was asked for 2 times, expected 1"):
        checks.served_once("/x", [None, None], [])
