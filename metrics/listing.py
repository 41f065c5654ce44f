"""What there is to choose from: detectors, metrics, published references."""

from collections.abc import Callable, Iterable, Iterator

from tabulate import tabulate

from metrics.catalogue import REFERENCES
from metrics.detectors import DETECTORS
from metrics.detectors.weights import WEIGHTS, locate
from metrics.images import DATASETS
from metrics.measure import METRICS
from metrics.names import ALIASES, VALUES, space

Rows = Iterator[tuple[str, ...]]


def _detectors() -> Rows:
    yield "detector", "Fréchet distance", "for readers", "weights"
    for name in DETECTORS:
        found = locate(name) if name in WEIGHTS else None
        weights = str(found) if found else "downloaded when needed, or --weights" if name in WEIGHTS else "its own"
        yield name, space(name).distance, space(name).name.label, weights


def _metrics() -> Rows:
    yield "metric", "values", "reference", "what it is"
    for name, metric in METRICS.items():
        values = ", ".join(VALUES[x].label if x in VALUES else x for x in metric.values)
        needs = "features or images" if metric.needs_reference_features else "statistics are enough"
        needs += "".join(f", --{role}" for role in metric.needs_beside)
        of = f"; of {metric.detector} only" if metric.detector else ""
        yield name, values, needs, f"{metric.about}{of}"
    for alias, meant in ALIASES.items():
        yield alias, "", "", f"stands for {', '.join(meant)}"
    yield "all", "", "", "stands for whatever can be measured, and says what cannot and why"
    yield "NAME_DETECTOR", "", "", "any of these in one detector's features only: kid_dinov2; and fid, fd_dinov2, ..."


def _references() -> Rows:
    yield "reference", "images", "side", "detectors", "cited", "where it is from"
    for name, known in REFERENCES.items():
        detectors = ", ".join(known.detectors) + (", with images" if known.has_images else "")
        yield name, str(known.num_images), str(known.resolution), detectors, known.cited, known.url
    for name in DATASETS:
        yield name, "", "", "any", "", "the data set's images, which may also be measured"


#: Kind -> the lines of its table, the first one its heading.
KINDS: dict[str, Callable[[], Rows]] = {"detectors": _detectors, "metrics": _metrics, "references": _references}


def listing(kinds: Iterable[str]) -> str:
    """A table of each of the `kinds`, as text."""
    return "\n\n".join(tabulate([*KINDS[kind]()], tablefmt="plain", disable_numparse=True) for kind in kinds)
