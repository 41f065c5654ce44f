"""Networks that are no files: code with arguments, and pipelines of diffusers; told apart by what they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import repro
from metrics.files import InputError
from repro.guidance import Guided
from repro.sampling.pairs import Configuration, Pair, Solver, load_pair
from repro.sampling.shards import Manifest
from repro.sampling.sources import Model, load_model, load_network
from repro.strict import build

diffusers = pytest.importorskip("diffusers")
from tests.repro.adapters.networks import CLASSES, saved, transformer, vae  # noqa: E402

CPU = torch.device("cpu")
FOREIGN = """
import torch
from repro.adapters import from_epsilon, from_v
from repro.encoders import RGBEncoder

class Plain:
    img_resolution, img_channels, label_dim, sigma_data, encoder = 8, 1, 0, 0.5, RGBEncoder()

    def __init__(self, scale=0.25):
        self.scale, self.files = scale, [__file__]

    def __call__(self, x, sigma, labels=None):
        return x * self.scale / (self.scale + sigma**2)

class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        return self.weight * x

ALPHAS = torch.linspace(0.99, 0.01, 10)
FACTS = dict(img_resolution=8, img_channels=1)

def epsilon():
    return from_epsilon(Layer(), ALPHAS, **FACTS)

def v():
    return from_v(Layer(), ALPHAS, **FACTS)

def function():
    return from_epsilon(lambda x, t: 0.5 * x, ALPHAS, **FACTS)
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of models of the user's own; a new name each time, since Python keeps modules."""
    name = f"sources_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return saved(tmp_path / "dit", transformer(), diffusers.DDIMScheduler(clip_sample=False), vae())


def test_two_models_of_one_code_have_each_their_own_files(foreign: str, tmp_path: Path) -> None:
    """Though they are the same function: what a digest is of are the files that each names."""
    models = {}
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
        models[name] = Model(f"{foreign}:Plain", path=str(tmp_path / name))
    pair = load_pair(Configuration(Guided("first", "second", 2.0)), CPU, models)
    alone = {name: load_model(model, CPU)[1] for name, model in models.items()}
    assert (pair.main_sha256, pair.guide_sha256) == (alone["first"], alone["second"])
    assert alone["first"] != alone["second"]


def test_code_takes_arguments_that_count(foreign: str) -> None:
    """In a digest, too, though nothing else of the model differs."""
    found = {
        scale: load_network(f'{{code: "{foreign}:Plain", arguments: {{scale: {scale}}}}}', CPU) for scale in (1, 3)
    }
    assert [network.scale for network, _ in found.values()] == [1, 3]  # type: ignore[attr-defined]
    assert len({sha256 for _, sha256 in found.values()} | {load_network(f"{foreign}:Plain", CPU)[1]}) == 3
    with pytest.raises(InputError, match=rf"cannot import or make the model {foreign}:Plain \(.*'scael'"):
        load_model(Model(f"{foreign}:Plain", {"scael": 1}), CPU)


def test_adapters_are_told_apart_though_their_weights_are_the_same(foreign: str) -> None:
    digests = {load_network(f"{foreign}:{name}", CPU)[1] for name in ("epsilon", "epsilon", "v")}
    assert len(digests) == 2


def test_a_mere_function_in_an_adapter_is_refused_without_a_file_that_tells_what_it_is(foreign: str) -> None:
    with pytest.raises(InputError, match=f"{foreign}:function: has neither parameters nor a list `files`"):
        load_network(f"{foreign}:function", CPU)
    path = Path(load_network(f"{foreign}:Plain", CPU)[0].files[0])  # type: ignore[attr-defined]
    first = load_model(Model(f"{foreign}:function", path=str(path)), CPU)[1]
    path.write_text(path.read_text().replace("0.5 * x", "0.4 * x"))
    assert load_model(Model(f"{foreign}:function", path=str(path)), CPU)[1] != first


def test_a_pipeline_is_a_network_like_any_other(pipeline: Path) -> None:
    """Main and guide in one, in the noise levels that it was made for."""
    guided = Guided(str(pipeline), str(pipeline), 3.0, guide_degradations={"null_class": 1})
    pair = load_pair(Configuration(guided, Solver(2, batch_size=2)), CPU)
    main: Any = pair.main
    assert pair.configuration.solver.sigma_min == main.sigma_min == pytest.approx(0.01, rel=1e-3)
    assert pair.configuration.solver.sigma_max == main.sigma_max == pytest.approx(157.4, rel=1e-3)
    assert pair.guide is not None
    assert (pair.main.label_dim, pair.guide.label_dim) == (CLASSES, 0)
    found = repro.sample(
        repro.load(pipeline, device="cpu"), degradation={"null_class": 1}, guidance=3.0, seeds=[3], steps=2, show=False
    )
    assert found.shape == (1, 16, 16, 3)


def test_a_pipeline_s_digest_is_of_what_is_read_wherever_it_lies(pipeline: Path, tmp_path: Path) -> None:
    def digest(folder: Path, **options: Any) -> str:
        return load_model(Model(diffusers=str(folder), **options), CPU)[1]

    one, moved = digest(pipeline), tmp_path / "moved"
    shutil.copytree(pipeline, moved)
    (moved / "README.md").write_text("what it is")
    assert digest(moved) == one == load_network(str(moved), CPU)[1]
    assert digest(moved, dtype="float16") != one
    scheduler = moved / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    assert digest(moved) != one
    shutil.copytree(pipeline, tmp_path / "other-vae")
    other = vae()
    torch.nn.init.normal_(other.decoder.conv_out.weight)
    other.save_pretrained(tmp_path / "other-vae" / "vae")
    assert digest(tmp_path / "other-vae") != one


def test_a_pipeline_runs_in_the_type_that_is_asked_for(pipeline: Path) -> None:
    network = load_model(Model(diffusers=str(pipeline), dtype="bfloat16"), CPU)[0]
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]


def test_without_diffusers_the_extra_that_has_it_is_named(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(InputError, match=r"need diffusers .*pip install 'autoguidance-repro\[vae\]'") as caught:
        load_network(str(pipeline), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "exactly one of code and diffusers"),
        ({"code": "a:b", "diffusers": "c"}, "exactly one of code and diffusers"),
        ({"code": "a"}, "code is 'a', expected module:function"),
        ({"diffusers": "a", "path": "b"}, "path is 'b', expected the pipeline's folder, 'a'"),
        ({"diffusers": "a", "arguments": {"b": 1}}, "arguments are for code"),
        ({"diffusers": "a", "dtype": "float8"}, "dtype: 'float8' is unknown"),
        ({"code": "a:b", "dtype": "float16"}, "dtype is for a pipeline"),
        ({"code": "a:b", "pth": "c"}, "unknown key pth; did you mean 'path'"),
    ],
)
def test_entries_that_cannot_be_meant_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(Model, entry)


def pair_of(source: str | Path, **solver: Any) -> Pair:
    return load_pair(Configuration(Guided(str(source)), Solver(2, **solver)), CPU)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (
            {"sigma_max": 160.0},
            r"made for noise levels sigma of 0.01\d* to 157.\d+, and the sampler takes 0.01\d* to 160;",
        ),
        ({"sigma_min": 0.002}, "the sampler takes 0.002 to 157"),
        ({"sigma_max": 0.001}, "sigma_max is 0.001, expected more than sigma_min, 0.01"),
        ({"schedule": [200.0, 1.0]}, "the sampler takes 1 to 200; set sigma_min and sigma_max"),
    ],
)
def test_noise_levels_outside_of_the_table_are_refused(pipeline: Path, solver: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair_of(pipeline, **solver)


def test_levels_that_are_rounded_and_such_inside_are_taken(pipeline: Path) -> None:
    solver = pair_of(pipeline, sigma_min=0.01, sigma_max=157.5).configuration.solver
    assert (solver.sigma_min, solver.sigma_max) == (0.01, 157.5)
    own, said = pair_of(pipeline), pair_of(pipeline, sigma_max=80.0)
    assert own.digest != said.digest


def test_a_range_that_is_the_network_s_own_is_part_of_the_digest(pipeline: Path, golden: Path) -> None:
    """Where it has none the range is EDM's, and no part, as before it could be left to the network."""
    own = pair_of(pipeline)
    unsaid = replace(own.configuration, solver=Solver(2))
    assert replace(own, configuration=unsaid).digest != own.digest
    assert pair_of(golden / "main.pkl").configuration.solver == Solver(2)


def test_manifests_from_when_the_default_range_was_said_are_read(golden: Path) -> None:
    pair = pair_of(golden / "main.pkl")
    manifest = Manifest(pair.digest, pair.configuration, pair.main_sha256, None, "cpu", {}, [0])
    facts = manifest.facts()
    facts["configuration"]["solver"] |= {"sigma_min": 0.002, "sigma_max": 80.0}
    del facts["configuration"]["guided"]["other_guides"]
    assert Manifest.read(facts, Path("shard.zip")) == manifest
    facts["configuration"]["solver"] |= {"num_steps": 1, "schedule": [3.0]}
    assert Manifest.read(facts, Path("shard.zip")).configuration.solver.schedule == [3.0]
    facts["configuration"]["solver"] |= {"schedule": None, "sigma_min": 0.01}
    assert Manifest.read(facts, Path("shard.zip")).configuration.solver.span == (0.01, 80.0)
