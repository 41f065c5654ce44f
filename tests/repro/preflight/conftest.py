"""A small study, in a folder of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from repro.preflight.checks import Setting
from repro.strict import build
from repro.study import Study
from tests.hostile import materials


def small_study(**changes: Any) -> Study:
    """Networks of 8 channels, trained and sampled on digits."""
    found: Study = build(Study, materials.study() | changes)
    return found


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The small study on a CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    return Setting(small_study(), torch.device("cpu"), 0)
