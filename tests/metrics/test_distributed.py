"""Rank helpers: alone nothing happens; two gloo processes see each other and sum to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics import distributed
from metrics.files import InputError
from metrics.statistics import Moments

ROOT = Path(__file__).parents[2]

WORKER = """
import atexit, json, sys
import numpy as np
import torch
from pathlib import Path
from metrics import distributed
from metrics.statistics import Moments

def last():
    threads = (path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
    left = [name.strip() for name in threads if "gloo" in name]
    (Path(sys.argv[1]) / f"{rank}.left").write_text(f"{torch.distributed.is_initialized()} {left}")

atexit.register(last)
distributed.init()
distributed.init()
rank, world = distributed.rank(), distributed.world_size()
x = np.random.default_rng(0).normal(size=(1000, 6)) + 1e3
total = distributed.all_reduce_sum(np.array([1.0, 2.0 ** 60, rank]))
stats = Moments(6).update(x[rank::world]).reduce().finalize()
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps({
    "rank": rank, "world": world, "total": total.tolist(), "dtype": str(total.dtype),
    "mu": stats.mu.tolist(), "sigma": stats.sigma.tolist(), "n": stats.num_images, "device": str(distributed.device()),
}))
distributed.barrier()
distributed.print0("from", rank, "both there:", sorted(p.name for p in Path(sys.argv[1]).glob("*.json")))
"""


def test_alone_every_call_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    distributed.init()
    distributed.barrier()
    array = np.array([1.0, np.pi])
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.all_reduce_sum(array).tolist() == [1.0, np.pi]
    distributed.print0("hello", 1)
    assert capsys.readouterr().out == "hello 1\n"


def test_two_processes_agree_with_each_other_and_with_one(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    run = subprocess.run(
        [*launcher, str(tmp_path / "worker.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout == "from 0 both there: ['0.json', '1.json']\n"
    assert [(tmp_path / f"{rank}.left").read_text() for rank in range(2)] == ["False []"] * 2
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert first == second
    assert first["world"] == 2
    assert first["total"] == [2.0, 2.0**61, 1.0]
    assert first["dtype"] == "float64"
    assert first["device"] == "cpu"
    alone = Moments(6).update(np.random.default_rng(0).normal(size=(1000, 6)) + 1e3).finalize()
    assert first["n"] == alone.num_images == 1000
    np.testing.assert_allclose(first["mu"], alone.mu, rtol=1e-12)
    np.testing.assert_allclose(first["sigma"], alone.sigma, rtol=1e-9, atol=1e-12)


def test_every_process_has_a_gpu_of_its_own_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"process 2 has no GPU of its own: 2 here"):
        distributed.device()
