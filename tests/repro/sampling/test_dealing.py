"""Work dealt in batches: all ranks finish together, and what they make are the bytes that one makes alone."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from metrics import distributed
from repro.guidance import Guided
from repro.sampling import dealing
from repro.sampling.batches import grouped
from repro.sampling.dealing import PARTS, Plan, dealt
from repro.sampling.features import FeatureShards
from repro.sampling.pairs import Configuration, Pair, Solver, load_pair
from repro.sampling.shards import IMAGES, Form, generate
from repro.study import parse_seeds
from repro.study.files import load

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def idle(count: int, world: int) -> float:
    """Share of the ranks' time, from the first piece to the last, in which they have nothing to do."""
    longest = max(map(len, dealt(count, world)))
    return 1 - count / (world * longest)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 1250])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_piece_is_dealt_once_in_runs_that_differ_by_one(count: int, world: int) -> None:
    shares = dealt(count, world)
    assert [i for share in shares for i in share] == list(range(count))
    assert len(shares) == world
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("name", ["imagenet512", "imagenet64", "edm2", "sensitivity512", "corruptions512"])
def test_at_most_three_percent_idle_in_the_studies_that_need_many_gpus(name: str) -> None:
    study = load(ROOT / "studies" / f"{name}.yaml")
    runs = [item.all_seeds() for item in study.generate.values()]
    runs += [parse_seeds(block) for sweep in study.sweeps.values() for block in sweep.seeds]
    assert runs
    for seeds in {(run[0], len(run)): run for run in runs}.values():
        for world in (2, 4, 8, 16):
            assert idle(len(grouped(seeds, study.sampler.batch_size)), world) <= 0.03


def test_whole_shards_left_an_eighth_of_eight_gpus_idle() -> None:
    seeds = list(range(50_000))
    assert idle(len(grouped(seeds, 1000)), 8) > 0.1
    assert idle(len(grouped(seeds, 40)), 8) < 0.005


@pytest.fixture
def pair(golden: Path) -> Pair:
    guided = Guided(str(golden / "guide.pkl"), str(golden / "uncond.pkl"), 1.5)
    return load_pair(Configuration(guided, Solver(num_steps=2, batch_size=4)), CPU)


class Mean:
    """A detector."""

    name, dim = "mean", 3
    tags: ClassVar = {"detector": "mean", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def as_ranks(world: int, work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`work` in as many threads, each of which is a rank for `metrics.distributed`."""
    local, meeting, arrays = threading.local(), threading.Barrier(world), [np.zeros(0)] * world
    failed: list[BaseException] = []

    def sum_of_all(array: np.ndarray, together: bool = False) -> np.ndarray:
        arrays[local.rank] = array
        meeting.wait(60)
        total = np.sum(arrays, axis=0)
        meeting.wait(60)
        return total

    def rank(number: int) -> None:
        local.rank = number
        try:
            work()
        except BaseException as err:
            failed.append(err)
            meeting.abort()

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: getattr(local, "rank", 0))
        patch.setattr(distributed, "world_size", lambda: world)
        patch.setattr(distributed, "barrier", lambda: meeting.wait(60))
        patch.setattr(distributed, "all_reduce_sum", sum_of_all)
        threads = [threading.Thread(target=rank, args=[number]) for number in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".zip", ".npz")}


FORMS: list[Form] = [IMAGES, FeatureShards({"mean": Mean()})]


@pytest.mark.parametrize("form", FORMS, ids=["images", "features"])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_shards_to_the_same_bytes(
    pair: Pair, form: Form, world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = range(2, 21)  # six batches, the first and last of which are wanted in part, in three shards
    generate(pair, seeds, tmp_path / "one", 8, form=form)
    as_ranks(world, lambda: generate(pair, seeds, tmp_path / "many", 8, form=form), monkeypatch)
    assert len(content(tmp_path / "one")) == 3
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert not (tmp_path / "many" / PARTS).exists()


def test_parts_that_an_interruption_left_are_used_and_what_is_wrong_with_them_is_made_again(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(pair, range(24), tmp_path / "one", 12)
    folder = tmp_path / "many"
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "join", lambda *_: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            as_ranks(3, lambda: generate(pair, range(24), folder, 12), monkeypatch)  # two of six batches each
    parts = sorted(path.name for path in (folder / PARTS).glob("*.zip"))
    assert parts == [
        "000000-000011+000000-000007.zip",
        "000000-000011+000008-000011.zip",
        "000012-000023+000012-000015.zip",
        "000012-000023+000016-000023.zip",
    ]
    (folder / PARTS / parts[1]).write_bytes(b"torn")
    foreign = pair.at(1.0)
    generate(foreign, range(12, 16), tmp_path / "foreign", 12)
    (tmp_path / "foreign" / "000012-000015.zip").replace(folder / PARTS / parts[2])
    made: list[int] = []
    write = Form.write

    def spied(self: Form, pair: Pair, seeds: list[int], *rest: Any) -> None:
        made.extend(seeds)
        write(self, pair, seeds, *rest)

    monkeypatch.setattr(Form, "write", spied)
    as_ranks(2, lambda: generate(pair, range(24), folder, 12), monkeypatch)
    assert sorted(made) == list(range(8, 16))
    assert content(folder) == content(tmp_path / "one")
    assert not (folder / PARTS).exists()


def test_features_of_shards_are_shared_to_the_same_bytes(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repro.sampling.features.BATCH", 3)
    shards, form = generate(pair, range(16), tmp_path / "images", 8), FeatureShards({"mean": Mean()})
    form.extract(shards, tmp_path / "one")
    for world in (2, 5):
        folder = tmp_path / f"{world}"
        as_ranks(world, lambda folder=folder: form.extract(shards, folder), monkeypatch)  # type: ignore[misc]
        assert content(folder) == content(tmp_path / "one")
        assert not (folder / PARTS).exists()


def test_what_ranks_make_alone_is_written_at_once_and_only_shared_files_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [dealing.Wanted(tmp_path / f"{i}.zip", [[100 * i + 10 * j] for j in range(25)]) for i in range(50)]
    plans = []
    for rank in range(8):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 8)
        plans.append(dealing.plan(wanted, lambda *_: None))
    counts = [sum(len(job.seeds) for job in plan.mine) for plan in plans]
    assert sum(counts) == plans[0].total == 1250
    assert max(counts) - min(counts) <= 1
    assert all(plan.joined == plans[0].joined for plan in plans)
    assert len(plans[0].joined) == 6  # cuts within a file, of seven; one falls between two
    assert math.isclose(idle(1250, 8), 1 - 1250 / 8 / max(counts))
