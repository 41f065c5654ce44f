"""The search for a guide: on objectives with a known minimum, and on tiny networks from the command line."""

import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from metrics.files import InputError
from metrics.frechet import Estimate
from repro import snapshots
from repro import study as studies
from repro.data import digits
from repro.encoders import RGBEncoder
from repro.networks import Precond
from repro.search import objective as guide
from repro.search.race import Candidate, Row, Search, SearchSettings, Space, better_half
from repro.snapshots import Snapshot
from repro.study import build

ROOT = Path(__file__).resolve().parents[2]
WIDE = (0.01, 0.25)
SETTINGS = SearchSettings(
    seeds="0-255",
    fresh=["256-511", "512-767"],
    guidance_steps=[0.4, 0.2, 0.1],
    ema_steps=[0.04, 0.02, 0.01],
)
TIMES = (5, 10, 20, 40)


class Recorded:
    """An objective given as a function of candidate and seeds, which counts images as the real one does."""

    def __init__(self, value: Callable[[Candidate, range], float], error: float = 0.0) -> None:
        self.value, self.error = value, error
        self.asked: dict[tuple[Candidate, int], int] = {}

    @property
    def images(self) -> int:
        return sum(self.asked.values())

    def measure(self, candidates: Sequence[Candidate], seeds: range) -> list[float]:
        for c in candidates:
            self.asked[c, seeds.start] = max(self.asked.get((c, seeds.start), 0), len(seeds))
        return [self.value(c, seeds) for c in candidates]

    def difference(self, a: Candidate, b: Candidate, seeds: range) -> Estimate:
        return Estimate(self.value(a, seeds) - self.value(b, seeds), self.error)


def bowl(c: Candidate) -> float:
    """A distance with its least value where the paper found one: early snapshot, guide's EMA longer than main's."""
    late = math.log2(c.kimg / 10)
    main = 0.0 if c.main_ema is None else 40 * (c.main_ema - 0.06) ** 2
    slant = 2 * ((c.main_ema or 0.06) - 0.06) * (c.guidance - 1.6)
    return (
        0.4 + 0.25 * (c.guidance - 1.6 - 0.2 * late) ** 2 + 0.03 * late**2 + main + 4 * (c.guide_ema - 0.1) ** 2 + slant
    )


def noisy(seed: int) -> Callable[[Candidate, range], float]:
    """`bowl` with the bias of few images and noise of which most is common to all candidates on equal seeds."""

    def value(c: Candidate, seeds: range) -> float:
        common = np.random.default_rng([seed, seeds.start]).normal(size=len(seeds)).mean()
        own = np.random.default_rng([seed, seeds.start, zlib.crc32(str(c).encode())]).normal(size=len(seeds)).mean()
        return bowl(c) + 60 / len(seeds) + 0.8 * common + 0.05 * own

    return value


def space(settings: SearchSettings = SETTINGS, runs: Sequence[str] = ("small",)) -> Space:
    return Space(settings, {run: dict.fromkeys(TIMES, WIDE) for run in runs}, WIDE)


def run(value: Callable[[Candidate, range], float], where: Space | None = None) -> tuple[Search, Recorded]:
    objective = Recorded(value)
    search = Search(where or space(), objective, lambda path: None)
    search.run()
    return search, objective


def grid(where: Space) -> list[Candidate]:
    """The exhaustive grid of the lattice, made without the code under test."""
    weights = [round(1 + 0.1 * k, 6) for k in range(26)]
    lengths = [round(0.01 * k, 6) for k in range(1, 26)]
    product = itertools.product(where.guides, TIMES, weights, lengths, lengths)
    return [Candidate(name, kimg, w, m, g) for name, kimg, w, m, g in product]


# --- The algorithm ---------------------------------------------------------------------------------------------


def test_the_search_ends_at_the_minimum_of_an_exhaustive_grid() -> None:
    everything = grid(space())
    assert space().size() == len(everything)
    search, objective = run(lambda c, seeds: bowl(c) + 60 / len(seeds))
    best = [row.candidate for row in search.path if row.accepted][-1]
    assert best == min(everything, key=bowl)
    assert objective.images <= len(everything) * 256 / 5


@pytest.mark.parametrize("seed", range(5))
def test_paired_noise_that_is_larger_than_the_differences_does_not_mislead(seed: int) -> None:
    value = noisy(seed)
    objective = Recorded(value, error=0.05 / 16)
    best = Search(space(), objective, lambda path: None).run()[0].candidate
    coarse = [c for c in grid(space()) if c.guidance in (1.2, 1.6, 2.0, 2.4) and {c.main_ema, c.guide_ema} <= COARSE]
    blocks = [value(best, range(start, start + 256)) for start in range(0, 256 * 40, 256)]
    assert np.std(blocks) > 5 * (bowl(best) - 0.4), "values of single blocks spread far more than what is found"
    assert bowl(best) - min(map(bowl, coarse)) <= 0.012
    assert objective.images <= len(coarse) * 256 / 5


COARSE = {0.02, 0.06, 0.1, 0.14}


def test_every_path_is_the_same_again() -> None:
    assert run(noisy(1), space(runs=("small", "main")))[0].path == run(noisy(1), space(runs=("small", "main")))[0].path


def test_a_second_run_that_is_better_is_found() -> None:
    def value(c: Candidate, seeds: range) -> float:
        return bowl(c) - (0.1 if c.guide == "main" and c.kimg == 5 else 0)

    search, _ = run(value, space(runs=("small", "main")))
    assert next((r.candidate.guide, r.candidate.kimg) for r in reversed(search.path) if r.accepted) == ("main", 5)


def test_the_better_half_is_rounded_up_and_ties_go_to_the_first() -> None:
    assert better_half([3.0, 1.0, 2.0]) == [1, 2]
    assert better_half([1.0, 1.0, 1.0, 0.0]) == [3, 0]
    assert better_half([5.0]) == [0]


def test_a_race_halves_on_few_images_first_and_decides_on_all() -> None:
    """Four weights of one snapshot; the values by hand, those of few images misleading about the last two."""
    settings = replace(SETTINGS, seeds="0-7", fresh=["8-15"], first_guidance=[1.2, 1.4, 1.6, 1.8], finalists=2)
    table = {
        2: {1.2: 9.0, 1.4: 8.0, 1.6: 7.0, 1.8: 6.0},
        4: {1.6: 5.0, 1.8: 4.0},
        8: {1.8: 3.0},
    }
    where = Space(settings, {"small": {10: (0.1, 0.1)}}, (0.1, 0.1))
    search, _ = run(lambda c, seeds: table.get(len(seeds), {}).get(c.guidance, 10.0), where)
    first = [row for row in search.path if row.step == 1]
    seen = [(row.num_images, row.candidate.guidance, row.value, row.kept, row.accepted) for row in first]
    assert seen == [
        (2, 1.2, 9.0, False, False),
        (2, 1.4, 8.0, False, False),
        (2, 1.6, 7.0, True, False),
        (2, 1.8, 6.0, True, False),
        (4, 1.6, 5.0, False, False),
        (4, 1.8, 4.0, True, False),
        (8, 1.8, 3.0, True, True),
    ]
    assert [row.images for row in first] == [8, 8, 8, 8, 12, 12, 16]


def test_the_best_so_far_stays_in_a_race_that_it_loses_on_few_images() -> None:
    """At weight 1.6 few images look bad, all of them good: nothing replaces it."""

    def value(c: Candidate, seeds: range) -> float:
        here = c == Candidate("small", 10, 1.6, 0.1, 0.1)
        return 0.0 if here and len(seeds) == 8 else 9.0 if here else 1.0

    settings = replace(SETTINGS, seeds="0-7", fresh=["8-15"], first_guidance=[1.6], first_ema=0.1)
    where = Space(settings, {"small": {10: WIDE}}, WIDE)
    search, _ = run(value, where)
    assert [row.candidate.guidance for row in search.path if row.accepted] == [1.6]
    assert {row.stage for row in search.path} == {"screening", "level 1", "level 2", "level 3", "fresh seeds"}


def test_gains_within_their_standard_error_are_taken_but_not_pursued() -> None:
    """Along a slope of 0.1 per 0.4 of weight: pursued to the range's end, or one step per level."""

    def slope(c: Candidate, seeds: range) -> float:
        return 10 - 0.25 * c.guidance

    settings = replace(SETTINGS, first_guidance=[1.4], guidance_steps=[0.4, 0.2, 0.1])
    where = Space(settings, {"small": {10: (0.1, 0.1)}}, None)
    weights = []
    for error in (0.02, 0.2):
        search = Search(where, Recorded(slope, error), lambda path: None)
        search.run()
        weights.append([row.candidate.guidance for row in search.path if row.accepted])
    assert weights[0] == [1.4, 1.8, 2.2, 2.6, 3.0, 3.4, 3.5]
    assert weights[1] == [1.4, 1.8, 2.0, 2.1]


def test_only_values_of_equal_seeds_are_compared() -> None:
    search, _ = run(noisy(0))
    for _, rows in itertools.groupby(search.path, key=lambda row: (row.step, row.num_images, row.seeds)):
        values = {row.candidate: row for row in rows}
        kept = [row.value for row in values.values() if row.kept]
        assert all(row.seeds.startswith("0-") or row.stage == "fresh seeds" for row in values.values())
        assert not kept or min(row.value for row in values.values()) in kept


def test_the_winner_is_the_best_on_fresh_seeds_and_not_on_those_of_the_search() -> None:
    lucky = Candidate("small", 10, 1.6, 0.06, 0.1)

    def value(c: Candidate, seeds: range) -> float:
        return bowl(c) - 1 if c == lucky and seeds.start == 0 else bowl(c) + (1 if c == lucky else 0)

    finalists = Search(space(), Recorded(value), lambda path: None).run()
    assert len(finalists) == SETTINGS.finalists
    assert finalists[-1].candidate == lucky
    assert finalists[-1].search == min(f.search for f in finalists)
    assert [f.mean for f in finalists] == sorted(f.mean for f in finalists)
    assert all(len(f.fresh) == 2 for f in finalists)


def test_neighbours_are_one_step_away_within_the_ranges() -> None:
    where = Space(SETTINGS, {"small": {5: (0.04, 0.1), 20: WIDE}, "main": {10: WIDE}}, (0.05, 0.25))
    found = where.neighbours(Candidate("small", 20, 1.0, 0.06, 0.12), level=1)
    assert found == [
        Candidate("small", 20, 1.2, 0.06, 0.12),
        Candidate("small", 20, 1.0, 0.05, 0.12),
        Candidate("small", 20, 1.0, 0.08, 0.12),
        Candidate("small", 20, 1.0, 0.06, 0.10),
        Candidate("small", 20, 1.0, 0.06, 0.14),
        Candidate("small", 5, 1.0, 0.06, 0.1),  # the longest EMA that this snapshot has
        Candidate("main", 10, 1.0, 0.06, 0.12),
    ]
    fixed = Space(SETTINGS, {"small": {5: WIDE}}, None)
    assert all(c.main_ema is None for c in fixed.neighbours(Candidate("small", 5, 1.5, None, 0.1), 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fresh": ["256-383"]}, "differ in length"),
        ({"fresh": ["128-383"]}, "overlap"),
        ({"fresh": []}, "fresh"),
        ({"seeds": "0-6", "fresh": ["7-13"]}, "halved"),
        ({"guidance_steps": [0.1, 0.4, 0.2]}, "falling"),
        ({"ema_steps": [0.01]}, "as many"),
        ({"guidance": [3.0, 1.0]}, "[least, greatest]"),
        ({"first_guidance": [9.0]}, "first_guidance"),
        ({"first_ema": 0.5}, "first_ema"),
        ({"wieght": 1}, "unknown key wieght"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, Any], message: str) -> None:
    given = {"seeds": "0-255", "fresh": ["256-511"], "guidance_steps": [0.4, 0.2, 0.1], "ema_steps": [0.04, 0.02, 0.01]}
    with pytest.raises(InputError) as caught:
        build(SearchSettings, given | change)
    assert message in str(caught.value)


# --- From the command line -------------------------------------------------------------------------------------


def write_runs(folder: Path) -> None:
    """Two untrained runs with snapshots at 1,024 to 4,096 images; their weights drift from one to the next."""
    for number, (name, channels) in enumerate((("main", 16), ("small", 8))):
        torch.manual_seed(number)
        network = Precond(
            16, 1, 10, model_channels=channels, channel_mult=[1], num_blocks=1, attn_resolutions=[], channels_per_head=8
        )
        network.unet.out_gain.data.fill_(0.5)
        for nimg, std in itertools.product(range(1024, 4097, 1024), (0.05, 0.10)):
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(0.05 * torch.randn_like(p))
            metadata = {"nimg": nimg, "ema_std": std}
            path = folder / f"{name}-run" / snapshots.format_name(name, nimg // 1000, std)
            snapshots.save(Snapshot(network, RGBEncoder(), metadata), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an active study whose data and training runs are at hand, and search settings."""
    folder = tmp_path_factory.mktemp("guide")
    training = {"data": "mini-digits", "train": {}}
    study = {
        "study": "mini",
        "launcher": "python",
        "toy": {},
        "data": {"mini-digits": {"kind": "digits"}},
        "networks": {"main-run": training, "small-run": training},
        "reconstruct": {},
        "sampler": {"num_steps": 2, "batch_size": 8, "shard_size": 16},
        "evaluate": {"detectors": ["digits"]},
        "generate": {
            "mini-reported": {
                "method": "unguided",
                "main": "main-run/m",
                "guide": "main-run/m",
                "guidance": 1.0,
                "data": "mini-digits",
                "seeds": ["8000-8007"],
            }
        },
        "sweeps": {},
    }
    settings = {
        "seeds": "0-31",
        "fresh": ["32-63", "64-95"],
        "rungs": 2,
        "finalists": 2,
        "guidance_steps": [0.5],
        "ema_steps": [0.05],
        "first_guidance": [1.5],
        "first_ema": 0.1,
        "guide_kimg": [1, 2],
        "ema": [0.05, 0.10],
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(study))
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    out = folder / "out" / "mini"
    digits.prepare(out / "data" / "mini-digits", digits.DigitSettings(num_reference=256, classifier_steps=3))
    write_runs(out / "networks")
    return folder


COMMAND = ["guide", "--main", "main-run", "--guide", "small-run", "--guide", "main-run", "--data", "mini-digits"]
COMMAND += ["--settings", "settings.yaml", "--out"]


def start(folder: Path, out: str, *launcher: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "repro", *COMMAND, out]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def whole(made: Path) -> Path:
    """The outputs of a search that nothing disturbed."""
    finish(start(made, "whole"))
    return made / "whole"


def features(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.glob("features/*/*.npy"))}


def test_a_search_leaves_path_figure_summary_and_entries_for_a_study(made: Path, whole: Path) -> None:
    path, finalists = pd.read_csv(whole / "path.csv"), pd.read_csv(whole / "finalists.csv")
    assert set(path["metric"]) == {"fd_digits"}
    assert path["images"].is_monotonic_increasing
    assert path["main_sha256"].str.len().eq(64).all()
    assert set(path["guide"]) == {"small", "main"}
    assert finalists["mean"].is_monotonic_increasing
    assert path.loc[path["seeds"] == "32-63", "num_images"].eq(32).all()
    assert {"path.png", "path.svg", "study.yaml", "summary.md"} <= {p.name for p in whole.iterdir()}
    assert f"{path['images'].max():,} images" in (whole / "summary.md").read_text()
    study = yaml.safe_load((made / "params.yaml").read_text())
    entries = yaml.safe_load((whole / "study.yaml").read_text())
    for section in ("reconstruct", "generate"):
        study[section] |= entries[section]
    item = build(studies.Study, study).generate["best-autoguidance"]
    assert item.guidance == finalists["guidance"][0]
    assert item.guide.endswith(f"{finalists['guide_ema'][0]:.3f}.safetensors")


def test_images_on_record_are_those_that_were_sampled(whole: Path) -> None:
    stored = sum(len(np.load(path)) for path in whole.glob("features/*/*.npy"))
    assert pd.read_csv(whole / "path.csv")["images"].max() == stored


def test_a_killed_search_goes_on_and_ends_with_the_same_path(made: Path, whole: Path) -> None:
    process = start(made, "killed")
    deadline = time.monotonic() + 60
    while len(features(made / "killed")) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = features(made / "killed")
    assert 4 <= len(before) < len(features(whole))
    finish(start(made, "killed"))
    after = features(made / "killed")
    assert {name: after[name] for name in before} == before, "nothing was sampled again"
    assert after.keys() == features(whole).keys()
    assert (made / "killed" / "path.csv").read_bytes() == (whole / "path.csv").read_bytes()


def test_a_finished_search_samples_nothing(made: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, made / "again")
    before = features(made / "again")
    run_guide(made, monkeypatch, folder=Path("again"))
    assert features(made / "again") == before


def test_two_processes_take_the_same_path(made: Path, whole: Path) -> None:
    finish(start(made, "shared", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"))
    for name in ("path.csv", "finalists.csv", "study.yaml"):
        assert (made / "shared" / name).read_bytes() == (whole / name).read_bytes()


def run_guide(made: Path, monkeypatch: pytest.MonkeyPatch, **change: Any) -> str:
    """The search of COMMAND within this process, with something else than what works."""
    monkeypatch.chdir(made)
    given = {"main": "main-run", "guides": ["small-run", "main-run"], "data": "mini-digits", "detector": "digits"}
    given |= {"folder": Path("refused")}
    settings = replace(
        guide.load_settings(Path("settings.yaml")), **{k: v for k, v in change.items() if k not in given}
    )
    chosen = given | {k: v for k, v in change.items() if k in given}
    return guide.guide(studies.load(), **chosen, settings=settings)


# --- Mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"main": "mian-run"}, "did you mean 'main-run'"),
        ({"guides": ["small-run", "small-run"]}, "two runs have the name small"),
        (
            {"guides": ["out/mini/data/mini-digits"]},
            "expected the snapshots RUN-KIMG-STD of one training run, found none",
        ),
        ({"data": "digits"}, "neither a path nor an id of study mini"),
        ({"detector": "inception"}, "inception"),
        ({"guides": ["small-run"], "guide_kimg": [3, 7]}, "no snapshot at 7 kimg; there are snapshots at 1, 2, 3, 4"),
        ({"seeds": "4-35", "fresh": ["64-95"]}, "whole multiples of 8"),
        ({"seeds": "7976-8007"}, "generate.mini-reported reports some of them"),
        ({"guide_kimg": [1], "ema": [0.2, 0.25], "first_ema": 0.2}, "keep snapshots more often"),
        ({"guides": ["main-run"], "guide_kimg": [4]}, "nothing earlier than the main network"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(
    made: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run_guide(made, monkeypatch, **change)
    assert message in str(caught.value)
    assert not (made / "refused").exists()


def test_a_broken_feature_file_is_named(made: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, made / "broken")
    broken = next((made / "broken").glob("features/*/0-*.npy"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{broken.name}.*remove it"):
        run_guide(made, monkeypatch, folder=Path("broken"))


def test_a_fixed_main_network_has_no_ema_to_search(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = "out/mini/networks/main-run/main-0000004-0.050.safetensors"
    summary = run_guide(made, monkeypatch, main=main, guides=["small-run"], folder=Path("fixed"))
    assert "main EMA" not in summary
    assert set(pd.read_csv("fixed/path.csv")["main"]) == {Path(main).name}
    entry = yaml.safe_load(Path("fixed/study.yaml").read_text())["generate"]["best-autoguidance"]
    assert entry["main"] == f"main-run/{Path(main).name}"


def test_weight_one_is_the_same_for_every_guide(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_guide(made, monkeypatch, guidance=[1.0, 1.0], first_guidance=[1.0], folder=Path("unguided"))
    path = pd.read_csv("unguided/path.csv")
    assert path.groupby(["seeds", "main_ema"])["value"].nunique().eq(1).all()
    assert path["guide_sha256"].isna().all()
    stored = sum(len(np.load(p)) for p in Path("unguided").glob("features/*/*.npy"))
    assert path["images"].max() == stored


def test_rows_name_the_images_of_all_candidates_together() -> None:
    search, objective = run(noisy(2))
    assert isinstance(search.path[0], Row)
    assert search.path[-1].images == objective.images


def test_guides_are_halvings_of_the_training_and_never_the_main_network_itself(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    settings = replace(guide.load_settings(Path("settings.yaml")), guide_kimg=None)
    main, runs = guide.read_networks(studies.load(), "main-run", ["small-run", "main-run"])
    found = guide.space_of(main, runs, settings)
    assert {run: list(times) for run, times in found.guides.items()} == {"small": [1, 2, 4], "main": [1, 2]}
