"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores, and so do the processes that they start: two threads each would take five
# times as long. Set before torch is imported.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

#: Files that take longest, which begin where files run side by side.
LONGEST = (
    *("test_pipeline.py", "test_sharing.py", "test_torture.py", "test_anchor.py", "test_cifar10_study.py"),
    *("test_stages.py", "test_extending.py"),
)
ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by `LONGEST`, and the others behind them as they were."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of oracles made with the authors' implementation on random weights."""
    return GOLDEN


@pytest.fixture(scope="session")
def inception_weights() -> Path:
    """Real Inception-v3 weights of the FID (87 MB), which lie beside the project where they are at hand."""
    path = ROOT.parent / "shared" / "weights" / "inception-2015-12-05-nofc.pth"
    if not path.exists():
        pytest.skip(f"the real Inception weights are not at {path}")
    return path
