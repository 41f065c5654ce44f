"""Claims judged on seed blocks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

import repro.study as studies
from metrics.files import InputError
from repro.report import report
from repro.report.tables import claims_view, order_rows, order_view
from repro.rows import REAL, WHOLE
from repro.study import Claim, Study, schema
from repro.study.schema import Ranked
from repro.verdicts import claims, measures, paired
from tests.repro.fabricated import fabricate

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study that repeats claims on other training seeds, its images measured."""
    monkeypatch.setattr(schema, "OUT", tmp_path)
    study = studies.load(ROOT / "studies" / "training-seeds.yaml")
    fabricate(study, study.sampled)
    return study


def replicates(key: str, whole: float, error: float, seed: int, metric: str = "fd_digits") -> pd.DataFrame:
    """Of a configuration of 16 groups, whose jackknife error is exactly `error`."""
    noise = np.random.default_rng(seed).standard_normal(16)
    noise = (noise - noise.mean()) / np.sqrt(15 / 16 * np.square(noise - noise.mean()).sum()) * error
    names = [WHOLE, *(f"{i}-{i}" for i in range(16))]
    made = {"configuration": key, "metric": metric, "left_out": names, "num_images": 3072}
    return pd.DataFrame(made | {"value": [whole, *(whole + noise)]})


def rows(key: str, value: float, blocks: int = 3, count: int = 1024, metric: str = "fd_digits") -> pd.DataFrame:
    block = [str(i) for i in range(blocks)]
    return pd.DataFrame({"configuration": key, "metric": metric, "block": block, "num_images": count, "value": value})


def judged(ours: float, error: float = 0.01, **claim: Any) -> claims.Verdict:
    """Of `a` against `b` at 0.5, whose own errors are large and common to both."""
    common = replicates("", 0, 1.0, 1)["value"]
    a, b = replicates("a", ours, error, 2), replicates("b", 0.5, 0.0, 3)
    both = pd.concat([side.assign(value=side["value"] + common) for side in (a, b)])
    found = pd.concat([rows("a", ours), rows("b", 0.5)])
    (verdict,) = claims.judge([Claim("a", "b", "fd_digits", **claim)], found, both)
    return verdict


@pytest.mark.parametrize(
    ("ours", "claim", "expected"),
    [
        (0.45, {}, "holds"),
        (0.55, {}, "does not hold"),
        (0.49, {}, "undecided"),
        (0.45, {"by": 0.02}, "holds"),
        (0.45, {"by": 0.04}, "undecided"),
        (0.45, {"by": 0.08}, "does not hold"),
        (0.51, {"within": 0.05}, "holds"),
        (0.54, {"within": 0.05}, "undecided"),
        (0.58, {"within": 0.05}, "does not hold"),
    ],
)
def test_a_claim_is_decided_by_the_difference_paired_by_seed(ours: float, claim: Any, expected: str) -> None:
    """The values' own errors are a hundred times that of the difference."""
    verdict = judged(ours, **claim)
    assert verdict.verdict == expected
    assert verdict.difference == pytest.approx(ours - 0.5)
    assert verdict.standard_error == pytest.approx(0.01)
    half = t.ppf(0.975, 15) * 0.01
    assert (verdict.low, verdict.high) == pytest.approx((ours - 0.5 - half, ours - 0.5 + half))
    assert ("images might decide it" in verdict.reason) == (expected == "undecided")


def test_the_number_of_images_that_would_decide_is_told() -> None:
    """At four times the images the error is half as large."""
    least = float(t.ppf(0.975, 15)) * 0.01
    assert f"{3072 * 4:,.2g} images" in judged(0.5 - least / 2).reason


def test_claims_share_a_level() -> None:
    """Holm, against a direct computation; one alone would be decided."""
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([]) == []
    gap = float(t.ppf(1 - 0.02 / 2, 15)) * 0.01  # p = 0.02
    found = pd.concat([rows("a", 0.5 - gap), rows("b", 0.5)])
    both = pd.concat([replicates("a", 0.5 - gap, 0.01, 2), replicates("b", 0.5, 0.0, 3)])
    claim = Claim("a", "b", "fd_digits")
    assert [v.verdict for v in claims.judge([claim], found, both)] == ["holds"]
    verdicts = claims.judge([claim] * 3, found, both)
    assert [v.verdict for v in verdicts] == ["undecided"] * 3
    needed = 3072 * (t.ppf(1 - 0.05 / 3 / 2, 15) / t.ppf(1 - 0.02 / 2, 15)) ** 2  # more than there are
    assert all(v.reason == f"{needed:,.2g} images might decide it" for v in verdicts)


@pytest.mark.parametrize(("blocks", "count"), [(1, 4096), (3, 256)])
def test_little_decides_nothing(blocks: int, count: int) -> None:
    found = pd.concat([rows("a", 0.1, blocks, count), rows("b", 0.5, blocks, count)])
    both = pd.concat([replicates("a", 0.1, 0.001, 2), replicates("b", 0.5, 0.0, 3)])
    (verdict,) = claims.judge([Claim("a", "b", "fd_digits")], found, both)
    assert verdict.verdict == "undecided"
    assert "expected 1,024 in 2 or more" in verdict.reason


def over_seeds(differences: list[float], **claim: Any) -> claims.Verdict:
    """Of `a1`, `a2`, ... against `b1`, `b2`, ..., these at 0.5, whose sampling errors are large."""
    ours = {f"a{i}": 0.5 + value for i, value in enumerate(differences)}
    theirs = {f"b{i}": 0.5 for i in range(len(differences))}
    values = ours | theirs
    found = pd.concat([rows(key, value) for key, value in values.items()])
    both = pd.concat([replicates(key, value, 0.5, place) for place, (key, value) in enumerate(values.items())])
    (verdict,) = claims.judge([Claim([*ours], [*theirs], "fd_digits", **claim)], found, both)
    return verdict


@pytest.mark.parametrize(
    ("differences", "claim", "p", "expected"),
    [
        ([-0.19, -0.20, -0.21], {}, 0.000832, "holds"),
        ([0.19, 0.20, 0.21], {}, 0.000832, "does not hold"),
        ([-0.1, -0.2, -0.3], {}, 0.0742, "undecided"),
        ([-0.19, -0.20, -0.21], {"by": 0.19}, 0.2254, "undecided"),
    ],
)
def test_a_claim_about_training_seeds_is_judged_by_the_spread_of_their_differences(
    differences: list[float], claim: Any, p: float, expected: str
) -> None:
    """By hand: the mean is 0.2 and its error s / sqrt(3), with s 0.01 or 0.1; t(0.975, 2) = 4.3027, and of two degrees
    of freedom p = 1 - |t| / sqrt(2 + t^2)."""
    verdict, spread = over_seeds(differences, **claim), abs(differences[1] - differences[0])
    error, mean = spread / 3**0.5, differences[1]
    assert verdict.verdict == expected
    assert (verdict.difference, verdict.standard_error) == pytest.approx((mean, error))
    assert (verdict.low, verdict.high) == pytest.approx((mean - 4.3027 * error, mean + 4.3027 * error), abs=1e-5)
    away = abs(mean + claim.get("by", 0)) / error
    assert verdict.p == pytest.approx(1 - away / (2 + away**2) ** 0.5)
    assert verdict.p == pytest.approx(p, rel=1e-2)
    assert ("training seeds might decide it" in verdict.reason) == (expected == "undecided")
    assert (verdict.configuration, verdict.against) == ("a0, a1, a2", "b0, b1, b2")
    assert verdict.claim.startswith("a0, a1, a2 beats b0, b1, b2 in FD_digits")
    assert verdict.claim.endswith("over 3 training seeds")


def test_a_claim_about_training_seeds_needs_all_of_them() -> None:
    found = pd.concat([rows("a", 0.1), rows("b", 0.5)])
    both = pd.concat([replicates("a", 0.1, 0.001, 2), replicates("b", 0.5, 0.0, 3)])
    (verdict,) = claims.judge([Claim(["a", "c"], ["b", "d"], "fd_digits")], found, both)
    assert (verdict.verdict, verdict.reason) == ("not run", "c: nothing measured; d: nothing measured")
    assert verdict.difference is None


def test_other_seeds_are_no_pairs() -> None:
    found = pd.concat([rows("a", 0.1), rows("b", 0.5)])
    a, b = replicates("a", 0.1, 0.001, 2), replicates("b", 0.5, 0.0, 3)
    other = b.assign(left_out=b["left_out"].replace("3-3", "99-99"))
    (verdict,) = claims.judge([Claim("a", "b", "fd_digits")], found, pd.concat([a, other]))
    assert (verdict.verdict, verdict.reason) == ("not comparable", "not of the same seeds")


@pytest.mark.parametrize(("limit", "expected"), [(0.3, "holds"), (0.505, "undecided"), (0.6, "does not hold")])
def test_distances_are_judged_at_infinitely_many_images(limit: float, expected: str) -> None:
    """Where that is known; the difference that was measured stands beside."""
    found = pd.concat([rows("a", 0.1), rows("b", 0.5)])
    measured = [replicates("a", 0.1, 0.001, 2), replicates("b", 0.5, 0.0, 3)]
    limits = [("a", limit, 0.01, 2), ("b", 0.5, 0.0, 3)]
    both = [*measured, *(replicates(*of, metric="fd_digits_infinity") for of in limits)]
    (verdict,) = claims.judge([Claim("a", "b", "fd_digits")], found, pd.concat(both))
    assert verdict.verdict == expected
    assert verdict.difference == pytest.approx(-0.4)
    assert (verdict.limit, verdict.limit_error) == pytest.approx((limit - 0.5, 0.01))


def test_nothing_can_be_claimed_of_a_broken_network(repeated: Study) -> None:
    found = measures.replicates(repeated)
    key = "seeds-unguided-1"
    real = found[(found["configuration"] == key) & (found["left_out"] == WHOLE)]
    real = real[real["metric"] == "fd_digits"]
    assert measures.broken(repeated, pd.concat([found, real.assign(left_out=REAL)])) == {}
    broken = measures.broken(repeated, pd.concat([found, real.assign(left_out=REAL, value=real["value"] / 50)]))
    assert key in broken
    assert "seeds-autoguidance-1" in broken
    assert "seeds-autoguidance-2" not in broken
    judged = claims.judge(repeated.claims, measures.read(repeated), found, broken)
    about = [v for v in judged if v.configuration == "seeds-autoguidance-1"]
    assert {v.verdict for v in about} == {"not meaningful"}
    assert "50 times as far from the data as real images" in about[0].reason


def test_the_papers_claims_are_judged_once_per_training_seed(repeated: Study) -> None:
    judged = claims.table(claims.judge(repeated.claims, measures.read(repeated), measures.replicates(repeated)))
    lowered = judged[judged["claim"] == "Autoguidance lowers FD_digits"]
    pairs = [(f"seeds-autoguidance-{i}", f"seeds-unguided-{i}") for i in (1, 2, 3)]
    assert list(zip(lowered["configuration"], lowered["against"], strict=True)) == pairs
    assert set(lowered["verdict"]) == {"holds"}
    assert "Autoguidance lowers FD_digits (seeds-autoguidance-2)" in [
        row[0].text for row in claims_view(judged[judged["verdict"] == "holds"]).rows
    ]
    whole = judged[judged["claim"] == "Autoguidance lowers FID, over 3 training seeds"]
    assert list(whole["configuration"]) == ["seeds-autoguidance-1, seeds-autoguidance-2, seeds-autoguidance-3"]
    assert len(judged) == len({*zip(judged["claim"], judged["configuration"], strict=True)})
    toys = judged[judged["metric"] == "outliers"]
    assert list(toys["verdict"]) == ["not run"] * 3
    assert toys["reason"].iloc[0] == (
        "seeds-toy-1-autoguidance: nothing measured; seeds-toy-1-unguided: nothing measured"
    )


def test_the_order_of_methods_is_set_beside_the_paper_s(repeated: Study) -> None:
    """By hand, of the values that `fabricated` gives each method, far apart; one configuration has none."""
    found = measures.read(repeated)
    summary = measures.summarise(repeated, found[found["configuration"] != "seeds-cfg-2"])
    assert repeated.order is not None
    view = order_view(order_rows(repeated.order, summary))
    assert [column.label for column in view.columns] == [
        "method",
        "in the paper",
        *(f"training seed {i}" for i in (1, 2, 3)),
    ]
    assert [(row[0].text, row[1].text) for row in view.rows] == [
        *(("autoguidance", "1.34 (1)"), ("reduced training only", "1.51 (2)")),
        *(("reduced capacity only", "2.13 (3)"), ("CFG", "2.23 (4)"), ("no guidance", "2.56 (5)")),
    ]
    places = [[cell.text.split()[-1] for cell in row[2:]] for row in view.rows]
    assert [row[0] for row in places] == ["(1)", "(2)", "(4)", "(3)", "(5)"]
    assert [row[1] for row in places] == ["(1)", "(2)", "(3)", "–", "(4)"]
    folder = report(repeated, partial=True)
    assert "FID ↓ training seed 3" in (folder / "order.md").read_text()
    assert repeated.order.source in (folder / "report.html").read_text()


def test_the_published_values_of_the_order_are_the_paper_s(repeated: Study) -> None:
    table = pd.read_csv(ROOT / "tests/data/published/table1.csv").set_index(["resolution", "row"])["fid"]
    ours = {"autoguidance": "+autoguidance(xs;T/16)", "cfg": "+cfg", "unguided": ""}
    ours |= {f"reduced {what} only": f"+autoguidance-reduce-{what}-only" for what in ("training", "capacity")}
    assert repeated.order is not None
    assert {name: item.published for name, item in repeated.order.methods.items()} == {
        name: table[512, f"edm2-s{row}"] for name, row in ours.items()
    }


def test_methods_that_cannot_be_ordered_are_refused(repeated: Study) -> None:
    order, one = repeated.order, Ranked(1.0, ["seeds-unguided-1"])
    assert order is not None
    with pytest.raises(InputError, match="as many configurations of each"):
        replace(order, methods=order.methods | {"other": one})
    with pytest.raises(InputError, match="no direction is better"):
        replace(order, metric="log_density")
    with pytest.raises(InputError, match=r"order.methods.cfg.here: 'seeds-cgf-1' .* did you mean 'seeds-cfg-1'"):
        replace(repeated, order=replace(order, methods={"cfg": Ranked(1.0, ["seeds-cgf-1"])}))


def test_a_users_claim_is_judged_by_the_same_rules(repeated: Study) -> None:
    pair = {"better": "seeds-autoguidance-1", "than": "seeds-unguided-1", "metric": "fd_digits"}
    wanted = [Claim(**pair), Claim(**pair, by=0.05), Claim(**pair, by=10.0), Claim(**pair, within=0.0)]  # type: ignore[arg-type]
    judged = claims.judge(wanted, measures.read(repeated), measures.replicates(repeated))
    assert [row.verdict for row in judged] == ["holds", "holds", "does not hold", "holds"]
    assert [row.claim for row in judged] == [
        "seeds-autoguidance-1 beats seeds-unguided-1 in FD_digits",
        "seeds-autoguidance-1 beats seeds-unguided-1 in FD_digits by 0.05 or more",
        "seeds-autoguidance-1 beats seeds-unguided-1 in FD_digits by 10 or more",
        "seeds-autoguidance-1 is at most 0 worse than seeds-unguided-1 in FD_digits",
    ]


def test_what_is_no_number_decides_nothing(repeated: Study) -> None:
    found = measures.read(repeated).assign(value=float("nan"))
    judged = claims.judge(repeated.claims[-1:], found, measures.replicates(repeated))
    assert judged[0].verdict == "not comparable"
    assert "not a number" in judged[0].reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "fd_digit"}, "did you mean 'fd_digits'"),
        ({"metric": "log_density"}, "no direction is better"),
        ({"by": 0.1, "within": 0.1}, "one of by and within"),
        ({"better": ["a", "b"]}, "lists of the same length"),
        ({"better": ["a", "b"], "than": ["c"]}, "lists of the same length"),
        ({"better": ["a"], "than": ["c"]}, "two or more different ids"),
        ({"better": ["a", "a"], "than": ["c", "d"]}, "two or more different ids"),
    ],
)
def test_claims_that_cannot_be_judged_are_refused(repeated: Study, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(repeated.claims[-3], **changes)
