"""What can be tried, and settings that cannot be meant."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from metrics.files import InputError
from repro.search import SearchSettings
from repro.search.space import Candidate, Space
from repro.strict import load

WIDE = (0.01, 0.25)
SETTINGS = SearchSettings("0-255", ["256-511"], guidance_steps=(0.4, 0.2, 0.1), ema_steps=(0.04, 0.02, 0.01))


def test_neighbours_are_one_step_away_within_the_ranges() -> None:
    where = Space(SETTINGS, {"small": {5: (0.04, 0.1), 20: WIDE}, "main": {10: WIDE}}, (0.05, 0.25))
    found = where.neighbours(Candidate("small", 20, 1.0, 0.06, 0.12), level=1)
    assert found == [
        Candidate("small", 20, 1.2, 0.06, 0.12),
        Candidate("small", 20, 1.0, 0.05, 0.12),
        Candidate("small", 20, 1.0, 0.08, 0.12),
        Candidate("small", 20, 1.0, 0.06, 0.10),
        Candidate("small", 20, 1.0, 0.06, 0.14),
        Candidate("small", 5, 1.0, 0.06, 0.1),  # the longest EMA that this snapshot has
        Candidate("main", 10, 1.0, 0.06, 0.12),
    ]
    fixed = Space(SETTINGS, {"small": {5: WIDE}}, None)
    assert all(c.main_ema is None for c in fixed.neighbours(Candidate("small", 5, 1.5, None, 0.1), 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fresh": ["256-383"]}, "differ in length"),
        ({"fresh": ["128-383"]}, "overlap"),
        ({"fresh": []}, "fresh is empty"),
        ({"seeds": "0-6", "fresh": ["7-13"]}, "halved"),
        ({"rungs": 0}, "rungs is 0"),
        ({"images": 0}, "images is 0"),
        ({"guidance_steps": [0.1, 0.4, 0.2]}, "falling"),
        ({"ema_steps": [0.01]}, "as many"),
        ({"guidance": [3.0, 1.0]}, "guidance is [3.0, 1.0], expected 0 < least"),
        ({"guidance": [1.0]}, "guidance: expected 2 values, found 1"),
        ({"ema": [0.1, 0.5]}, "<= greatest <= 0.3"),
        ({"first_guidance": [9.0]}, "first_guidance"),
        ({"first_ema": 0.5}, "first_ema"),
        ({"wieght": 1}, "unknown key wieght"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = {"seeds": "0-255", "fresh": ["256-511"], "guidance_steps": [0.4, 0.2, 0.1], "ema_steps": [0.04, 0.02, 0.01]}
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given | change))
    with pytest.raises(InputError) as caught:
        load(SearchSettings, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
