"""What is installed is pinned."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins(name: str) -> dict[str, str]:
    """Package -> what its lock file says of it."""
    lines = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    return {line.split("==")[0]: line for line in lines if not line.startswith("#")}


def test_every_package_is_pinned_and_all_but_torch_s_own_by_digest() -> None:
    hashed, torch = pins("requirements.lock"), pins("requirements-torch.lock")
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashed.values())
    assert torch["torch"] == "torch==2.13.0"
    assert not hashed.keys() & torch.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    wanted = {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in texts} - {"autoguidance-repro"}  # type: ignore[index]
    assert wanted <= hashed.keys() | torch.keys()
