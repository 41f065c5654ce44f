"""The command line in two gloo processes measures what one does, and shares its kept features."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = '''
import torch
from metrics import detectors

class Projection:
    """A fixed random projection of small images: a detector of 24 features."""
    name, dim = "projection", 24
    tags = {"detector": "projection", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}

    def __init__(self, **_):
        self.weight = torch.randn(24, 3 * 6 * 6, generator=torch.Generator().manual_seed(0))

    def __call__(self, images):
        return (images.float().flatten(1) / 128 - 1) @ self.weight.T / 10

detectors.register("projection", Projection)
'''


def run(arguments: list[str], processes: int, folder: Path) -> subprocess.CompletedProcess[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(several if processes > 1 else []), "-m", "metrics", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_agree_with_one_within_1e9_on_every_metric(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count, brightest in (("real", 1500, 204), ("fake", 2600, 200), ("test", 1100, 204)):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, brightest, (count, 6, 6, 3), dtype=np.uint8))
    (tmp_path / "projection_plugin.py").write_text(PLUGIN)
    arguments = ["evaluate", "fake.npz", "--ref", "real.npz", "--detectors", "projection"]
    arguments += ["--plugin", "projection_plugin", "--test", "test.npz"]
    arguments += ["--metrics", "fd,fd_infinity,kid,prdc,adm_precision_recall,vendi,authpct,ct"]
    arguments += ["--blocks", "2", "--error-blocks", "5", "--kid-subset-size", "200", "--workers", "0"]
    found = {}
    for processes in (1, 2):
        options = ["--cache", f"cache{processes}", "--json", f"{processes}.json"]
        finished = run([*arguments, *options], processes, tmp_path)
        assert finished.returncode == 0, finished.stderr
        report = json.loads((tmp_path / f"{processes}.json").read_text())
        assert report["processes"] == str(processes)
        found[processes] = {(r["metric"], r["subset"]): (r["value"], r["error"]) for r in report["results"]}
    assert len(found[1]) == 36  # twelve values of all images and of two blocks
    assert found[1].keys() == found[2].keys()
    for key, (value, error) in found[1].items():
        assert found[2][key][0] == pytest.approx(value, rel=1e-9), key
        assert found[2][key][1] == (None if error is None else pytest.approx(error, rel=1e-6)), key


@pytest.mark.slow
def test_one_process_uses_the_features_that_two_have_kept(tmp_path: Path) -> None:
    (tmp_path / "projection_plugin.py").write_text(PLUGIN)
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=pixels)
    arguments = ["features", "x.npz", "--detectors", "projection", "--plugin", "projection_plugin", "--workers", "0"]
    assert run([*arguments, "--cache", "kept", "--out", "two.npz"], 2, tmp_path).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npz")}
    assert run([*arguments, "--cache", "kept", "--out", "one.npz"], 1, tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npz")} == before
    assert len(before) == 3
    one, two = (np.load(tmp_path / f"{name}.npz")["projection/features"] for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
