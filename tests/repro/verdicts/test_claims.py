"""Claims judged on seed blocks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import repro.study as studies
from metrics.files import InputError
from repro.report.tables import claims_view
from repro.study import Claim, Study, schema
from repro.verdicts import claims, measures
from tests.repro.fabricated import fabricate

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study that repeats claims on other training seeds, its images measured."""
    monkeypatch.setattr(schema, "OUT", tmp_path)
    study = studies.load(ROOT / "studies" / "training-seeds.yaml")
    fabricate(study, study.generate)
    return study


def test_claims_are_judged_block_against_block() -> None:
    low, near, high = (np.array([m - 1.0, m, m + 1.0]) for m in (5, 6, 9))
    verdict = claims.verdict
    assert verdict(high, low) == "holds"
    assert verdict(low, high) == "does not hold"
    assert verdict(-low, -high) == "holds"  # of values of which the lower are better
    assert verdict(-high, -low) == "does not hold"
    assert verdict(near, low) == "within the spread"
    assert verdict(low, low) == "does not hold"
    assert verdict(low, near, within=1.5) == "holds"
    assert verdict(low, near, within=0.5) == "does not hold"
    assert verdict(high, low, by=4.0) == "holds"
    assert verdict(high, low, by=4.5) == "does not hold"


def test_the_papers_claims_are_judged_once_per_training_seed(repeated: Study) -> None:
    judged = claims.table(claims.judge(repeated.claims, measures.read(repeated)))
    lowered = judged[judged["claim"] == "Autoguidance lowers FD_digits"]
    pairs = [(f"seeds-autoguidance-{i}", f"seeds-unguided-{i}") for i in (1, 2, 3)]
    assert list(zip(lowered["configuration"], lowered["against"], strict=True)) == pairs
    assert set(lowered["verdict"]) == {"holds"}
    assert "Autoguidance lowers FD_digits (seeds-autoguidance-2)" in [
        row[0].text for row in claims_view(judged[judged["verdict"] == "holds"]).rows
    ]
    toys = judged[judged["metric"] == "outliers"]
    assert list(toys["verdict"]) == ["not run"] * 3
    assert toys["reason"].iloc[0] == (
        "seeds-toy-1-autoguidance: nothing measured; seeds-toy-1-unguided: nothing measured"
    )


def test_a_users_claim_is_judged_by_the_same_rules(repeated: Study) -> None:
    pair = {"better": "seeds-autoguidance-1", "than": "seeds-unguided-1", "metric": "fd_digits"}
    wanted = [Claim(**pair), Claim(**pair, by=0.05), Claim(**pair, by=10.0), Claim(**pair, within=0.0)]  # type: ignore[arg-type]
    judged = claims.judge(wanted, measures.read(repeated))
    assert [row.verdict for row in judged] == ["holds", "holds", "does not hold", "holds"]
    assert [row.claim for row in judged] == [
        "seeds-autoguidance-1 beats seeds-unguided-1 in FD_digits",
        "seeds-autoguidance-1 beats seeds-unguided-1 in FD_digits by 0.05 or more",
        "seeds-autoguidance-1 beats seeds-unguided-1 in FD_digits by 10 or more",
        "seeds-autoguidance-1 is at most 0 worse than seeds-unguided-1 in FD_digits",
    ]


def test_what_is_no_number_decides_nothing(repeated: Study) -> None:
    found = measures.read(repeated).assign(value=float("nan"))
    judged = claims.judge(repeated.claims[-1:], found)
    assert judged[0].verdict == "not comparable"
    assert "not a number" in judged[0].reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "fd_digit"}, "did you mean 'fd_digits'"),
        ({"metric": "log_density"}, "no direction is better"),
        ({"by": 0.1, "within": 0.1}, "one of by and within"),
    ],
)
def test_claims_that_cannot_be_judged_are_refused(repeated: Study, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(repeated.claims[-3], **changes)
