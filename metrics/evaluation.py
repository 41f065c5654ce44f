"""From images or features to measured values: what the command line, pipelines and training loops call.

results = evaluate("samples/", "img512")                              # files
evaluator = Evaluator("img512")                                       # inside a training loop
evaluator.add(batch)                                                  # uint8 [N, 3, H, W], any number of times
values = {m.metric: m.value for m in evaluator.result()}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics import distributed, features, images, references
from metrics.detectors import Detector, load
from metrics.files import InputError, sha256_file
from metrics.frechet import frechet_distance, paired_difference
from metrics.measure import Options, cautions, check_reference, measure
from metrics.names import space
from metrics.references import Reference
from metrics.results import Measurement, Results, environment
from metrics.statistics import ESSENTIAL, check_tags

#: What holds one image set.
Paths = str | Path | Sequence[str]


@dataclass(frozen=True)
class Extractor:
    """How images become features: detectors by name, loaded when first needed, and how to read and cache."""

    names: Sequence[str] = ("inception",)
    weights: Mapping[str, Path] = field(default_factory=dict)
    device: str | None = None
    cache: Path | None = None
    batch_size: int = 64
    num_workers: int | None = None
    skip_bad: bool = False
    #: Options of single detectors, such as {"dinov2": {"resize": "pil"}}.
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1")
        if stray := sorted(set(self.weights) - set(self.names)):
            raise InputError(f"weights given for '{stray[0]}', which is not among the detectors {list(self.names)}")

    @cached_property
    def detectors(self) -> dict[str, Detector]:
        device = self.device or str(distributed.device())
        return {x: load(x, self.weights.get(x), device, **self.settings.get(x, {})) for x in self.names}

    def read(
        self, source: Paths, num: int | None = None, seed: int | None = None, target: Reference | None = None
    ) -> Reference:
        """Features of an image set (anything `open_images` reads, or a list of such) or of a feature file.

        Takes `num` images, at random when a seed is given, else the first in sorted order. A reference `target` that
        was made otherwise than these detectors work is refused before images are read.
        """
        paths = _listed(source)
        name = ", ".join(paths)
        if len(paths) == 1 and references.holds_features(Path(name)):
            if num is not None:
                raise InputError(f"{name}: a subset is chosen when features are extracted, not from a feature file")
            return Reference(name, sha256_file(name), features=features.load(name)).check(self.names)
        if target is not None:
            for key, detector in self.detectors.items():
                check_tags({**detector.tags, "source": "the images"}, target.require(key).tags)
        whole = images.open_images(paths, self.skip_bad)
        opened = whole if num is None else whole.subset(num, seed)
        found = features.extract(opened, self.detectors, self.cache, self.batch_size, self.num_workers)
        tagged = {key: replace(x, tags={**x.tags, "source": name}) for key, x in found.items()}
        return Reference(name, opened.digest, features=tagged, warnings=opened.warnings)

    def reference(self, source: Paths | Reference, options: Options | None = None) -> Reference:
        """A reference from a statistics file, a registered name, a feature file, or images; one at hand as it is.

        Raises InputError when it cannot give what the options ask of these detectors.
        """
        if not isinstance(source, Reference):
            paths = _listed(source)
            source = (references.load(paths[0]) if len(paths) == 1 else None) or self.read(source)
        return check_reference(source, self.names, options or Options())


def _listed(source: Paths) -> list[str]:
    return [str(source)] if isinstance(source, str | Path) else list(source)


def evaluate(
    images: Paths,
    reference: Paths | Reference,
    detectors: Sequence[str] = ("inception",),
    metrics: Sequence[str] = ("fd",),
    *,
    num: int | None = None,
    seed: int | None = None,
    extractor: Extractor | None = None,
    options: Options | None = None,
) -> Results:
    """Measure one image set; the reference is read first, so that a wrong one costs no time.

    Every process must call this; the first gets the values, the others empty results.

    Args:
        images: folder, zip, tar, npz, or a file of features; or a list of such.
        reference: the same, a statistics file, or a registered name such as img512.
        detectors: names of `metrics.detectors.DETECTORS`; or an `extractor` of them with weights, device, cache.
        metrics: names of `metrics.measure.METRICS`; or `options` of them with their settings.
        num, seed: take `num` images, at random when a seed is given, else the first.

    Raises InputError when something cannot be read, found or measured.
    """
    extractor, options = extractor or Extractor(tuple(detectors)), options or Options(tuple(metrics))
    target = extractor.reference(reference, options)
    measured = extractor.read(images, num, seed, target)
    sets = {name: measured.features[name] for name in extractor.names}
    networks = extractor.detectors if options.needs_network else {}
    found = [m for name, x in sets.items() for m in measure(name, x, target, options, networks.get(name))]
    return _results(extractor, {"images": measured}, target, found)


def compare(
    extractor: Extractor, first: Paths, second: Paths, reference: Paths | Reference, num_blocks: int = 10
) -> Results:
    """Whether image set A or B is nearer to the reference, where image i of both has the same seed.

    The error of the difference is the jackknife's over blocks of seeds; the chance of A being nearer is by Student's t.
    """
    from scipy.special import stdtr  # slow to import

    if num_blocks < 2:
        raise InputError(f"the jackknife needs at least 2 blocks, found {num_blocks}")
    target = extractor.reference(reference)
    sides = {"A": extractor.read(first, target=target), "B": extractor.read(second, target=target)}
    found: list[Measurement] = []
    for name in extractor.names:
        metric, real = space(name).distance, target.require(name)
        for label, side in sides.items():
            fake = side.require(name)
            found.append(Measurement(metric, name, label, fake.num_images, frechet_distance(fake, real)))
        a, b = (side.features[name].gather() for side in sides.values())
        value, error = paired_difference(a, b, real, num_blocks)
        chance = float(stdtr(num_blocks - 1, -value / max(error, np.finfo(float).tiny)))
        found.append(Measurement(metric, name, "A - B", len(a), value, error, "jackknife"))
        found.append(Measurement(f"chance of A nearer by {metric}", name, "A - B", len(a), chance))
    return _results(extractor, sides, target, found)


class Evaluator:
    """Metrics of images that are fed batch by batch, for training loops; one process or several alike."""

    def __init__(
        self, reference: Paths | Reference, extractor: Extractor | None = None, options: Options | None = None
    ) -> None:
        self.extractor, self.options = extractor or Extractor(), options or Options()
        self.reference = self.extractor.reference(reference, self.options)
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in self.extractor.names}

    def add(self, batch: torch.Tensor) -> None:
        """Add uint8 images [N, 3, H, W]."""
        for name, detector in self.extractor.detectors.items():
            self.parts[name].append(detector(batch).cpu().numpy())

    def result(self) -> list[Measurement]:
        """Metrics of everything added since the start, in all processes together; empty but in the first."""
        found: list[Measurement] = []
        for name, parts in self.parts.items():
            detector, rank = self.extractor.detectors[name], distributed.rank()
            own = [len(part) for part in parts]
            counts = distributed.all_reduce_sum(sum(own) * np.eye(distributed.world_size())[rank])
            ends = np.cumsum(own, dtype=int) + int(counts[:rank].sum())
            held = {range(end - len(part), end): part for end, part in zip(ends.tolist(), parts, strict=True)}
            sample = features.FeatureSet(int(counts.sum()), detector.dim, held, dict(detector.tags), shared=True)
            found += measure(name, sample, self.reference, self.options, detector)
        return found


def _results(extractor: Extractor, sides: dict[str, Reference], target: Reference, found: list[Measurement]) -> Results:
    read = sides | {"reference": target}
    facts = dict(fact for x, side in read.items() for fact in ((x, side.source), (f"{x}_digest", side.digest)))
    facts |= environment(torch.device(extractor.device) if extractor.device else distributed.device())
    own = next((package.version for package in distributions(name="autoguidance-repro")), "source tree")
    facts |= {"versions": f"autoguidance-repro {own}, {facts['versions']}", "processes": str(distributed.world_size())}
    first, *_ = sides.values()
    tags = {x: {k: v for k, v in first.features[x].tags.items() if k in ESSENTIAL} for x in extractor.names}
    notes = [
        f"{label}: {text}" if len(sides) > 1 else text
        for name in extractor.names
        for label, side in sides.items()
        for text in cautions(name, side.features[name], target)
    ]
    warnings = [text for side in (target, *sides.values()) for text in side.warnings] + notes
    # Every detector sees to it that TF32 is off.
    return Results(found, list(dict.fromkeys(warnings)), facts | {"tf32": "off"}, tags)
