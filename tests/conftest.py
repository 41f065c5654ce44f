"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden"


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
