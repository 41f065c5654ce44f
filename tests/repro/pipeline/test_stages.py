"""The sampling and measuring stages on golden networks: what is kept, shared, set aside and made again."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import tests.rehearsal.standin  # noqa: F401, registers detectors
from metrics.detectors import weights
from metrics.files import InputError, transfers
from repro import ema, snapshots
from repro import report as reporting
from repro import study as studies
from repro.pipeline import acquire, cleaning, looking, points, stages
from repro.sampling import batches, features, shards
from repro.strict import build
from repro.study import Claim, Study
from repro.verdicts import measures as results
from repro.verdicts import published
from tests.hostile import child
from tests.rehearsal.server import Server

MAIN, GUIDE, UNCOND = "nets/main.safetensors", "nets/guide.safetensors", "nets/uncond.safetensors"


def raw(golden: Path, name: str) -> dict[str, Any]:
    """A study as YAML has it: two configurations of two blocks, two curves."""
    common = {"data": "digits", "main": MAIN, "seeds": ["0-7", "8-15"]}
    sweep = {"method": "x", "main_set": "nets", "main": MAIN, "guide_set": "nets", "guidance": 2.0}
    sweep |= {"data": "digits", "axis": "guidance", "values": [1.0, 2.0], "seeds": ["100-107", "108-115"]}
    return {
        "study": name,
        "toy": {},
        "data": {"digits": {"kind": "digits", "settings": {}, "reference": {"num_images": 256, "classifier_steps": 5}}},
        "images": {},
        "train": {},
        "models": {},
        "networks": {"nets": {"fetch": ["main.pkl", "guide.pkl", "uncond.pkl"]}},
        "reconstruct": {},
        "sampler": {"num_steps": 3, "batch_size": 4},
        "shards": {"size": 6},
        "evaluate": {"detectors": ["digits"], "metrics": ["fd", "precision_recall"], "num_real": 64},
        "generate": {
            "unguided": {"method": "unguided", "guide": MAIN, "guidance": 1.0, **common},
            "autoguidance": {"method": "autoguidance", "guide": GUIDE, "guidance": 1.5, **common},
        },
        "sweeps": {
            "autoguidance-weight": {**sweep, "guide": GUIDE},
            "cfg-weight": {**sweep, "guide": UNCOND},
        },
        "sources": [f"file://{golden}"],
    }


def study(golden: Path, name: str = "first", **changes: Any) -> Study:
    return build(Study, raw(golden, name) | changes)


def prepare(folder: Path) -> Path:
    """The folder, with data and networks of the study `first`."""
    golden = Path(__file__).parents[2] / "data" / "golden"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stages.run_data(study(golden), "digits")
        stages.run_reference(study(golden), "digits")
        stages.run_networks(study(golden), "nets")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def first(prepared: Path, tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return study(golden)


def measures(of: Study, key: str) -> pd.DataFrame:
    return pd.read_csv(of.out / "results" / key / "measures.csv")


def measure(of: Study, key: str) -> None:
    """Features, then rows."""
    stages.run_features(of, key)
    stages.run_evaluate(of, key)


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    calls: list[None] = []
    real = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_features_are_extracted_once_per_shard(first: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.run_generate(first, "unguided")
    calls = count_calls(monkeypatch, features, "detect")
    measure(first, "unguided")
    assert len(calls) == 3
    before = measures(first, "unguided")
    shutil.rmtree(first.out / "results")
    shutil.rmtree(first.out / "samples")  # features are enough to measure again
    stages.run_evaluate(first, "unguided")
    assert len(calls) == 3
    pd.testing.assert_frame_equal(measures(first, "unguided"), before)


def test_the_image_of_one_seed_is_that_of_its_shard(first: Study, golden: Path) -> None:
    """Whichever seed of a batch it is, and for seeds that the study does not sample."""
    Path("params.yaml").write_text(yaml.safe_dump(raw(golden, "first")))
    stages.run_generate(first, "autoguidance")
    cpu = torch.device("cpu")
    for path in sorted((first.out / "samples" / "autoguidance").glob("*.zip"))[:2]:
        manifest, images = shards.read_shard(path)
        for place in (0, 3):
            found = looking.image("autoguidance", manifest.seeds[place], cpu)
            assert np.array_equal(found, images[place])
    assert looking.image("unguided", 10**6, cpu).shape == images[0].shape
    shutil.rmtree(first.out / "networks")
    looking.image("unguided", 3, cpu)
    assert [p.name for p in (first.out / "networks" / "nets").glob("*.safetensors")] == ["main.safetensors"]
    with pytest.raises(InputError, match="configuration 'unguidde' is in no study; did you mean 'unguided'"):
        looking.image("unguidde", 3, cpu)


@pytest.mark.parametrize("damage", ["truncated", "altered", "of other images"])
def test_damaged_features_are_made_again(first: Study, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    stages.run_generate(first, "unguided")
    measure(first, "unguided")
    before = measures(first, "unguided")
    a, b, _ = sorted((first.out / "features" / "unguided").glob("0*.npz"))
    sound = bytearray(a.read_bytes())
    if damage == "truncated":
        a.write_bytes(sound[:-50])
    elif damage == "altered":
        sound[sound.index(b"digits/features.npy") + 400] ^= 1
        a.write_bytes(sound)
    else:
        shutil.copy(b, a)
    calls = count_calls(monkeypatch, features, "detect")
    measure(first, "unguided")
    assert len(calls) == 1
    pd.testing.assert_frame_equal(measures(first, "unguided"), before)


def test_without_images_the_same_is_measured(first: Study) -> None:
    stages.run_generate(first, "autoguidance")
    measure(first, "autoguidance")
    expected = measures(first, "autoguidance")
    bare = replace(first, study="bare", shards=replace(first.shards, keep_images=False))
    for part in ("data", "references", "networks"):
        shutil.copytree(first.out / part, bare.out / part)
    stages.run_generate(bare, "autoguidance")
    stages.run_features(bare, "autoguidance")
    assert [path.name for path in (bare.out / "samples" / "autoguidance").iterdir()] == ["000000-000005.zip"]
    names = [path.name for path in sorted((bare.out / "features" / "autoguidance").glob("0*"))]
    assert names == ["000000-000005.npz", "000006-000011.npz", "000012-000015.npz"]
    before = {path: path.stat().st_mtime_ns for path in (bare.out / "features").glob("*/0*")}
    stages.run_generate(bare, "autoguidance")
    stages.run_features(bare, "autoguidance")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    stages.run_evaluate(bare, "autoguidance")
    found = measures(bare, "autoguidance")
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-4)
    same = [name for name in found.columns if name not in ("study", "value", "commit")]
    pd.testing.assert_frame_equal(found[same], expected[same])
    assert (bare.out / "features" / "autoguidance" / "grid.png").exists()


def test_another_study_links_the_same_shards(
    first: Study, prepared: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.run_generate(first, "autoguidance")
    second = study(golden, "second")
    shutil.copytree(first.out / "networks", second.out / "networks")
    monkeypatch.setattr(batches, "sample_batch", lambda *_: pytest.fail("sampled again"))
    stages.run_generate(second, "autoguidance")
    for shard in (first.out / "samples" / "autoguidance").glob("*.zip"):
        assert (second.out / "samples" / "autoguidance" / shard.name).samefile(shard)


def test_another_weight_sets_shards_aside_and_the_old_one_takes_them_back(
    first: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.run_generate(first, "autoguidance")
    folder = first.out / "samples" / "autoguidance"
    before = {path.name: path.read_bytes() for path in folder.glob("*.zip")}
    item = first.generate["autoguidance"]
    item = replace(item, guided=replace(item.guided, guidance=2.0))
    stages.run_generate(replace(first, generate={"autoguidance": item}), "autoguidance")
    assert "made with other settings" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.glob("*.zip")} != before
    monkeypatch.setattr(batches, "sample_batch", lambda *_: pytest.fail("sampled again"))
    stages.run_generate(first, "autoguidance")
    assert {path.name: path.read_bytes() for path in folder.glob("*.zip")} == before


def test_curves_share_the_unguided_point(first: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch, points, "measured_rows")
    loads = count_calls(monkeypatch, stages, "load_pair")
    stages.run_sweep(first, "autoguidance-weight")
    stages.run_sweep(first, "cfg-weight")
    assert len(calls) == 6  # in two blocks, w = 1 once and w = 2 twice
    assert len(loads) == 2  # one pair serves all weights of a curve
    a, b = measures(first, "autoguidance-weight"), measures(first, "cfg-weight")
    unguided = [curve[curve["axis_value"] == 1].reset_index(drop=True) for curve in (a, b)]
    same = [name for name in a.columns if name != "configuration"]
    pd.testing.assert_frame_equal(unguided[0][same], unguided[1][same])
    assert set(a["configuration"]) == {"autoguidance-weight"}
    assert set(b["configuration"]) == {"cfg-weight"}
    assert all(path.is_file() for path in first.out.glob("results/*/points/*"))  # no shards are left
    guided = [curve[curve["axis_value"] == 2]["value"].to_numpy() for curve in (a, b)]
    assert (guided[0] != guided[1]).any()


def test_an_interrupted_curve_keeps_its_shards(first: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.run_sweep(first, "cfg-weight")
    expected = measures(first, "cfg-weight")
    shutil.rmtree(first.out / "results")
    real, asked = batches.sample_batch, []

    def interrupted(*given: Any) -> Any:
        asked.append(given)
        if len(asked) == 6:  # of 3 per point, in 2 shards
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(batches, "sample_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stages.run_sweep(first, "cfg-weight")
    assert len(list(first.out.glob("results/*/points/*/*.npz"))) == 1
    stages.run_sweep(first, "cfg-weight")
    pd.testing.assert_frame_equal(measures(first, "cfg-weight"), expected)
    assert len(asked) == 4 * 3 + 1  # only the one that was interrupted is sampled again


def test_a_reconstruction_follows_its_snapshots(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = sorted((golden / "raw-snapshots").glob("*.pkl"))
    name = snapshots.parse_name(raw[-1].name)
    assert name is not None
    source = studies.OUT / "first" / "networks" / "nets"

    def put(path: Path) -> Path:
        target = source / path.with_suffix(".safetensors").name
        snapshots.save(snapshots.load(path), target)
        return target

    for path in raw[1:]:
        put(path)
    item = {"full": {"source": "nets", "kimg": name.kimg, "ema_stds": [0.07]}}
    changed = study(golden, reconstruct=item, generate={}, sweeps={})
    calls = count_calls(monkeypatch, stages.ema, "reconstruct")
    stages.run_reconstruct(changed, "full")
    stages.run_reconstruct(changed, "full")
    assert len(calls) == 1
    path = put(raw[0])
    stages.run_reconstruct(changed, "full")
    assert len(calls) == 2
    other = snapshots.load(path)
    for parameter in other.network.parameters():
        parameter.data *= 1.5
    snapshots.save(other, path)
    stages.run_reconstruct(changed, "full")
    assert len(calls) == 3
    monkeypatch.setattr(ema, "numerics", lambda _: {"numerics": 2})
    stages.run_reconstruct(changed, "full")
    stages.run_reconstruct(changed, "full")
    assert len(calls) == 4


def test_two_runs_at_once_leave_the_shards_of_one(first: Study, golden: Path) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(raw(golden, "first")))
    with ThreadPoolExecutor() as pool:
        command = ("repro", ["stage", "generate", "autoguidance"], Path.cwd())
        for run in [pool.submit(child.finish, *command) for _ in range(2)]:
            run.result()
    folder = first.out / "samples" / "autoguidance"
    found = {path.name: path.read_bytes() for path in folder.glob("*.zip")}
    others = {path.name for path in folder.iterdir()}
    shutil.rmtree(folder)
    stages.run_generate(first, "autoguidance")
    assert found == {path.name: path.read_bytes() for path in folder.glob("*.zip")}
    assert others == {path.name for path in folder.iterdir()}


FULL_DISK = """
mount -t tmpfs -o size=4m tmpfs small
cp -r "$1"/. small
cp params.yaml small
cd small
head -c 8M /dev/zero >ballast || true
truncate -s -8K ballast
"$2" -c "$4"
cp out/first/samples/autoguidance/*.zip "$3"
"""
TWICE = """
from pathlib import Path
from metrics import command_line
from repro.__main__ import cli

STAGE = "stage", "generate", "autoguidance"
assert command_line.run(cli, "repro", STAGE) == 2
assert not [*Path("out").rglob("*.zip"), *Path("out").rglob("*.tmp")]
Path("ballast").unlink()
assert command_line.run(cli, "repro", STAGE) == 0
"""


def test_a_full_disk_is_said_and_the_rest_comes_when_there_is_room(
    first: Study, prepared: Path, golden: Path, tmp_path: Path
) -> None:
    command = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("no file system of a given size can be mounted here")
    for name in ("small", "result"):
        (tmp_path / name).mkdir()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw(golden, "first")))
    arguments = [str(prepared), sys.executable, str(tmp_path / "result"), TWICE]
    done = subprocess.run(
        [*command, "sh", "-e", "-c", FULL_DISK, "sh", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no space left on the disk" in done.stderr
    stages.run_generate(first, "autoguidance")
    expected = {p.name: p.read_bytes() for p in (first.out / "samples" / "autoguidance").glob("*.zip")}
    assert {p.name: p.read_bytes() for p in (tmp_path / "result").iterdir()} == expected


@pytest.fixture
def without_guide(golden: Path, first: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A study whose guide no address has, but the next attempt finds it."""
    monkeypatch.setattr(transfers, "BACKOFF", 0.0)
    server = Server({f"/{name}.pkl": (golden / f"{name}.pkl").read_bytes() for name in ("main", "guide", "uncond")})
    server.faults["/guide.pkl"] = [404]
    published = {"autoguidance": {"table": "table1", "row": "S", "metric": "fid", "value": 1.34}}
    lost = study(golden, "lost", sources=[server.base], published=published)
    for part in ("data", "references"):
        shutil.copytree(first.out / part, tmp_path / "alone" / lost.out / part)
    monkeypatch.chdir(tmp_path / "alone")  # where no other study has the file
    yield lost
    server.close()


def test_a_network_that_nobody_has_is_an_outcome(without_guide: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs it is not possible, with the reason in every table; the rest goes on, and so does all on `--retry`."""
    everything = ("unguided", "autoguidance", "autoguidance-weight", "cfg-weight")

    def run_all() -> None:
        stages.run_networks(without_guide, "nets")
        for key in without_guide.generate:
            stages.run_generate(without_guide, key)
            measure(without_guide, key)
        for key in without_guide.sweeps:
            stages.run_sweep(without_guide, key)

    run_all()
    counts = {key: len(measures(without_guide, key)) for key in everything}
    assert counts == {"unguided": 6, "autoguidance": 0, "autoguidance-weight": 6, "cfg-weight": 12}
    for section in ("samples", "features"):
        assert not [*(without_guide.out / section / "autoguidance").iterdir()]
    reason = f"{without_guide.sources[0]}/guide.pkl gave 404 on {time.strftime('%Y-%m-%d')}"
    report = reporting.report(without_guide)
    assert f"not possible: {reason}" in (report / "digits.md").read_text()
    assert f"not possible: {reason}" in (report / "sensitivity.md").read_text()
    lines: list[str] = []
    assert published.verify(without_guide, lines.append) == 0
    assert lines == [f"{'not possible':30} autoguidance fid: published 1.34 ({reason})"]
    alone = replace(without_guide, generate={"autoguidance": without_guide.generate["autoguidance"]}, sweeps={})
    assert published.verify(alone, lines.append) == 1  # nothing could be measured, which is no success

    folders, absent, failures = acquire.everything(without_guide, retry=True)
    assert (absent, failures) == ([], [])
    assert len(folders) == 2
    run_all()
    assert len(measures(without_guide, "autoguidance")) == len(measures(without_guide, "unguided"))
    assert len(measures(without_guide, "autoguidance-weight")) == 12
    found = without_guide.out / "results"
    assert not [*found.glob("*/missing.json")]


def test_networks_and_images_of_what_is_measured_are_not_made_again_unasked(first: Study) -> None:
    for key in first.generate:
        stages.run_generate(first, key)
        measure(first, key)
    for key in first.sweeps:
        stages.run_sweep(first, key)
    shutil.rmtree(first.out / "samples")
    with pytest.raises(InputError, match=r"dvc repro --allow-missing.*remove out/first/features/unguided first"):
        stages.run_generate(first, "unguided")
    shutil.rmtree(first.out / "networks")
    with pytest.raises(InputError, match=r"networks/nets: is not there.*dvc repro --allow-missing"):
        stages.run_networks(first, "nets")
    other = replace(first, sampler=replace(first.sampler, num_steps=4))
    stages.run_networks(other, "nets")  # with other settings it is something else
    stages.run_generate(other, "unguided")
    assert [*(first.out / "samples" / "unguided").glob("*.zip")]


def test_what_was_verified_and_has_not_changed_is_not_read_again(first: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.run_generate(first, "unguided")
    calls = count_calls(monkeypatch, shards, "_digest")
    counts = []
    for verify in ("", "", "1"):
        monkeypatch.setenv("REPRO_VERIFY", verify)
        stages.run_generate(first, "unguided")
        counts.append(len(calls))
    assert counts == [0, 0, 3]
    shard = next((first.out / "samples" / "unguided").glob("0*.zip"))
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    monkeypatch.setenv("REPRO_VERIFY", "")
    stages.run_generate(first, "unguided")
    assert len(calls) == 5  # it has changed: read, and made again


def test_features_of_another_detector_are_not_trusted(first: Study) -> None:
    """Without images: the features stand unchanged, but are not what is asked for."""
    bare = replace(first, shards=replace(first.shards, keep_images=False))
    stages.run_generate(bare, "unguided")
    measure(bare, "unguided")
    folder = bare.out / "features" / "unguided"
    before = {path.name: path.read_bytes() for path in folder.glob("0*.npz")}
    data = replace(first.data["digits"], reference=first.data["digits"].reference | {"classifier_steps": 6})
    other = replace(bare, data={"digits": data})
    stages.run_reference(other, "digits")
    measure(other, "unguided")
    after = {path.name: path.read_bytes() for path in folder.glob("0*.npz")}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_averages_of_published_networks_carry_their_licence(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"file://{path}" for path in sorted((golden / "raw-snapshots").glob("*.pkl"))]
    kimg = max(snapshots.checked_name(Path(name).name).kimg for name in names)
    wanted = {"tiny": {"source": "nets", "ema_stds": [0.07], "kimg": kimg}}
    found = study(golden, networks={"nets": {"fetch": names}}, reconstruct=wanted, generate={}, sweeps={})
    stages.run_networks(found, "nets")
    stages.run_reconstruct(found, "tiny")
    assert "by-nc-sa/4.0" in (found.out / "networks" / "tiny" / "LICENSE").read_text()


def test_replicates_leave_groups_of_seeds_out(first: Study) -> None:
    item = replace(first.generate["autoguidance"], seeds=["0-23", "24-47"])
    more = replace(first, generate={"autoguidance": item})
    stages.run_generate(more, "autoguidance")
    measure(more, "autoguidance")
    folder = more.out / "results" / "autoguidance"
    found = pd.read_csv(folder / "replicates.csv").set_index(["metric", "left_out"])
    groups = [f"{i}-{i + 2}" for i in range(0, 48, 3)]
    assert set(found.loc["fd_digits"].index) == {"none", *groups, "real"}
    assert list(found.loc["fd_digits_infinity"].index) == ["none", *groups]
    assert list(found.loc["recall_digits"].index) == ["none", *groups]
    assert set(found.loc["fd_digits"].loc[groups, "num_images"]) == {45}
    whole = replace(more, generate={"autoguidance": replace(item, seeds=["0-47"])})
    stages.run_evaluate(whole, "autoguidance")
    values = measures(whole, "autoguidance").set_index("metric")["value"]
    for name in ("fd_digits", "precision_digits", "recall_digits"):
        assert found.loc[(name, "none"), "value"] == pytest.approx(values[name], rel=1e-9)
    rest = replace(more, generate={"autoguidance": replace(item, seeds=["3-47"])})
    stages.run_generate(rest, "autoguidance")
    measure(rest, "autoguidance")
    values = measures(rest, "autoguidance").set_index("metric")["value"]
    for name in ("fd_digits", "precision_digits", "recall_digits"):  # of features in other batches, rounded otherwise
        assert found.loc[(name, "0-2"), "value"] == pytest.approx(values[name], rel=1e-6)


@pytest.mark.parametrize(("num_real", "verdict"), [(64, "undecided"), (256, "not meaningful")])
def test_nothing_is_claimed_of_untrained_networks(first: Study, num_real: int, verdict: str) -> None:
    """The golden networks have random weights; 32 real images are too far from 32 others to tell."""
    claim = Claim("autoguidance", "unguided", "fd_digits")
    generate = {key: replace(item, seeds=["0-63"]) for key, item in first.generate.items()}
    options = replace(first.evaluate, num_real=num_real)
    random = replace(first, generate=generate, sweeps={}, claims=[claim], evaluate=options)
    for key in generate:
        stages.run_generate(random, key)
        measure(random, key)
    found = results.read(random)
    (row,) = published.all_claims(random, found, results.summarise(random, found)).to_dict("records")
    assert row["verdict"] == verdict


def test_a_weight_needs_a_guide(first: Study) -> None:
    pair = stages.study_pair(first, first.generate["unguided"].guided, torch.device("cpu"))
    with pytest.raises(InputError, match=r"guidance 2\.0 needs a guide"):
        pair.at(2.0)


EXTRA = {"extra": "stand-in-inception", "images": 8}


def test_an_extra_detector_looks_at_few_images_and_at_no_curve(
    first: Study, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others measure stays as it is, to the bits; N stands beside each."""
    for key in ("unguided", "autoguidance"):
        stages.run_generate(first, key)
        measure(first, key)
    alone = {key: measures(first, key) for key in first.generate}
    evaluate = raw(golden, "first")["evaluate"]
    more = study(golden, evaluate=evaluate | {"detectors": ["digits", EXTRA]})
    before = (first.out / "references/digits/reference.npz").read_bytes()
    stages.run_reference(more, "digits")
    assert (first.out / "references/digits/reference.npz").read_bytes() == before
    for key in more.generate:
        measure(more, key)
        found = measures(more, key)
        ours = found["detector"] == "digits"
        pd.testing.assert_frame_equal(found[ours], alone[key])
        assert set(found[~ours]["metric"]) == {
            "fid_meaningless",
            *(f"{x}_{EXTRA['extra']}" for x in ("precision", "recall")),
        }
        assert set(zip(found[~ours]["block"], found[~ours]["num_images"], strict=True)) == {("0-7", 8)}
    stages.run_sweep(more, "cfg-weight")
    assert set(measures(more, "cfg-weight")["detector"]) == {"digits"}
    kept = more.out / "features/unguided" / EXTRA["extra"]
    assert sorted(path.stem for path in kept.glob("*.npz")) == ["000000-000005", "000006-000011"]  # whole shards
    reference = np.load(more.out / "references/digits" / EXTRA["extra"] / "features.npz")
    assert {len(reference[name]) for name in reference.files if reference[name].ndim == 2} == {8}
    folder = reporting.report(replace(more, sweeps={}))
    for name, head, images in (
        ("digits", "FD_digits ↓", "2 × 8"),
        (f"digits-{EXTRA['extra']}", "fid meaningless ↓", "8"),
    ):
        text = (folder / f"{name}.md").read_text()
        heads, _, *lines = ([x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines() if line)
        assert {"FD_digits ↓", "fid meaningless ↓"} & {*heads} == {head}
        assert {line[heads.index("N")] for line in lines} == {images}
    # Without images it samples them once more, to the same features.
    bare = replace(more, shards=replace(more.shards, keep_images=False))
    looked = {path.name: features.read(path).features[EXTRA["extra"]] for path in kept.glob("*.npz")}
    shutil.rmtree(more.out / "features")
    measure(bare, "unguided")
    for name, x in looked.items():  # in other batches, whose products some processors round otherwise
        np.testing.assert_allclose(features.read(kept / name).features[EXTRA["extra"]], x, rtol=1e-5, atol=1e-5)
    # Of other settings they are set aside beside the configuration's folder, which DVC keeps, and can be cleared away.
    other = replace(bare, sampler=replace(bare.sampler, num_steps=5))
    stages.run_generate(other, "unguided")
    stages.run_features(other, "unguided")
    (aside,) = (path for path in (more.out / "features").glob("unguided.*") if path.is_dir())
    assert {path.name for path in (aside / EXTRA["extra"]).iterdir()} == looked.keys()
    assert {path.name for path in kept.parent.iterdir() if path.is_dir()} == {EXTRA["extra"]}
    cleaning.clean(["aside"])
    assert not aside.exists()


def test_a_study_goes_on_without_an_extra_detector_whose_weights_cannot_be_had(
    first: Study, golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so where it finds out and in the report, and has all else; with the weights there, it has that too."""
    missing = {EXTRA["extra"]: (weights.Weights("stand-in.pth", ("https://nowhere.invalid/stand-in.pth",)),)}
    extra = study(golden, evaluate=raw(golden, "first")["evaluate"] | {"detectors": ["digits", EXTRA]}, sweeps={})

    def run_all() -> str:
        stages.run_reference(extra, "digits")
        for key in extra.generate:
            stages.run_generate(extra, key)
            measure(extra, key)
        assert published.verify(extra) == 0
        return (reporting.report(extra) / f"digits-{EXTRA['extra']}.md").read_text()

    with monkeypatch.context() as patch:
        patch.setattr(weights, "WEIGHTS", weights.WEIGHTS | missing)
        patch.setenv("REPRO_OFFLINE", "1")
        without = run_all()
        absent, failures = acquire.everything(extra, offline=True)[1:]
    assert "digits: goes on without weights of stand-in-inception: offline" in capsys.readouterr().out
    assert (
        "unguided, autoguidance: not possible: weights of stand-in-inception: offline, and 1 files are missing"
        in without
    )
    assert {*measures(extra, "unguided")["detector"]} == {"digits"}
    assert (absent, failures) == ([results.why_missing(extra, "unguided", EXTRA["extra"])], [])
    assert "not possible" not in run_all()
    assert {*measures(extra, "unguided")["detector"]} == {"digits", EXTRA["extra"]}


def test_an_extra_detector_that_looks_at_less_than_a_block_is_refused(golden: Path) -> None:
    evaluate = raw(golden, "first")["evaluate"] | {"detectors": ["digits", EXTRA | {"images": 7}]}
    with pytest.raises(
        InputError, match="unguided: stand-in-inception looks at 7 images, fewer than seed block 0-7 has"
    ):
        study(golden, evaluate=evaluate)


def test_a_model_of_the_user_s_own_is_what_its_weights_are(
    first: Study, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_models.py").write_text(
        "from repro import snapshots\n"
        "def load():\n"
        "    snapshot = snapshots.load('weights.safetensors')\n"
        "    snapshot.network.encoder = snapshot.encoder\n"
        "    return snapshot.network\n"
    )
    monkeypatch.syspath_prepend(".")
    snapshot = snapshots.load(golden / "main.pkl")
    entry = {"method": "unguided", "main": "own/model.json", "guide": "own/model.json", "guidance": 1.0}
    entry |= {"data": "digits", "seeds": ["0-7"]}
    models = {"own": {"code": "my_models:load", "path": "weights.safetensors"}}
    own = study(golden, models=models, generate={"own-unguided": entry}, sweeps={})
    found = []
    for gain in (1.0, 2.0):
        snapshot.network.unet.out_gain.data *= gain
        snapshots.save(snapshot, "weights.safetensors")
        stages.run_models(own, "own")
        stages.run_generate(own, "own-unguided")
        shards = sorted((own.out / "samples/own-unguided").glob("*.zip"))
        found.append([(own.out / "networks/own/model.json").read_bytes(), *(shard.read_bytes() for shard in shards)])
    assert all(one != other for one, other in zip(*found, strict=True))
