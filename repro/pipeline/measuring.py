"""What samples are measured against, with what, and the rows of measured values."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metrics import detectors, features, references
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.measure import check_reference, measure
from metrics.names import qualified
from repro.data.kinds import FEATURES, REFERENCE
from repro.numerics import numerics
from repro.rows import Row, provenance, settings
from repro.sampling.shards import Manifest
from repro.strict import digest
from repro.study import Evaluate


def load_detectors(names: list[str], folder: Path, device: torch.device) -> dict[str, detectors.Detector]:
    """Detectors by name; weights that the reference in `folder` has brought along come from there.

    Raises InputError where no detector is asked for, or one's weights are missing.
    """
    if not names:
        raise InputError("evaluate.detectors is empty, so that nothing can be measured; name at least one")
    brought = {name: path for name in names if (path := folder / f"{name}.safetensors").exists()}
    return {name: detectors.load(name, weights=brought.get(name), device=str(device)) for name in names}


def load_reference(folder: Path, evaluate: Evaluate) -> references.Reference:
    """The reference in `folder` as the stage `reference` left it, its features only where a metric needs them.

    Raises InputError where it is missing or broken, or lacks a detector.
    """
    reference = references.load(folder / REFERENCE)
    assert reference is not None  # a statistics file is no image set
    if evaluate.options.needs_reference_features:
        kept, count = features.load(folder / FEATURES), evaluate.num_real
        sets = {
            name: FeatureSet.of(x.gather()[:count], x.tags, None if x.labels is None else x.labels[:count])
            for name, x in kept.items()
            if name in evaluate.detectors
        }
        reference = replace(reference, features=sets)
    check_reference(reference, evaluate.detectors, evaluate.options)
    return reference


def point_digest(
    pair: str, seeds: str, reference: references.Reference, evaluate: Evaluate, origin: dict[str, Any]
) -> str:
    """sha256 of all that decides what is measured of `seeds` of a pair (its digest) by detectors of `origin`."""
    return digest(pair, seeds, origin, evaluate.options, evaluate.num_real, reference.digest, numerics("metrics"))


def measured_rows(
    manifest: Manifest,
    sets: Mapping[str, FeatureSet],
    reference: references.Reference,
    evaluate: Evaluate,
    networks: Mapping[str, detectors.Detector],
    common: dict[str, Any],
) -> list[Row]:
    """One row per value of one seed block, of images made as `manifest` says, with features `sets` by detector.

    `networks` are the detectors, for metrics that ask them; `common` are columns that the study settles.
    """
    made = settings(manifest.configuration.guided) | provenance(torch.device(manifest.device_type)) | common
    return [
        Row(
            **made,
            metric=qualified(m.metric, name),
            value=m.value,
            num_images=m.num_images,
            num_steps=manifest.configuration.solver.num_steps,
            main_sha256=manifest.main_sha256,
            guide_sha256=manifest.guide_sha256 or "",
            detector=name,
            detector_sha256=str(sample.tags.get("weights_sha256", "")),
            reference_sha256=reference.digest,
        )
        for name, sample in sets.items()
        for m in measure(name, sample, reference, evaluate.options, networks.get(name))
    ]
