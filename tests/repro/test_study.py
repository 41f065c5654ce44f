"""Studies: strict reading, messages, swapping."""

from pathlib import Path

import pytest
import yaml

from metrics.files import InputError
from repro import study as studies

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "studies" / "default.yaml"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two studies and an active one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    text = DEFAULT.read_text()
    (tmp_path / "studies" / "default.yaml").write_text(text)
    (tmp_path / "studies" / "other.yaml").write_text(
        text.replace("study: default", "study: other")
        .replace("digits", "other")
        .replace("kind: other", "kind: digits")
        .replace("  toy: {}", "  other-toy: {}")
    )
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def changed(path: Path, edit: str, value: object) -> Path:
    """`path` rewritten with the dotted key `edit` set to `value` (removed where it is None)."""
    raw = yaml.safe_load(DEFAULT.read_text())
    *parents, last = edit.split(".")
    item = raw
    for key in parents:
        item = item[key]
    if value is None:
        del item[last]
    else:
        item[last] = value
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_active_study_is_a_copy_of_the_default() -> None:
    assert (ROOT / "params.yaml").read_text() == DEFAULT.read_text()


@pytest.mark.parametrize(
    ("edit", "value", "message"),
    [
        ("launchre", "python", "unknown key launchre; did you mean 'launcher'"),
        ("launcher", None, "missing key launcher"),
        ("sampler.num_steps", "many", "sampler.num_steps: expected int, found 'many'"),
        ("sampler.num_steps", 0, "num_steps is 0, expected more than 0"),
        ("sampler.num_steps", True, "sampler.num_steps: expected int, found True"),
        ("generate.digits-cfg.data", "digit", "did you mean 'digits'"),
        ("generate.digits-cfg.seeds", ["9-3"], "the last seed comes before the first"),
        ("generate.digits-cfg.interval", [7, 3], "expected [first, last]"),
        ("generate.digits-unguided.guidance", 2.0, "does nothing"),
        ("generate.digits-cfg.main_corruption", {"blur": 0.1}, "expected dropout or input_noise"),
        ("generate.Digits.cfg", {}, "unknown"),
        ("reconstruct.digits-main.source", "digits-man-run", "did you mean 'digits-main-run'"),
        ("sweeps.digits-sweep-cfg.axis", "weight", "expected guidance, main_ema or guide_ema"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, edit: str, value: object, message: str) -> None:
    if edit == "generate.Digits.cfg":
        raw = yaml.safe_load(DEFAULT.read_text())
        raw["generate"]["digits.cfg"] = raw["generate"]["digits-cfg"]
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(raw))
        message = "no dots"
    else:
        path = changed(tmp_path / "study.yaml", edit, value)
    with pytest.raises(InputError) as caught:
        studies.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such study file"):
        studies.load(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not valid YAML"):
        studies.load(tmp_path / "broken.yaml")


def test_use_swaps_the_study_and_says_what_changes(project: Path) -> None:
    changes = studies.use("other")
    assert studies.load().study == "other"
    assert "+ generate@other-cfg" in changes
    assert "- generate@digits-cfg" in changes


def test_use_refuses_to_lose_hand_edits(project: Path) -> None:
    edited = studies.PARAMS.read_text() + "# mine\n"
    studies.PARAMS.write_text(edited)
    with pytest.raises(InputError, match="--force"):
        studies.use("other")
    assert studies.PARAMS.read_text() == edited
    studies.use("other", force=True)
    assert studies.load().study == "other"


def test_use_refuses_studies_that_would_overwrite_each_other(project: Path) -> None:
    twin = DEFAULT.read_text().replace("study: default", "study: twin")
    (project / "studies" / "twin.yaml").write_text(twin)
    with pytest.raises(InputError, match="ids must carry their study"):
        studies.use("twin")


def test_use_names_the_nearest_study(project: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'default'"):
        studies.use("defualt")


def test_seeds_are_inclusive_ranges() -> None:
    assert studies.parse_seeds("3-5") == range(3, 6)
    assert studies.parse_seeds("7") == range(7, 8)
    with pytest.raises(InputError, match="expected first-last"):
        studies.parse_seeds("3:5")
