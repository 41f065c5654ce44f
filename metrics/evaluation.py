"""From images or features to measured values: what the command line, pipelines and training loops call.

results = evaluate("samples/", "img512", metrics=("fid", "kid"))      # files
results = evaluate(images, "img512")                                  # uint8 [N, 3, H, W], or a loader, a generator
values = {m.metric: m.value for m in results.measurements}

`metrics.evaluator` is for training loops.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from metrics import distributed, features, images, references, sizes, streams
from metrics.detectors import DETECTORS, Detector, load
from metrics.detectors.weights import NETWORKS
from metrics.files import InputError
from metrics.frechet import check_paired, frechet_distance, paired_difference
from metrics.images import NAME, is_array
from metrics.measure import METRICS, Options, cautions, check_beside, check_reference, measure, said
from metrics.names import space
from metrics.references import Reference
from metrics.results import Failure, Measurement, Results, environment, version
from metrics.sides import Side, plan
from metrics.statistics import ESSENTIAL

#: What holds one image set: paths; an array or tensor; whatever `metrics.images.batches` goes through; or features.
Paths = str | Path | Sequence[str | Path]
Images = Any


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
        if not self.names:
            raise InputError(f"no detector is asked for; choose from {', '.join(DETECTORS)}")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1")
        if stray := sorted(set(self.weights) - {*self.names, *(NETWORKS.get(x) for x in self.names)}):
            raise InputError(f"weights given for '{stray[0]}', which is not among the detectors {list(self.names)}")

    @cached_property
    def detectors(self) -> dict[str, Detector]:
        device = str(distributed.device(self.device or ""))
        weights = {x: self.weights.get(x, self.weights.get(NETWORKS.get(x, x))) for x in self.names}
        return {x: load(x, weights[x], device, **self.settings.get(x, {})) for x in self.names}

    def open(self, source: Images, num: int | None = None, seed: int | None = None) -> Side:
        """An image set (see `evaluate`) or a feature file, with no image decoded; but of batches the features are made.

        Takes `num` images, at random when a seed is given, else the first in sorted order; of features, which need no
        image for it, the same ones.
        """
        if seed is not None and num is None:
            raise InputError(f"seed is {seed} without num, expected both: it draws so many images at random")
        if isinstance(source, Reference):
            if num is not None:
                raise InputError(f"{source.source}: a subset is taken of images or files, not of what was read before")
            if lost := [x for x in self.names if x not in source.features]:
                raise InputError(f"{source.source}: holds no features of '{lost[0]}'; give images or features")
            return Side(source.source, kept=source.check(self.names))
        if images.is_array(source):
            held = images.open_array(source)
            return Side(images.NAME, held if num is None else held.subset(num, seed))
        if not _is_paths(source):
            _check_first(seed)
            found = streams.extract(images.batches(source, self.batch_size, num), self.detectors)
            return Side(images.NAME, kept=found)
        paths = _listed(source)
        name = ", ".join(paths)
        if len(paths) != 1 or not references.holds_features(Path(name)):
            whole = images.open_images(paths, self.skip_bad)
            return Side(name, whole if num is None else whole.subset(num, seed))
        found = references.load_features(name).check(self.names)
        if num is not None:
            rows, notes = images.choose(name, next(iter(found.features.values())).num_images, num, seed)
            found = replace(found, features={key: x.subset(rows) for key, x in found.features.items()}, warnings=notes)
        return Side(name, kept=found)

    def open_reference(self, source: Images, options: Options | None = None) -> Side:
        """A statistics file, a published name, a feature file, or images; or a reference at hand.

        Images that lie beside statistics serve where the options may want features.
        """
        if not isinstance(source, Reference):
            paths = _listed(source) if _is_paths(source) else []
            found = references.load(paths[0]) if len(paths) == 1 else None
            if found is None:
                return self.open(source)
            source = found
        is_wanted = options is not None and any(options.uses_reference_features(name) for name in self.names)
        is_wanted = is_wanted and not source.features
        some = images.open_images(source.images, self.skip_bad) if source.images and is_wanted else None
        return Side(source.source, some, source.check(self.names))

    def extract(self, side: Side) -> Reference:
        """Its features, or what is kept of them."""
        if side.images is None:
            assert side.kept is not None
            return side.kept
        found = features.extract(side.images, self.detectors, self.cache, self.batch_size, self.num_workers)
        tagged = {key: replace(x, tags={**x.tags, "source": side.name}) for key, x in found.items()}
        if side.kept is not None:
            return replace(side.kept, features=tagged, warnings=[*side.kept.warnings, *side.images.warnings])
        return Reference(side.name, side.images.digest, features=tagged, warnings=side.images.warnings)

    def read(self, source: Images, num: int | None = None, seed: int | None = None) -> Reference:
        """Features of what `open` opens."""
        return self.extract(self.open(source, num, seed))

    def reference(self, source: Images, options: Options | None = None) -> Reference:
        """What `open_reference` opens, read; InputError when it cannot give what the options ask of these detectors."""
        options = options or Options()
        return check_reference(self.extract(self.open_reference(source, options)), self.names, options)


def _check_first(seed: int | None) -> None:
    if seed is not None:
        raise InputError("batches have no random subset; give an array or a path, or take the first ones")


def _listed(source: Paths) -> list[str]:
    return [str(source)] if isinstance(source, str | Path) else [str(path) for path in source]


def _is_paths(source: Images) -> bool:
    return isinstance(source, str | Path) or (
        isinstance(source, list | tuple) and all(isinstance(path, str | Path) for path in source)
    )


def settled(
    detectors: Sequence[str], metrics: Sequence[str], extractor: Extractor | None, options: Options | None
) -> tuple[Extractor, Options]:
    """The extractor and options that are meant, see `evaluate`."""
    options = (options or Options(tuple(metrics))).bound(extractor.names if extractor else detectors)
    return extractor or Extractor(options.detectors), options


def evaluate(
    images: Images,
    reference: Images,
    detectors: Sequence[str] = ("inception",),
    metrics: Sequence[str] = ("fd",),
    *,
    num: int | None = None,
    seed: int | None = None,
    train: Paths | None = None,
    test: Paths | None = None,
    extractor: Extractor | None = None,
    options: Options | None = None,
) -> Results:
    """Measure one image set.

    What cannot be measured is found before an image is decoded. Every process must call this; the first gets the
    values, the others empty results.

    Args:
        images: folder, zip, tar, npz, or a file of features; or a list of such, measured as one set; or a tensor uint8
            [N, 3, H, W] or an array [N, H, W, 3], the same in every process; or a loader, a generator or a list that
            gives such batches or single images, with labels behind them or not, of which each process gives its share.
        reference: the same, a statistics file, or a published name such as img512.
        detectors: names of `metrics.detectors.DETECTORS`, in whose features metrics that name no detector are
            measured; or an `extractor` of them with weights, device, cache.
        metrics: names of `metrics.measure.METRICS`, or of values (`fid`, `fd_dinov2`), or `all`; or `options` of them
            with their settings.
        num, seed: take `num` images, at random when a seed is given, else the first.
        train, test: images or features that metrics of memorisation compare with; `train` None: the reference.

    Raises InputError when something cannot be read, found or measured.
    """
    extractor, options = settled(detectors, metrics, extractor, options)
    beside: dict[str, Images] = {role: paths for role, paths in (("train", train), ("test", test)) if paths is not None}
    if not (_is_paths(images) or is_array(images) or isinstance(images, Reference)):
        # Batches are made only once, so what speaks against measuring them is looked for first.
        _check_first(seed)
        target = extractor.open_reference(reference, options)
        check_beside(beside, options)
        others = {role: extractor.open(paths) for role, paths in beside.items()}
        plan(Side(NAME), target, options.detectors, options, extractor.detectors, others)
        reference, beside = extractor.extract(target), {role: extractor.extract(side) for role, side in others.items()}
    return evaluate_sets([images], reference, extractor, options, num, seed, beside=beside)


def evaluate_sets(
    sets: Sequence[Images],
    reference: Images,
    extractor: Extractor,
    options: Options,
    num: int | None = None,
    seed: int | None = None,
    strict_size: bool = False,
    beside: Mapping[str, Images] | None = None,
) -> Results:
    """Measure several image sets against one reference, as `evaluate` does one; with `num` and `seed` so many of each.

    What fails although nothing spoke against it is among `missing` of the results, with the rest measured; where
    nothing is left that is an InputError. With `strict_size` sizes that `metrics.sizes.cautions` warns of are one too.
    `beside` are further sets to compare with, by role: see `Reference.beside`.
    """
    check_beside(beside or {}, options)
    target = extractor.open_reference(reference, options)
    sides = [extractor.open(images, num, seed) for images in sets]
    if len(sides) > 1:  # what is given in memory has no name
        sides = [replace(x, name=f"{NAME}, {i}") if x.name == NAME else x for i, x in enumerate(sides, 1)]
    others = {role: extractor.open(paths) for role, paths in (beside or {}).items()}
    if len({side.name for side in sides}) < len(sides):
        raise InputError(f"{', '.join(side.name for side in sides)}: one set is given twice; name each once")
    options = options.bound(extractor.names)
    names = options.detectors
    if unasked := sorted({*names} - {*extractor.names}):
        raise InputError(
            f"{', '.join(options.metrics)}: '{unasked[0]}' is not among the detectors {[*extractor.names]}"
        )
    for side in sides:  # what needs no network to be found out costs no time
        plan(side, target, names, options, None, others)
    makes_features = any(side.images is not None for side in (target, *sides, *others.values()))
    networks = extractor.detectors if makes_features or options.needs_network else {}
    plans = [plan(side, target, names, options, networks, others) for side in sides]
    notes = _sizes(sides, target, strict_size) + [text for _, left_out in plans for text in left_out]
    real = replace(extractor.extract(target), beside={role: extractor.extract(side) for role, side in others.items()})
    measured, found, missing = dict[str, Reference](), list[Measurement](), list[Failure]()
    for side, (asked, _) in zip(sides, plans, strict=True):
        try:
            fake = extractor.extract(side)
            for name, metrics in asked.items():
                failures: list[Failure] = []
                wanted = replace(options, metrics=metrics) if metrics else None
                values = wanted and measure(name, fake.features[name], real, wanted, networks.get(name), failures)
                found += [replace(value, images=side.name) for value in values or ()]
                missing += [replace(failure, images=side.name) for failure in failures]
            measured[side.name] = fake
        except Exception as err:
            # Of several processes the others would wait for one that goes on alone.
            if len(sides) == 1 or distributed.world_size() > 1 or "REPRO_DEBUG" in os.environ:
                raise
            missing.append(Failure("", "", "", said(err), side.name))
    if missing and not found and distributed.rank() == 0:
        raise InputError(missing[0].why)
    facts = {
        side.name: {"images_digest": measured[side.name].digest, "images_size": _written(side)}
        for side in sides
        if side.name in measured
    }
    return replace(_results(extractor, measured, real, target, found, notes), sets=facts, missing=missing)


def compare(
    extractor: Extractor,
    first: Images,
    second: Images,
    reference: Images,
    num_blocks: int = 10,
    strict_size: bool = False,
) -> Results:
    """Whether image set A or B is nearer to the reference, where image i of both has the same seed.

    The error of the difference is the jackknife's over blocks of seeds; the chance of A being nearer is by Student's t.
    """
    from scipy.special import stdtr  # slow to import

    if num_blocks < 2:
        raise InputError(f"the jackknife needs at least 2 blocks, found {num_blocks}")
    target, names = extractor.open_reference(reference), tuple(extractor.names)
    opened = {"A": extractor.open(first), "B": extractor.open(second)}
    makes_features = any(side.images is not None for side in (target, *opened.values()))

    def check(networks: Mapping[str, Detector] | None) -> None:
        for side in opened.values():
            plan(side, target, names, Options(error_blocks=num_blocks), networks)
        for name in names:
            check_paired(*(side.count(name) for side in opened.values()))

    check(None)  # what needs no network to be found out costs no time
    check(extractor.detectors if makes_features else {})
    notes = _sizes([*opened.values()], target, strict_size)
    for one in opened.values():
        if one.images is not None and (bad := one.images.skipped):
            raise InputError(f"{one.name}: images that cannot be used leave the others without a partner: {bad[0]}")
    real = extractor.extract(target)
    sides = {label: extractor.extract(side) for label, side in opened.items()}
    found: list[Measurement] = []
    for name in names:
        metric, statistics = space(name).distance, real.require(name)
        for label, side in sides.items():
            fake = side.require(name)
            found.append(Measurement(metric, name, label, fake.num_images, frechet_distance(fake, statistics)))
        a, b = (side.features[name].gather() for side in sides.values())
        value, error = paired_difference(a, b, statistics, num_blocks)
        chance = float(stdtr(num_blocks - 1, -value / max(error, np.finfo(float).tiny)))
        found.append(Measurement(metric, name, "A - B", len(a), value, error, "jackknife"))
        found.append(Measurement(f"chance of A nearer by {metric}", name, "A - B", len(a), chance))
    results = _results(extractor, sides, real, target, found, notes)
    facts = {
        key: value
        for x, side in sides.items()
        for key, value in ((x, side.source), (f"{x}_digest", side.digest), (f"{x}_size", _written(opened[x])))
    }
    return replace(results, facts=facts | results.facts)


def _written(side: Side) -> str:
    return str(side.size or "")


def _sizes(sides: Sequence[Side], target: Side, strict: bool) -> list[str]:
    """What the sizes of images do to a distance; with `strict` an InputError. Checks every image that there is."""
    found = [text for side in sides for text in sizes.cautions(side.name, side.size, target.name, target.size)]
    if strict:
        sizes.refuse(found)
    return found


def _results(
    extractor: Extractor,
    sides: Mapping[str, Reference],
    real: Reference,
    target: Side,
    found: list[Measurement],
    notes: Sequence[str],
) -> Results:
    facts = {"reference": real.source, "reference_digest": real.digest, "reference_size": _written(target)}
    for role in ("train", "test"):
        takers = {value for metric in METRICS.values() if role in metric.needs_beside for value in metric.values}
        by_default = real if takers & {m.metric for m in found} else None  # only the training set has one
        side = real.beside.get(role, by_default)
        facts |= {role: side.source if side else "", f"{role}_digest": side.digest if side else ""}
    facts |= environment(distributed.device(extractor.device or ""))
    facts |= {"versions": f"autoguidance-repro {version()}, {facts['versions']}"}
    facts |= {"processes": str(distributed.world_size()), "tf32": "off"}  # every detector sees to that
    first, *_ = sides.values()
    tags = {x: {k: v for k, v in y.tags.items() if k in ESSENTIAL} for x, y in first.features.items()}
    told = [
        f"{label}: {text}" if len(sides) > 1 else text
        for label, side in sides.items()
        for name in dict.fromkeys(m.detector for m in found)
        for text in cautions(name, side.features[name], real)
    ]
    read = (real, *real.beside.values(), *sides.values())
    warnings = [text for side in read for text in side.warnings] + [*notes, *told]
    return Results(found, list(dict.fromkeys(warnings)), facts, tags)
