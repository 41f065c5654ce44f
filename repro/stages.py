"""The pipeline's stages: each reads the active study and fills its own output folder, under a lock."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metrics import distributed
from metrics.files import atomic_write, folder_lock, write_text
from repro import acquire, digits, ema, snapshots, standin, toy, training
from repro.evaluate import Reference, rows, sample_features, shard_features, write_rows
from repro.generate import (
    CODE_SUFFIX,
    Configuration,
    generate,
    image_grid,
    load_code,
    load_pair,
    manifest_facts,
    plan_shards,
    read_shard,
    shard_name,
)
from repro.study import Generate, PublishedReference, Study, Sweep, build, parse_seeds

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
    """A data set's feature network and reference statistics."""
    item = study.data[key]
    folder = study.out / "data" / key
    with folder_lock(folder):
        if item.kind == "reference":
            acquire.reference(study, build(PublishedReference, item.settings), folder)
            return
        digits.prepare(folder, build(digits.DigitSettings, item.settings, f"data.{key}.settings"))


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
    data = study.data[item.data]
    dataset = digits.Digits(build(digits.DigitSettings, data.settings, f"data.{item.data}.settings"))
    with rank0_lock(folder):
        training.train(config, dataset, folder)


def run_reconstruct(study: Study, key: str) -> None:
    """Post-hoc EMA lengths of one run; what stands is not made again."""
    item = study.reconstruct[key]
    source, folder = study.out / "networks" / item.source, study.out / "networks" / key
    paths = sorted(source.glob("*.safetensors"))
    with folder_lock(folder):
        wanted = {std: folder / snapshots.format_name(key, item.kimg, std) for std in item.ema_stds}
        missing = [std for std, path in wanted.items() if not path.exists()]
        made = ema.reconstruct(paths, missing, snapshots.kimg_to_nimg(item.kimg)) if missing else {}
        for std, snapshot in made.items():
            snapshots.save(snapshot, wanted[std])
        for path in set(folder.glob("*.safetensors")) - set(wanted.values()):
            path.unlink()  # a length that the study no longer names


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
    """Image shards of one configuration."""
    item = study.generate[key]
    folder = study.out / "samples" / key
    with rank0_lock(folder):
        paths = generate(load_pair(configuration(study, item), distributed.device()), item.all_seeds(), folder, key)
        if distributed.rank() == 0:
            for path in set(folder.glob("*.zip")) - set(paths):
                path.unlink()  # seeds that the study no longer names


def run_evaluate(study: Study, key: str) -> None:
    """Every metric of one configuration, per seed block; under torchrun the ranks share the blocks."""
    item = study.generate[key]
    folder, samples = study.out / "results" / key, study.out / "samples" / key
    device = distributed.device()
    reference = Reference(study.out / "data" / item.data, study.evaluate, device)
    shards = plan_shards(item.all_seeds(), study.sampler.shard_size)
    with rank0_lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        parts = [folder / f"block-{block}.csv" for block in item.seeds]
        for block, part in list(zip(item.seeds, parts, strict=True))[distributed.rank() :: distributed.world_size()]:
            members = parse_seeds(block)
            paths = [samples / shard_name(s) for s in shards if s[0] <= members[-1] and members[0] <= s[-1]]
            manifest, features = shard_features(paths, members, reference)
            common = {"study": study.study, "configuration": key, "method": item.method, "block": block}
            write_rows(part, rows(manifest, common, features, reference, device))
        distributed.barrier()
        if distributed.rank() == 0:
            _gather(parts, folder / MEASURES)
            _write_preview(folder, samples / shard_name(shards[0]))


def _gather(parts: list[Path], target: Path) -> None:
    """Join the rows of `parts` into `target`."""
    found = pd.concat([pd.read_csv(part) for part in parts])
    with atomic_write(target) as temporary:
        found.to_csv(temporary, index=False)


def _write_preview(folder: Path, shard: Path) -> None:
    """The first images of a configuration, for the report: `grid.png` and `preview.npz`."""
    manifest, images = read_shard(shard, limit=PREVIEW)
    image_grid(list(images), columns=8, scale=max(1, 48 // images.shape[1])).save(folder / "grid.png")
    labels = np.array(manifest["labels"][:PREVIEW], dtype=np.int64)
    with atomic_write(folder / "preview.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, images=images, seeds=np.array(manifest["seeds"][:PREVIEW]), labels=labels)


def run_sweep(study: Study, key: str) -> None:
    """One sensitivity curve; finished values are kept, and under torchrun the ranks share the values."""
    sweep = study.sweeps[key]
    folder = study.out / "results" / key
    device = distributed.device()
    reference = Reference(study.out / "data" / sweep.data, study.evaluate, device)
    with rank0_lock(folder):
        parts = []
        for number, value in enumerate(sweep.values):
            pair = load_pair(configuration(study, sweep_point(sweep, value)), device)
            part = folder / "points" / f"{pair.digest[:16]}-{sweep.seeds}.csv"
            parts.append(part)
            if number % distributed.world_size() != distributed.rank() or part.exists():
                continue
            features = sample_features(pair, parse_seeds(sweep.seeds), reference, f"{key} {value}")
            common = {"study": study.study, "configuration": key, "method": sweep.method, "block": sweep.seeds}
            curve = {"sweep": key, "axis": sweep.axis, "axis_value": value}
            write_rows(part, rows(manifest_facts(pair), common | curve, features, reference, device))
        distributed.barrier()
        if distributed.rank() == 0:
            _gather(parts, folder / MEASURES)


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
        seeds=[sweep.seeds],
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
