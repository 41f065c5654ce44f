"""The 2D example from settings to table and figures, in miniature."""

import dataclasses
import shutil
from pathlib import Path

import matplotlib.text
import pytest
import torch

from metrics.files import InputError
from repro.rows import MEASURES, REPLICATES, read_rows
from repro.toy import figures, pipeline
from repro.toy import pipeline as toy
from repro.toy.metrics import NAMES
from repro.toy.mixture import fractal
from repro.toy.sampling import draw, methods, solve, trajectories
from repro.toy.settings import ToyNetworkSettings, ToySettings, ToyTrainingSettings
from repro.toy.training import load

TINY = ToySettings(
    training=ToyTrainingSettings(batch_size=128),
    checkpoint_every=10,
    main=ToyNetworkSettings("A", width=16, iterations=40),
    guide=ToyNetworkSettings("A", width=8, iterations=10),
    unconditional=ToyNetworkSettings("AB", width=8, iterations=10),
    num_steps=6,
    sampling_seeds=(0, 5),
    num_samples=256,
    num_true=2048,
    num_directions=16,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "RESOLUTION", 60)
        toy.run(TINY, folder, study="mini", key="tiny")
    return folder


@pytest.fixture(scope="module")
def networks(folder: Path):
    return {role: load(pipeline.network_path(folder, role)) for role in pipeline.ROLES}


def test_table_has_every_measure_of_every_method_and_seed(folder: Path) -> None:
    rows = read_rows(folder / MEASURES)
    found = set(zip(rows["method"], rows["block"], rows["metric"], strict=True))
    assert found == {(m, block, name) for m in ToySettings.METHODS for block in ("0", "5") for name in NAMES}
    assert len(rows) == len(found)
    assert (rows["configuration"] == "tiny-" + rows["method"]).all()
    common = rows[["study", "num_images", "training_seed"]].drop_duplicates()
    assert common.to_numpy().tolist() == [["mini", 256, 0]]
    weights = dict(zip(rows["method"], rows["guidance"], strict=True))
    assert weights == {"true": 1, "unguided": 1, "cfg": 4, "autoguidance": 3, "truncation": 1.4}


def test_what_is_said_at_once_are_the_means_of_the_table_and_where_figures_are(folder: Path) -> None:
    lines = pipeline.brief(folder / MEASURES).splitlines()
    rows = read_rows(folder / MEASURES)
    for method in ToySettings.METHODS:
        (line,) = [line for line in lines if line.split()[0] == method]
        of = rows[rows["method"] == method]
        means = [of.loc[of["metric"] == name, "value"].mean() for name in pipeline.BRIEF]
        assert line.split()[1:] == [f"{mean:.3f}" for mean in means]
    assert lines[-2:] == [str(folder / f"figures/toy-figure{n}.png") for n in (1, 2)]


def test_complete_folder_is_left_alone(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    toy.run(TINY, folder, study="mini", key="tiny")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_sampling_settings_keep_the_networks(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    for path in (folder / "networks").iterdir():
        (tmp_path / "networks" / path.name).write_bytes(path.read_bytes())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "networks").iterdir()}
    toy.run(dataclasses.replace(TINY, sampling_seeds=(1,), figures=False), tmp_path, "mini", "tiny")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "networks").iterdir()} == before
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("name", ["settings.json", "networks/main.safetensors", "networks/main.checkpoint.pt"])
def test_what_is_damaged_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if name != "settings.json":
        (tmp_path / "settings.json").unlink()
        (tmp_path / "networks" / "main.safetensors").unlink()
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match=rf"{Path(name).name}: not .*; remove it"):
        toy.run(TINY, tmp_path, "mini", "tiny")


def test_other_numerics_of_replicates_are_measured_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    monkeypatch.setattr(pipeline, "numerics", lambda subject: {"numerics": 9} if subject == "replicates" else {})
    toy.run(TINY, tmp_path, "mini", "tiny")
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert {MEASURES, REPLICATES} <= changed
    assert not any(name.endswith(".safetensors") for name in changed)


def test_figures_are_drawn_as_png_and_svg(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == ["toy-figure1.png", "toy-figure1.svg", "toy-figure2.png", "toy-figure2.svg"]
    for name in names:
        assert (folder / "figures" / name).stat().st_size > 10_000


def test_text_in_figures_is_at_least_7_points(networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RESOLUTION", 60)
    compared = methods(TINY, networks)
    guided = [method for method in compared if method.guide is not None]
    panels = {"Ground truth": fractal("A").sample(100)} | {m.title: draw(m, TINY, 0) for m in compared}
    for figure in (
        figures.draw_overview(-1.6, panels),
        figures.draw_closeup(TINY, fractal("A"), networks["main"], guided),
    ):
        sizes = [t.get_fontsize() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]
        assert len(sizes) >= 5
        assert min(sizes) >= 7


def test_methods_start_from_the_same_noise_and_end_apart(networks) -> None:
    ends = {method.name: draw(method, TINY, 3) for method in methods(TINY, networks)}
    assert all(end.shape == (256, 2) for end in ends.values())
    assert torch.equal(ends["unguided"], draw(methods(TINY, networks)[0], TINY, 3))
    for name in ("cfg", "truncation", "autoguidance"):
        assert not torch.allclose(ends[name], ends["unguided"], atol=1e-3)


def test_trajectories_begin_at_the_given_points_and_end_where_the_sampler_does(networks) -> None:
    method = methods(TINY, networks)[3]
    start = torch.randn([7, 2], generator=torch.Generator().manual_seed(0))
    paths = trajectories(method, TINY, start, 0.5)
    assert paths.shape == (TINY.num_steps + 1, 7, 2)
    torch.testing.assert_close(paths[0], start)
    assert torch.equal(paths[-1], solve(method, TINY, start / 0.5, 0.5))
