"""The numerics versions of `numerics.yaml` as parts of digests."""

from functools import cache
from pathlib import Path

from metrics.documents import read_yaml


@cache
def numerics(subject: str) -> dict[str, int]:
    """What a digest of `subject` holds of its version: nothing as long as that is the first one."""
    version = read_yaml(Path(__file__).with_name("numerics.yaml"))[subject]
    return {} if version == 1 else {"numerics": version}
