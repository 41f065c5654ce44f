"""The default study with results made here, whole and half run."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import repro.study as studies
from repro.report import report
from repro.study import Study, schema
from repro.verdicts import measures
from tests.repro.fabricated import fabricate

ROOT = Path(__file__).parents[3]
HALF = ("digits-unguided", "digits-autoguidance", "digits-sweep-cfg")


@dataclass(frozen=True)
class Rendered:
    """A study whose report is written."""

    out: Path
    """Folder of all studies' outputs."""
    study: Study
    seconds: float
    """Of the processor, that the report took."""


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The default study, wholly run, with its report."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "OUT", out)
        study = studies.load(ROOT / "studies" / "default.yaml")
        fabricate(study, measures.entries(study))
        start = time.process_time()  # of all threads, whatever else the machine does
        report(study)
        return Rendered(out, study, time.process_time() - start)


@pytest.fixture
def default(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The default study with its report."""
    monkeypatch.setattr(schema, "OUT", rendered.out)
    return rendered.study


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The default study, half run."""
    monkeypatch.setattr(schema, "OUT", tmp_path / "out")
    study = studies.load(ROOT / "studies" / "default.yaml")
    fabricate(study, HALF)
    return study
