"""Networks of a configuration: what they are told apart by, what they take to load, and models of the user's own."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metrics.files import InputError
from repro import snapshots
from repro.encoders import RGBEncoder
from repro.guidance import Guided, OtherGuide
from repro.inference import fold
from repro.networks import Precond
from repro.sampling.pairs import Configuration, Solver, load_pair
from repro.sampling.shards import generate, read_shard
from repro.sampling.sources import Model, load_model, load_network

CPU = torch.device("cpu")
FOREIGN = """
import torch
from repro.encoders import RGBEncoder

class Model(torch.nn.Module):
    img_resolution, img_channels, label_dim, sigma_data, encoder = 8, 1, 0, 0.5, RGBEncoder()

    def __init__(self, weight=0.25):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x, sigma, labels=None):
        return self.dropout(x * self.weight / (self.weight + sigma**2))

class Plain:
    img_resolution, img_channels, label_dim, sigma_data, encoder = 8, 1, 0, 0.5, RGBEncoder()

    def __call__(self, x, sigma, labels=None):
        return x * 0.25 / (0.25 + sigma**2)

def other():
    return Model(0.3)
"""

# Digests of configurations with networks "a" and "b", as first written: a field that is added later, at its default,
# must not change them, or everybody's shards are thrown away.
FROZEN = {
    "plain": "be8ef8a233624a5a55d1e9a432af391dd17062934c619e659c5410bd49be1c57",
    "guided": "a4f09babfe0516378c8d2b52a2e419ed67db9282cab301a562cd889057ef41ea",
    "several": "8d3f909c99850b9f6635d11b2e59e07ff3d5e805cae1a51fab57ebd02d49ae52",
}


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of models of the user's own; a new name each time, since Python keeps modules."""
    name = f"foreign_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_foreign_model_is_welcome_and_in_evaluation_mode(foreign: str, tmp_path: Path) -> None:
    pair = load_pair(Configuration(Guided(f"{foreign}:Model"), Solver(3, batch_size=2)), CPU)
    (path,) = generate(pair, range(4), tmp_path / "out")
    assert read_shard(path)[1].shape == (4, 8, 8, 1)
    assert isinstance(pair.main, torch.nn.Module)
    assert not pair.main.training


def test_a_foreign_model_is_told_apart_by_its_weights_and_files_not_by_its_name(foreign: str, tmp_path: Path) -> None:
    one, same, other = (load_network(f"{foreign}:{name}", CPU)[1] for name in ("Model", "Model", "other"))
    assert one == same
    assert one != other
    (tmp_path / "weights").write_text("1")
    before = load_model(Model(f"{foreign}:Plain", path=str(tmp_path / "weights")), CPU)[1]
    (tmp_path / "weights").write_text("2")
    assert load_model(Model(f"{foreign}:Plain", path=str(tmp_path / "weights")), CPU)[1] != before
    with pytest.raises(InputError, match="has neither parameters nor a list `files`"):
        load_network(f"{foreign}:Plain", CPU)
    with pytest.raises(InputError, match="no such file or folder"):
        load_model(Model(f"{foreign}:Plain", path=str(tmp_path / "nothing")), CPU)


def test_what_is_no_denoiser_is_refused() -> None:
    with pytest.raises(InputError, match="does not return a Denoiser"):
        load_network("collections:OrderedDict", CPU)
    with pytest.raises(InputError, match="cannot import"):
        load_network("no_such_module:thing", CPU)


def digest(pair: object, **changes: object) -> str:
    return replace(pair, **changes).digest  # type: ignore[type-var, attr-defined, no-any-return]


def test_a_digest_is_of_what_decides_bits(golden: Path) -> None:
    guided = Guided(str(golden / "main.pkl"), str(golden / "guide.pkl"), 2.0)
    pair = load_pair(Configuration(guided, Solver(num_steps=3)), CPU)
    frozen = replace(pair, main_sha256="a", guide_sha256="b")
    assert frozen.digest == FROZEN["guided"]
    assert frozen.at(1.0).digest == FROZEN["plain"]
    blended = replace(guided, other_guides=[OtherGuide(str(golden / "uncond.pkl"), 0.5)])
    several = load_pair(replace(pair.configuration, guided=blended), CPU)
    assert len(several.guides) == 2
    assert replace(several, main_sha256="a", guide_sha256="b+c").digest == FROZEN["several"]
    assert replace(several, main_sha256="a", guide_sha256=None).at(1.0).digest == FROZEN["plain"]
    renamed = replace(pair.configuration, guided=Guided("x", "y", 2.0))
    assert digest(frozen, configuration=renamed) == frozen.digest
    others = [
        replace(pair.configuration, guided=replace(guided, guidance=2.5)),
        replace(pair.configuration, guided=replace(guided, interval=(0, 1))),
        replace(pair.configuration, guided=replace(guided, guide_degradations={"dropout": 0.1})),
        replace(pair.configuration, solver=Solver(num_steps=4)),
        replace(pair.configuration, solver=Solver(num_steps=3, batch_size=7)),
        replace(pair.configuration, solver=Solver(num_steps=3, vae_tf32=False)),
    ]
    found = {digest(frozen, configuration=other) for other in others}
    assert len(found | {frozen.digest}) == len(others) + 1
    assert digest(frozen, main_sha256="c") != frozen.digest


@pytest.mark.parametrize("source", [":f", "a:", "..:f", "json:loads", "json:nothing", "nowhere:f", "os:getcwd"])
def test_code_that_gives_no_model_is_named(source: str) -> None:
    with pytest.raises(InputError, match=rf"{re.escape(source)}( \(| does not return|', expected)"):
        load_network(source, CPU)


# How much memory of its own a process takes at most while it loads a network for another device, in bytes.
LOADING = """
import re, sys, threading, time
from pathlib import Path
import torch
from repro.sampling.sources import load_network

def own():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def watch():
    while not done.wait(0.001):
        found.append(own())

load_network(sys.argv[1], torch.device("meta"))  # what is imported at first use
found, done = [own()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
load_network(sys.argv[2], torch.device("meta"))
done.set()
watcher.join()
print(max(found) - found[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_a_network_for_a_gpu_takes_little_of_the_hosts_memory(golden: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        large = Precond(8, 4, 0, model_channels=320, channel_mult=[1, 2], num_blocks=1)
    large = large.to_empty(device="cpu")
    for tensor in (*large.parameters(), *large.buffers()):
        torch.nn.init.constant_(tensor, 0.5)
    path, small = tmp_path / "large.safetensors", golden / "guide.pkl"
    snapshots.save(snapshots.Snapshot(large, RGBEncoder(), {}), path)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", LOADING, str(small), str(path)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    size, layer = path.stat().st_size, 4 * max(p.numel() for p in large.parameters())
    assert size > 4e7
    assert int(found.stdout) < min(size, 4 * layer)  # in float32 it would be two more copies of it, and all of them


def test_weights_as_stored_give_the_same_bits(golden: Path, tmp_path: Path) -> None:
    snapshots.save(snapshots.load(golden / "main.pkl"), tmp_path / "main.safetensors")
    stored = snapshots.load(tmp_path / "main.safetensors", as_stored=True).network
    assert {p.dtype for p in stored.parameters() if p.ndim} == {torch.float16}
    assert {p.dtype for p in (*stored.parameters(), *stored.buffers()) if p.ndim < 2} == {torch.float32}
    folded, _ = load_network(str(tmp_path / "main.safetensors"), CPU)
    expected = fold(snapshots.load(golden / "main.pkl").network)
    torch.testing.assert_close(folded.state_dict(), expected.state_dict(), rtol=0, atol=0)  # type: ignore[attr-defined]
