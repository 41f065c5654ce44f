"""Studies: strict reading, messages, swapping."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from metrics.files import InputError
from repro import __main__ as command_line
from repro import study as studies
from repro.pipeline import looking

ROOT = Path(__file__).resolve().parents[3]
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
        .replace("digits-", "other-")
        .replace("  digits:", "  other:")
        .replace("data: digits", "data: other")
        .replace("toy-", "other-toy-")
        .replace("  toy: {}", "  other-toy: {}")
        .replace("  digits:", "  other:")
        .replace("data: digits", "data: other")
    )
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def edited(edit: str, value: object) -> dict[str, Any]:
    """The default study with the key `edit` (parts joined by /) set to `value`, or removed where it is None."""
    raw = yaml.safe_load(DEFAULT.read_text())
    *parents, last = edit.split("/")
    item = raw
    for key in parents:
        item = item[key]
    if value is None:
        del item[last]
    else:
        item[last] = value
    return raw


def test_the_active_study_is_a_copy_of_the_default() -> None:
    assert (ROOT / "params.yaml").read_text() == DEFAULT.read_text()


MISTAKES = [
    ("sampelr", {}, "unknown key sampelr; did you mean 'sampler'"),
    ("sweeps", None, "missing key sweeps"),
    ("launcher", "python", "set it in machine.yaml"),
    ("study", "..", "study is '..', expected a plain id"),
    ("study", "", "study is '', expected a plain id"),
    ("study", "/tmp/x", "expected a plain id"),
    ("sampler/num_steps", "many", "sampler.num_steps: expected int, found 'many'"),
    ("sampler/num_steps", 0, "num_steps is 0, expected a finite number above 0"),
    ("sampler/num_steps", True, "sampler.num_steps: expected int, found True"),
    ("sampler/shard_size", 1000, "unknown key sampler.shard_size"),
    ("shards/size", -1, "size is -1"),
    ("evaluate/metrics", ["fd", "precision_recal"], "did you mean 'precision_recall'"),
    ("evaluate/metrics", ["fd", "authpct"], "metric 'authpct' compares with further sets"),
    ("evaluate/detectors", ["digit"], "detector 'digit' is unknown; did you mean 'digits'"),
    ("evaluate/num_real", 0, "num_real is 0"),
    ("toy/toy", {"training": {"sede": 1}}, "unknown key toy.toy.training.sede; did you mean 'seed'"),
    ("data/digits/kind", "digit", "kind of data 'digit' is unknown; did you mean 'digits'"),
    ("data/digits/settings", {"rotatoin": 1.0}, "data.digits: unknown key settings.rotatoin; did you mean 'rotation'"),
    ("data/digits/reference", {"num_image": 9}, "unknown key reference.num_image; did you mean 'num_images'"),
    ("train/digits-main-run/config/network/model_chanels", 8, "did you mean 'model_channels'"),
    ("train/digits-main-run/config/P_maen", 1.0, "did you mean 'P_mean'"),
    ("train/digits-main-run/data", "digit", "train.digits-main-run.data: 'digit' is not defined; did you mean"),
    ("networks/old", {"train": {}}, "such entries stand under `train` now"),
    ("models/mine", {"code": "no colon", "path": "x"}, "expected module:function"),
    ("generate/digits-cfg/data", "digit", "did you mean 'digits'"),
    ("generate/digits-cfg/seeds", ["9-3"], "the last seed comes before the first"),
    ("generate/digits-cfg/seeds", [], "seeds is empty"),
    ("generate/digits-cfg/interval", [7, 3], "first <= last"),
    ("generate/digits-cfg/interval", [1, 2, 3], "interval: expected 2 values, found 3"),
    ("generate/digits-cfg/interval", [4, 99], "the sampler has steps 0 to 9"),
    ("generate/digits-cfg/rule", "linaer", "guidance rule 'linaer' is unknown; did you mean 'linear'"),
    ("generate/digits-unguided/guidance", 2.0, "does nothing"),
    ("generate/digits-cfg/guide", None, "needs a guide"),
    ("generate/digits-cfg/main_degradations", {"blur": 0.1}, "degradation 'blur' is unknown"),
    ("generate/digits-cfg/guidance", float("nan"), "expected a number, found NaN"),
    ("generate/digits.cfg", {}, "missing key"),
    ("reconstruct/digits-main/source", "digits-man-run", "did you mean 'digits-main-run'"),
    (
        "sweeps/digits-sweep-cfg/axis",
        "weight",
        "sweeps.digits-sweep-cfg.axis: 'weight' is unknown; known: guidance, guide_ema, main_ema",
    ),
    ("sweeps/digits-sweep-cfg/main_set", "digits-guide", "expected a file in main_set, digits-guide/"),
    ("sweeps/digits-sweep-cfg/figures", {"trainnig": ""}, "did you mean 'training'"),
    ("claims", [{"better": "digits-cgf", "than": "digits-cfg", "metric": "fd_digits"}], "did you mean 'digits-cfg'"),
    ("claims", [{"better": "digits-cfg", "than": "digits-cfg", "metric": "fd_digit"}], "did you mean 'fd_digits'"),
    ("plugins", ["no_such_module"], "plugin 'no_such_module' cannot be imported"),
    ("plugins", "no_list", "plugins: expected a list"),
]


@pytest.mark.parametrize(("edit", "value", "message"), MISTAKES)
def test_mistakes_are_named(tmp_path: Path, edit: str, value: object, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(edited(edit, value)))
    with pytest.raises(InputError) as caught:
        studies.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_with_a_dot_is_refused(tmp_path: Path) -> None:
    raw = yaml.safe_load(DEFAULT.read_text())
    raw["generate"]["digits.cfg"] = raw["generate"]["digits-cfg"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(InputError, match="no dots"):
        studies.load(tmp_path / "study.yaml")


@pytest.mark.parametrize("command", [["study", "use", "default"], ["cost", "default"], ["stage", "toy", "toy"]])
def test_every_command_refuses_a_malformed_study(
    project: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for edit, value, message in MISTAKES:
        for path in (project / "studies" / "default.yaml", project / "params.yaml"):
            path.write_text(yaml.safe_dump(edited(edit, value)))
        monkeypatch.setattr(sys, "argv", ["repro", *command])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert not (project / "out").exists()


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(DEFAULT.read_text() + "\nsampler: {num_steps: 1}\n")
    with pytest.raises(InputError, match="key 'sampler' occurs twice"):
        studies.load(path)


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


def test_a_study_that_cannot_be_read_is_in_nobody_s_way(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "studies" / "broken.yaml").write_text("a: [")
    studies.use("other")
    assert studies.load().study == "other"
    assert [looking.find(key).study for key in ("digits-cfg", "other-cfg")] == ["default", "other"]
    studies.PARAMS.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="--force"):
        studies.use("other")
    command_line.cli.main(["study", "list"], standalone_mode=False)
    assert "cannot be read" in capsys.readouterr().out


def test_use_names_the_nearest_study(project: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'default'"):
        studies.use("defualt")


def test_a_new_study_carries_its_own_name(project: Path) -> None:
    (project / "studies" / "mine.yaml").write_text((ROOT / "studies" / "mine.yaml").read_text())
    target = studies.new("faces")
    assert studies.load(target).study == "faces"
    assert "<name>" not in target.read_text()
    again = studies.load(studies.new("places", "faces"))
    assert again.study == "places"
    assert all("places" in key for key in again.generate)
    (project / "studies" / "cifar10.yaml").write_text((ROOT / "studies" / "cifar10.yaml").read_text())
    copied = studies.load(studies.new("small", "cifar10"))
    assert {data.kind for data in copied.data.values()} == {"cifar10"}
    assert all(key.startswith("small-") for key in copied.generate)
    studies.use("places")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("other", "default", "other.yaml: is there already"),
        ("../up", "default", "cannot name a study"),
        ("", "default", "cannot name a study"),
        ("third", "defualt", "did you mean 'default'"),
        ("third", "default", "ids must carry their study"),
    ],
)
def test_a_study_that_would_be_in_the_way_is_not_written(project: Path, name: str, source: str, message: str) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        studies.new(name, source)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_every_study_says_what_it_is_for() -> None:
    found = {name: studies.purpose(name) for name in studies.available()}
    assert found["default"].startswith("The default study: the paper's 2D example in full")
    assert all(30 < len(text) < 220 for text in found.values()), found


def test_seeds_are_inclusive_ranges() -> None:
    assert studies.parse_seeds("3-5") == range(3, 6)
    assert studies.parse_seeds("7") == range(7, 8)
    with pytest.raises(InputError, match="expected first-last"):
        studies.parse_seeds("3:5")
