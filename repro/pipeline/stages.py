"""The pipeline's stages: each reads the active study and fills its own output folder, under a lock."""

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from metrics import distributed
from metrics.files import atomic_write, folder_lock, link_or_copy, sha256_file, write_text
from repro import ema, snapshots, toy, training
from repro.data import digits, imagesets
from repro.pipeline import acquire, standin
from repro.pipeline.evaluate import (
    FEATURES,
    Reference,
    block_features,
    extract_shards,
    feature_format,
    feature_manifest,
    rows,
    write_rows,
)
from repro.sampling.shards import (
    CODE_SUFFIX,
    Configuration,
    Pair,
    generate,
    image_grid,
    load_code,
    load_pair,
    plan_shards,
    read_manifest,
    read_shard,
    shard_name,
)
from repro.study import OUT, Generate, PublishedReference, Study, Sweep, build, parse_seeds

MEASURES = "measures.csv"
standin.register()
PREVIEW = 64  # images kept of each configuration for the report


def run_toy(study: Study, key: str) -> None:
    """The 2D example: networks, samples, measures, figures."""
    settings = build(toy.ToySettings, study.toy[key], f"toy.{key}")
    folder = study.out / "results" / key
    with folder_lock(folder):
        toy.run(settings, folder, study.study)


def run_data(study: Study, key: str) -> None:
    """A data set's images or feature network, and its reference statistics."""
    item = study.data[key]
    folder = study.out / "data" / key
    with folder_lock(folder):
        if item.kind == "reference":
            acquire.reference(study, build(PublishedReference, item.settings), folder)
            return
        if item.kind == "digits":
            digits.prepare(folder, build(digits.DigitSettings, item.settings, f"data.{key}.settings"))
            return
        imagesets.measure(imagesets.prepare(study, key), study.evaluate.detectors, folder)


def run_networks(study: Study, key: str) -> None:
    """Train one run, fetch its published networks, or point to the user's own code."""
    item = study.networks[key]
    folder = study.out / "networks" / key
    if item.files():
        with rank0_lock(folder):
            if distributed.rank() == 0:
                acquire.networks(study, item, folder)
            distributed.barrier()
        return
    if item.code is not None:
        load_code(item.code)  # better now than after hours
        write_text(folder / f"{key}{CODE_SUFFIX}", item.code + "\n")
        return
    assert item.data is not None  # the study was checked
    config = build(training.TrainingConfig, item.train, f"networks.{key}.train")
    dataset = imagesets.training_data(study, item.data)
    with rank0_lock(folder):
        training.train(config, dataset, folder)


def run_reconstruct(study: Study, key: str) -> None:
    """Post-hoc EMA lengths of one run; what stands is not made again."""
    item = study.reconstruct[key]
    source, folder = study.out / "networks" / item.source, study.out / "networks" / key
    paths = sorted(source.glob("*.safetensors"))
    with folder_lock(folder):
        wanted = {std: folder / snapshots.format_name(key, item.kimg, std) for std in item.ema_stds}
        digest = functools.cache(sha256_file)
        missing = [std for std, path in wanted.items() if not _is_made_from(path, source, digest)]
        made = ema.reconstruct(paths, missing, snapshots.kimg_to_nimg(item.kimg)) if missing else {}
        for std, snapshot in made.items():
            snapshots.save(snapshot, wanted[std])
        for path in set(folder.glob("*.safetensors")) - set(wanted.values()):
            path.unlink()  # a length that the study no longer names


def _is_made_from(path: Path, source: Path, digest: Callable[[Path], str]) -> bool:
    """Whether `path` is a reconstruction from snapshots that still stand in `source` as they were."""
    if not path.exists():
        return False
    inputs = snapshots.read_metadata(path)["reconstructed_from"]
    return all((source / name).exists() and digest(source / name) == found for name, found in inputs.items())


def configuration(study: Study, item: Generate) -> Configuration:
    """The sampling configuration of a study's entry."""
    networks = study.out / "networks"
    return Configuration(
        main=str(networks / item.main),
        guide=str(networks / item.guide),
        guidance=item.guidance,
        interval=None if item.interval is None else (item.interval[0], item.interval[1]),
        sampler=study.sampler,
        main_corruption=item.main_corruption,
        guide_corruption=item.guide_corruption,
    )


def run_generate(study: Study, key: str) -> None:
    """Shards of one configuration: images, or their features and the first images for the report."""
    item = study.generate[key]
    folder = study.out / "samples" / key
    device = distributed.device()
    with rank0_lock(folder):
        pair, seeds = load_pair(configuration(study, item), device), item.all_seeds()
        if distributed.rank() == 0:
            _set_aside(folder, pair)
        distributed.barrier()
        if study.sampler.keep_images:
            paths = generate(pair, seeds, folder, key)
        else:
            reference = Reference(study.out / "data" / item.data, study.evaluate, device)
            paths = generate(pair, plan_shards(seeds, study.sampler.shard_size)[0][:PREVIEW], folder)
            paths += generate(pair, seeds, folder, key, feature_format(reference))
        if distributed.rank() == 0:
            for path in {*folder.glob("*.zip"), *folder.glob(f"*{FEATURES}")} - set(paths):
                path.unlink()  # seeds that the study no longer names


def _set_aside(folder: Path, pair: Pair) -> None:
    """Move shards that other settings have made to a folder beside, from where going back to those links them."""
    for path in [*folder.glob("*.zip"), *folder.glob(f"*{FEATURES}")]:
        manifest = read_manifest(path) if path.suffix == ".zip" else feature_manifest(path)
        if manifest is not None and manifest["digest"] != pair.digest:
            aside = folder.with_name(f"{folder.name}.{manifest['digest'][:12]}") / path.name
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)
            print(f"{path}: made with other settings, kept as {aside}")


def run_evaluate(study: Study, key: str) -> None:
    """Every metric of one configuration, per seed block; under torchrun the ranks share shards, then blocks."""
    item = study.generate[key]
    folder, samples = study.out / "results" / key, study.out / "samples" / key
    features_folder = study.out / "features" / key
    device = distributed.device()
    reference = Reference(study.out / "data" / item.data, study.evaluate, device)
    shards = plan_shards(item.all_seeds(), study.sampler.shard_size)
    with rank0_lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        features_folder.mkdir(parents=True, exist_ok=True)
        if study.sampler.keep_images:
            images = [samples / shard_name(members) for members in shards]
            kept = extract_shards(images, features_folder, reference, f"{key} features")
        else:
            kept = [samples / shard_name(members, FEATURES) for members in shards]
        parts = [folder / f"block-{block}.csv" for block in item.seeds]
        for block, part in list(zip(item.seeds, parts, strict=True))[distributed.rank() :: distributed.world_size()]:
            members = parse_seeds(block)
            inside = [s[0] <= members[-1] and members[0] <= s[-1] for s in shards]
            manifest, features = block_features(list(itertools.compress(kept, inside)), members)
            write_rows(part, rows(manifest, features, reference, device))
        distributed.barrier()
        if distributed.rank() == 0:
            common = {"study": study.study, "configuration": key, "method": item.method}
            blocks = zip(item.seeds, parts, strict=True)
            _gather([(common | {"block": block}, part) for block, part in blocks], folder / MEASURES)
            for path in set(features_folder.glob(f"*{FEATURES}")) - set(kept):
                path.unlink()  # of shards that are no more
            first = shards[0] if study.sampler.keep_images else shards[0][:PREVIEW]
            _write_preview(folder, samples / shard_name(first))


def _gather(parts: list[tuple[dict[str, Any], Path]], target: Path) -> None:
    """Join the rows of files, each after the given columns, into `target`; every text stays as it is."""
    frames = []
    for common, part in parts:
        rows = pd.read_csv(part, dtype=str, keep_default_na=False)
        frames.append(rows.assign(**common)[[*common, *rows.columns]])
    with atomic_write(target) as temporary:
        pd.concat(frames).to_csv(temporary, index=False)


def _write_preview(folder: Path, shard: Path) -> None:
    """The first images of a configuration, for the report: `grid.png` and `preview.npz`."""
    manifest, images = read_shard(shard, limit=PREVIEW)
    image_grid(list(images), columns=8, scale=max(1, 48 // images.shape[1])).save(folder / "grid.png")
    labels = np.array(manifest["labels"][:PREVIEW], dtype=np.int64)
    with atomic_write(folder / "preview.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, images=images, seeds=np.array(manifest["seeds"][:PREVIEW]), labels=labels)


def run_sweep(study: Study, key: str) -> None:
    """One sensitivity curve; finished points are kept, and under torchrun the ranks share the shards of each.

    A point that any study's curve holds already (the unguided one, say) is taken from there. Shards of features stand
    until their point is measured, so that an interruption costs one.
    """
    sweep = study.sweeps[key]
    folder = study.out / "results" / key
    device = distributed.device()
    reference = Reference(study.out / "data" / sweep.data, study.evaluate, device)
    common = {"study": study.study, "configuration": key, "method": sweep.method}
    with rank0_lock(folder):
        parts = []
        points = ((value, pair, block) for value, pair in _pairs(study, sweep, device) for block in sweep.seeds)
        for number, (value, pair, block) in enumerate(points):
            part = folder / "points" / f"{reference.digest(pair, block)[:16]}.csv"
            curve = {"block": block, "sweep": key, "axis": sweep.axis, "axis_value": value}
            parts.append((common | curve, part))
            if _is_measured(part):
                continue
            members, shards = parse_seeds(block), part.with_suffix("")
            paths = generate(pair, members, shards, f"{key} {value:g}", feature_format(reference))
            if number % distributed.world_size() == distributed.rank():
                write_rows(part, rows(*block_features(paths, members), reference, device))
                shutil.rmtree(shards)
        distributed.barrier()
        if distributed.rank() == 0:
            _gather(parts, folder / MEASURES)


def _is_measured(part: Path) -> bool:
    """Whether a point stands, here or in another curve, from where it is linked; all ranks agree."""
    if distributed.rank() == 0 and not part.exists():
        elsewhere = next(OUT.glob(f"*/results/*/points/{part.name}"), None)
        if elsewhere is not None:
            link_or_copy(elsewhere, part)
    found = distributed.all_reduce_sum(np.array([float(part.exists())]))
    return bool(found[0] == distributed.world_size())


def _pairs(study: Study, sweep: Sweep, device: torch.device) -> Iterator[tuple[float, Pair]]:
    """The values of a sweep with their networks; all weights share one loaded pair."""
    if sweep.axis != "guidance":
        for value in sweep.values:
            yield value, load_pair(configuration(study, sweep_point(sweep, value)), device)
        return
    guided = next((value for value in sweep.values if value != 1), 1.0)
    pair = load_pair(configuration(study, sweep_point(sweep, guided)), device)
    for value in sweep.values:
        yield value, pair.with_guidance(value)


def sweep_point(sweep: Sweep, value: float) -> Generate:
    """The configuration at one value of a sweep's axis."""
    main, guide, guidance = sweep.main, sweep.guide, sweep.guidance
    if sweep.axis == "guidance":
        guidance = value
    elif sweep.axis == "main_ema":
        main = snapshots.with_ema(main, value)
    else:
        guide = snapshots.with_ema(guide, value)
    return Generate(
        method=sweep.method,
        main=f"{sweep.main_set}/{main}",
        guide=f"{sweep.guide_set}/{guide}",
        guidance=guidance,
        data=sweep.data,
        seeds=sweep.seeds,
        interval=sweep.interval,
        main_corruption=sweep.main_corruption,
        guide_corruption=sweep.guide_corruption,
    )


def rank0_lock(folder: Path) -> AbstractContextManager[Any]:
    """The folder's lock in the first process of a torchrun group; the others follow it."""
    return folder_lock(folder) if distributed.rank() == 0 else nullcontext()


STAGES = {
    "toy": run_toy,
    "data": run_data,
    "networks": run_networks,
    "reconstruct": run_reconstruct,
    "generate": run_generate,
    "evaluate": run_evaluate,
    "sweep": run_sweep,
}
