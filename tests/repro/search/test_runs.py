"""Training runs as a search sees them."""

from dataclasses import replace
from pathlib import Path

import pytest

from repro import study as studies
from repro.search import SearchSettings
from repro.search.runs import Networks
from repro.strict import load


def test_guides_are_halvings_of_the_training_and_never_the_main_network_itself(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    settings = replace(load(SearchSettings, Path("settings.yaml")), guide_kimg=None)
    for main in ("main-run", str(made / "out/mini/networks/main-run")):
        networks = Networks(studies.load(), main, ["small-run", "main-run"], Path("networks"))
        times = networks.space(settings).guides
        assert {run: list(found) for run, found in times.items()} == {"small": [1, 2, 4], "main": [1, 2]}
