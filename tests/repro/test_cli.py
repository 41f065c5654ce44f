"""The command line: what users type, and what they see when it is wrong."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import yaml

from metrics import __main__ as metrics_line
from metrics.files import InputError
from metrics.results import version
from repro import __main__ as command_line
from repro.pipeline import cleaning
from repro.pixels import decode_png
from repro.sampler import draw_inputs, sample
from repro.sampling.shards import read_shard
from repro.sampling.sources import load_network

ROOT = Path(__file__).resolve().parents[2]
MAIN = str(ROOT / "tests" / "data" / "golden" / "main.pkl")


def run(*arguments: str, code: int = 0) -> None:
    """Call the entry point as the console script does, and expect its exit code."""
    sys.argv = ["repro", *arguments]
    if code == 0:
        command_line.main()
        return
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == code


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["repro"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "show", "defualt"], "did you mean 'default'"),
        (["stage", "train", "digits-main"], "train 'digits-main' is no part of study default; did you mean"),
        (["stage", "tea", "x"], "stage 'tea' is unknown"),
        (["generate", "--main", "none.pkl", "--out", "x"], "none.pkl: no such network file"),
        (["generate", "--main", "a.pkl", "--seeds", "5-3", "--out", "x"], "5-3"),
        (["reconstruct", "snapshot.pkl", "--ema", "0.1", "--out", "x"], "RUN-KIMG-STD"),
        (["generate", "--out", "x"], "--main is missing; expected a network, or --preset"),
        (["generate", "--preset", "edm2-img512-s-autog-fdi", "--out", "x"], "did you mean 'edm2-img512-s-autog-fid'"),
        (["generate", "--preset", "edm2-img512-s-autog-fid", "--main", MAIN, "--out", "x"], "leave out --main"),
        (["generate", "--main", MAIN, "--device", "cdua", "--out", "x"], "device 'cdua' is not here"),
        (["generate", "--main", MAIN, "--device", "meta", "--out", "x"], "device 'meta' holds no numbers"),
        (["generate", "--main", MAIN, "--guidance", "2", "--out", "x"], "guidance 2.0 needs a guide"),
        (["generate", "--main", MAIN, "--other-guide", f"{MAIN}=x", "--out", "x"], "expected float, found 'x'"),
        (["generate", "--main", "{code: a}", "--out", "x"], "the network: code is 'a', expected module:function"),
        (["generate", "--main", "{code: a", "--out", "x"], "the network: not valid YAML"),
        (["generate", "--main", "docs", "--out", "x"], "docs/model_index.json: no such file"),
        (
            ["generate", "--main", MAIN, "--degrade", "null_class=1", "--guidance", "2", "--out", "x"],
            "has a null label",
        ),
        (["image", "digits-cgf", "--seed", "1", "--out", "x.png"], "in no study; did you mean 'digits-cfg'"),
        (["image", "digits-cfg", "--seed", "1", "--out", "pyproject.toml"], "pyproject.toml: is there already"),
        (["generate", "--main", MAIN, "--rule", "agp", "--out", "x"], "did you mean 'apg'"),
        (["generate", "--main", MAIN, "--rule-set", "beta=1", "--out", "x"], "rule linear has no setting 'beta'"),
        (["generate", "--main", MAIN, "--ramp", "up", "--out", "x"], "ramp 'up' is unknown"),
        (["generate", "--main", MAIN, "--degrade", "blur=1", "--out", "x"], "degradation 'blur' is unknown"),
        (["generate", "--main", MAIN, "--degrade", "dropout=2", "--guidance", "2", "--out", "x"], "strength 2"),
        (["generate", "--main", MAIN, "--class", "10", "--out", "x"], "class 10, the network has 10 classes"),
        (["generate", "--main", MAIN, "--sigma-min", "90", "--out", "x"], "sigma_max is 80, expected more"),
        (["generate", "--main", MAIN, "--schedule", "no.yaml", "--out", "x"], "no.yaml: no such file"),
        (["brew"], "No such command 'brew'"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "x") if a == "x" and arguments[0] != "stage" else a for a in arguments]
    run(*arguments, code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "x").exists()


def test_the_active_study_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    run("study", "list")
    assert "* default" in capsys.readouterr().out


def test_a_quick_look_makes_a_shard_and_a_grid(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = ["--main", str(golden / "main.pkl"), "--guide", str(golden / "guide.pkl"), "--guidance", "2"]
    options = ["--seeds", "0-3", "--steps", "2", "--batch-size", "4"]
    run("generate", *networks, *options, "--out", str(tmp_path))
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"000000-000003.zip", "grid.png"}
    run("generate", *networks, *options, "--out", str(tmp_path))  # over a grid of its own
    other = tmp_path / "other" / "grid.png"
    other.parent.mkdir()
    other.write_text("somebody else's")
    run("generate", *networks, *options, "--out", str(other.parent), code=2)
    assert "grid.png: is there already, with no shards beside it" in capsys.readouterr().err
    assert other.read_text() == "somebody else's"
    run("generate", *networks, *options, "--interval", "x", "--out", str(tmp_path), code=2)
    assert "--interval 'x'" in (said := capsys.readouterr().err)
    assert "expected first-last" in said
    run("generate", *networks, *options, "--interval", "1", "--out", str(tmp_path / "one step"))


def test_what_lies_on_the_disk_is_said_and_removed_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    sizes = {
        "samples/a/000000-000999.zip": 3000,
        "samples/a/notes.zip": 10,
        "samples/a.0123456789ab/000000-000999.zip": 2000,
        "features/a/000000-000999.npz": 1000,
        "results/a/measures.csv": 500,
    }
    for name, size in sizes.items():
        path = tmp_path / "out" / "x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / ".dvc" / "cache").mkdir(parents=True)
    os.link(tmp_path / "out/x/results/a/measures.csv", tmp_path / ".dvc/cache/measures")  # counts once
    found = cleaning.sizes(cleaning.places())
    assert found == {"aside": 2000, "images": 3010, "networks": 0, "results": 1500, "dvc": 0, "cache": 0}
    run("clean", "aside", "images")
    assert "0.000 GB  aside" in capsys.readouterr().out
    left = {str(path.relative_to(tmp_path / "out" / "x")) for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert {name for name in left if not name.endswith(".lock")} == sizes.keys() - {
        "samples/a/000000-000999.zip",
        "samples/a.0123456789ab/000000-000999.zip",
    }
    assert not (tmp_path / "out/x/samples/a.0123456789ab").exists()
    with pytest.raises(InputError, match="results: is not removed here"):
        cleaning.clean(["results"])


def test_reconstruction_from_published_snapshots_writes_a_network(golden: Path, tmp_path: Path) -> None:
    snapshots = [str(path) for path in sorted((golden / "raw-snapshots").glob("*.pkl"))]
    run("reconstruct", *snapshots, "--ema", "0.075", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-0000098-0.075.safetensors"]


def test_the_doctor_finds_a_machine_without_network_healthy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    sys.argv = ["repro", "doctor"]
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    output = capsys.readouterr().out
    assert caught.value.code == 0, output
    assert "ok   golden sample on cpu" in output
    assert "github.com is out of reach (no route)" in output


def options(command: click.Command) -> Iterator[click.Option]:
    """Of a command and of those below it."""
    yield from (x for x in command.params if isinstance(x, click.Option))
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        yield from options(below)


def test_both_command_lines_say_their_version(capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    said = capsys.readouterr().out
    assert said == f"autoguidance-repro {version()}\n"
    assert metrics_line.main(["--version"]) == 0
    assert capsys.readouterr().out == said


def test_an_option_of_both_command_lines_is_the_same_in_both() -> None:
    """But for a default: name, type, whether it is a flag and whether it may be repeated."""

    def kinds(group: click.Group) -> dict[str, set[tuple[str, bool, bool]]]:
        found: dict[str, set[tuple[str, bool, bool]]] = {}
        for option in options(group):
            for name in option.opts:
                found.setdefault(name, set()).add((str(option.type.to_info_dict()), option.is_flag, option.multiple))
        return found

    ours, theirs = kinds(metrics_line.cli), kinds(command_line.cli)
    shared = ours.keys() & theirs.keys()
    assert {"--plugin", "--version", "--out", "--workers", "--batch-size", "--skip-bad", "--force"} <= shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    assert all(len(ours[name]) == 1 for name in ours)


def test_both_packages_import_without_dvc() -> None:
    code = (
        "import sys\n"
        "sys.modules['dvc'] = None\n"
        "import repro.training, repro.sampler, repro.pipeline.stages, metrics.evaluation, metrics.detectors\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_metrics_never_imports_repro() -> None:
    code = (
        "import sys, pkgutil, importlib, metrics\n"
        "for m in pkgutil.walk_packages(metrics.__path__, 'metrics.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'repro']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_bad_version_rule_ramp_class_and_schedule_from_the_command_line(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.yaml"
    run("schedule", "--network", MAIN, "--steps", "3", "--grid", "4", "--seeds", "0-1", "--out", str(schedule))
    guided = ["--degrade", "blurred_attention=1.0", "--guidance", "2", "--rule", "apg", "--rule-set", "beta=0"]
    rest = ["--ramp", "linear", "--class", "3", "--steps", "3", "--schedule", str(schedule), "--seeds", "0-3"]
    run("generate", "--main", MAIN, *guided, *rest, "--batch-size", "4", "--out", str(tmp_path / "look"))
    (shard,) = (tmp_path / "look").glob("*.zip")
    manifest = read_shard(shard)[0]
    made = manifest.configuration
    assert made.guided.guide_degradations == {"blurred_attention": 1.0}
    assert (made.guided.rule, made.guided.rule_settings, made.guided.ramp) == ("apg", {"beta": 0.0}, "linear")
    assert made.only_class == 3
    assert made.solver.schedule is not None
    assert set(manifest.labels) == {3}
    run("generate", "--main", MAIN, "--steps", "5", "--schedule", str(schedule), "--out", str(tmp_path / "no"), code=2)


def test_several_guides_from_the_command_line_are_those_of_the_sampler(golden: Path, tmp_path: Path) -> None:
    """--guide has what the others leave of 1."""
    names = {name: str(golden / f"{name}.pkl") for name in ("main", "guide", "uncond")}
    rest = ["--guidance", "3", "--seeds", "0-3", "--steps", "3", "--batch-size", "4", "--device", "cpu"]
    guides = ["--guide", names["guide"], "--other-guide", f"{names['uncond']}=0.25"]
    run("generate", "--main", names["main"], *guides, *rest, "--out", str(tmp_path))
    (shard,) = tmp_path.glob("*.zip")
    manifest, found = read_shard(shard)
    assert manifest.configuration.guided.weights == [2.5, 1.5]
    main, *others = (load_network(name, torch.device("cpu"))[0] for name in names.values())
    noise, labels = draw_inputs(main, range(4))
    latents = sample(main, noise, labels, guide=others, guidance=[2.5, 1.5], num_steps=3)
    wanted = main.encoder.decode(latents).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_preset_is_fetched_and_sampled_by_its_name(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks of that preset alone, here small ones; at its weight, or another."""
    published, preset = tmp_path / "served" / "posthoc-reconstructions", "edm2-img512-s-autog-fid"
    published.mkdir(parents=True)
    for name, file in (("s-2147483-0.070", "main"), ("xs-0134217-0.125", "guide")):
        shutil.copy(golden / f"{file}.pkl", published / f"edm2-img512-{name}.pkl")
    (tmp_path / "studies").mkdir()
    study = yaml.safe_load((ROOT / "studies" / "edm2.yaml").read_text())
    study |= {"sources": [f"file://{tmp_path}/served"], "sampler": {"num_steps": 2, "batch_size": 2}}
    (tmp_path / "studies" / "edm2.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    rest = ["--seeds", "0-1", "--steps", "2", "--batch-size", "2"]
    run("generate", "--preset", preset, *rest, "--out", "look")
    made = read_shard(tmp_path / "look" / "000000-000001.zip")[0].configuration.guided
    assert (Path(made.main).stem, Path(str(made.guide)).stem, made.guidance) == (
        "edm2-img512-s-2147483-0.070",
        "edm2-img512-xs-0134217-0.125",
        2.1,
    )
    run("generate", "--preset", preset, "--guidance", "1", *rest, "--out", "plain")
    assert read_shard(tmp_path / "plain" / "000000-000001.zip")[0].configuration.guided.guide is None
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    run("image", preset, "--seed", "5", "--out", "five.png")
    run("image", preset, "--seed", "5", "--out", "five.png", code=2)
    run("image", preset, "--seed", "5", "--out", "five.png", "--force")
    assert decode_png((tmp_path / "five.png").read_bytes()).shape == (16, 16, 3)


def test_a_pipeline_of_diffusers_from_the_command_line(tmp_path: Path) -> None:
    """Main network and, under its null label, guide; code with arguments, as a study has it, too."""
    diffusers = pytest.importorskip("diffusers")
    from tests.repro.adapters.networks import saved, transformer, vae

    folder = str(saved(tmp_path / "dit", transformer(), diffusers.DDIMScheduler(clip_sample=False), vae()))
    rest = ["--degrade", "null_class=1", "--guidance", "4", "--seeds", "0-1", "--steps", "2", "--batch-size", "2"]
    run("generate", "--main", folder, *rest, "--out", str(tmp_path / "a"))
    code = f'{{code: "repro.adapters:from_diffusers", arguments: {{source: {folder}}}, path: {folder}}}'
    run("generate", "--main", code, *rest, "--out", str(tmp_path / "b"))
    images = [read_shard(tmp_path / name / "000000-000001.zip")[1] for name in "ab"]
    assert np.array_equal(*images)
    assert images[0].std() > 1
    run("generate", "--main", folder, *rest, "--sigma-max", "200", "--out", str(tmp_path / "c"), code=2)
