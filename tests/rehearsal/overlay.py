"""What a rehearsal changes in a study: where files come from, how many images, and which detectors."""

import copy
import re
from collections.abc import Iterator
from typing import Any

from tests.rehearsal.fixtures import HUB
from tests.rehearsal.standin import DIMS, DISTANCES

DETECTORS = dict(zip(DIMS, ("fid", "fd_dinov2"), strict=True))
BLOCKS = ["0-7", "8-15", "16-23"]  # of one batch, since batches are always sampled whole
CURVE_BLOCKS = ["150016-150019", "150020-150023"]
ALLOWED = (
    r"sources|hub|plugins",
    r"evaluate\.detectors",
    r"data\.[^.]+\.settings\.detectors\.[^.]+",
    r"(generate|tuned|sweeps)\.[^.]+\.seeds",
    r"tuning\.(seeds|metric)",
    r"tuned\.[^.]+\.guide_degradations\.sliding_window",
)


def overlay(study: dict[str, Any], base: str) -> dict[str, Any]:
    """A study's YAML as it is rehearsed against the server at `base`."""
    found = copy.deepcopy(study)
    found |= {"sources": [base], "hub": [base + HUB], "plugins": ["tests.rehearsal.standin"]}
    found["evaluate"]["detectors"] = list(DETECTORS)
    for data in found["data"].values():
        data["settings"]["detectors"] = dict(DETECTORS)
    for configuration in found["generate"].values():
        configuration["seeds"] = BLOCKS[: len(configuration["seeds"])]
    for tuned in found.get("tuned", {}).values():
        tuned["seeds"] = BLOCKS[:1]
        if "sliding_window" in tuned.get("guide_degradations", {}):
            tuned["guide_degradations"]["sliding_window"] = [4, 2]  # of images of 8
    if "tuned" in found:
        found["tuning"] |= {"seeds": CURVE_BLOCKS[0], "metric": DISTANCES["stand-in-inception"]}
    for number, sweep in enumerate(found["sweeps"].values()):
        several = number == 0  # one curve with a band is enough: every point of every block is a batch of its own
        sweep["seeds"] = CURVE_BLOCKS[: len(sweep["seeds"]) if several else 1]
    return found


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Dotted paths at which two trees of mappings differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            missing = object()
            yield from differences(one.get(key, missing), other.get(key, missing), f"{where}.{key}".lstrip("."))
    elif one != other or type(one) is not type(other):
        yield where


def forbidden(study: dict[str, Any], rehearsed: dict[str, Any]) -> list[str]:
    """Where a rehearsed study differs from the real one, and must not."""
    return sorted(
        where for where in differences(study, rehearsed) if not any(re.fullmatch(pattern, where) for pattern in ALLOWED)
    )
