"""The stages that `dvc.yaml` names: each reads the active study and fills its own output folder, under a lock."""

import functools
import itertools
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metrics import distributed
from metrics.features import FeatureSet
from metrics.files import InputError, folder_lock, link_or_copy, nearest, sha256_file, write_json, write_npz, write_text
from metrics.machine import machine
from repro import ema, snapshots
from repro.guidance import Guided
from repro.missing import NOTE, note_missing, read_missing
from repro.pipeline import acquire, pulled
from repro.pipeline.measuring import load_detectors, load_reference, measured_rows, replicates
from repro.pipeline.points import Points
from repro.pixels import write_grid
from repro.rows import MEASURES, REPLICATES, Replicate, Row, gather_rows, write_replicates, write_rows
from repro.sampling.batches import grouped
from repro.sampling.features import FeatureShards, block_features
from repro.sampling.pairs import Configuration, Pair, load_pair
from repro.sampling.shards import IMAGES, Form, Manifest, generate, read_shard, shard_name, verified
from repro.sampling.sources import Model, load_model
from repro.study import Study, Sweep, parse_seeds, schema
from repro.toy import pipeline as toy
from repro.training.loop import train

PREVIEW = 64  # images kept of each configuration for the report
PREVIEW_FILE, GRID = "preview.npz", "grid.png"
#: File that stands for a network of the user's own, and holds its digest; the same of several guides.
MODEL, BLEND = "model.json", "blend.json"
#: File with the digest of a data set, for what depends on it.
DATA = "data.json"
#: Stages that share their work among processes, started again by the machine's launcher.
SHARED = ("train", "networks", "generate", "features", "tune", "sweep")
ALL_GPUS = "torchrun --standalone --nproc-per-node=gpu"
#: Environment variable of a stage that was started by the launcher.
LAUNCHED = "REPRO_LAUNCHED"
#: Left beside networks that are averages of published ones.
LICENCE = """Averages of weights published by NVIDIA with the papers "Analyzing and Improving the Training Dynamics of
Diffusion Models" and "Guiding a Diffusion Model with a Bad Version of Itself", made by post-hoc EMA as described there.
As adapted material they are under the licence of those weights: Creative Commons
Attribution-NonCommercial-ShareAlike 4.0, https://creativecommons.org/licenses/by-nc-sa/4.0/
"""

STAGES: dict[str, Callable[[Study, str], None]] = {}


def rank0_lock(folder: Path) -> AbstractContextManager[Any]:
    """The folder's lock in the first process of a torchrun group; the others follow it."""
    return folder_lock(folder) if distributed.rank() == 0 else nullcontext()


def relaunch(stage: str, key: str) -> None:
    """Become the launcher's command for a stage that shares its work; returns where there is nothing to launch.

    The launcher is a line of shell, so that it can hold what a scheduler settles, such as $SLURM_NNODES.
    """
    if stage not in SHARED or {"RANK", LAUNCHED} & os.environ.keys():
        return
    launcher = machine().launcher or ("python" if torch.cuda.device_count() < 2 else ALL_GPUS)
    if launcher != "python":
        os.execvpe(
            "sh", ["sh", "-c", f'exec {launcher} -m repro stage "$0" "$1"', stage, key], os.environ | {LAUNCHED: "1"}
        )


def stage(
    section: str, output: str, *names: str
) -> Callable[[Callable[[Study, str, Any, Path], None]], Callable[[Study, str], None]]:
    """Make a function of a study, an id of its `section`, its entry and its folder in `output` the stages `names`.

    These take study and id, and hold the lock of the folder.
    """

    def register(run: Callable[[Study, str, Any, Path], None]) -> Callable[[Study, str], None]:
        @functools.wraps(run)
        def locked(study: Study, key: str) -> None:
            items, folder = getattr(study, section), study.out / output / key
            if key not in items:
                raise InputError(f"{section} '{key}' is no part of study {study.study}{nearest(key, items)}")
            with rank0_lock(folder):
                folder.mkdir(parents=True, exist_ok=True)
                run(study, key, items[key], folder)

        STAGES.update(dict.fromkeys(names, locked))
        return locked

    return register


@stage("toy", "results", "toy")
def run_toy(study: Study, key: str, item: toy.ToySettings, folder: Path) -> None:
    """The 2D example: networks, samples, measures, figures."""
    print(toy.brief(toy.run(item, folder, study.study, key)), flush=True)


@stage("datasets", "data", "data", "images")
def run_data(study: Study, key: str, item: schema.Data, folder: Path) -> None:
    """A data set's files, and a digest of what it is."""
    write_json(folder / DATA, {"digest": item.made.prepare(folder, acquire.downloads(study))})


@stage("datasets", "references", "reference")
def run_reference(study: Study, key: str, item: schema.Data, folder: Path) -> None:
    """Reference statistics and features of a data set, by every detector of the study whose weights can be had."""
    data, downloads = study.out / "data" / key, acquire.downloads(study)
    for part in study.evaluate.parts:
        reason = acquire.lacking(part.folder, downloads) if part.folder else ""
        note_missing(folder / part.folder / NOTE, {"": reason} if reason else {})
        if reason:
            print(f"{key}: goes on without {reason}", flush=True)
        else:
            settings = item.made.at_most(item.measured, part.images) if part.images else item.measured
            item.made.measure(data, folder / part.folder, part.evaluate.plain, settings, downloads)


@stage("train", "networks", "train")
def run_train(study: Study, key: str, item: schema.Train, folder: Path) -> None:
    """One training run."""
    train(item.config, study.datasets[item.data].made.training(study.out / "data" / item.data), folder)


@stage("networks", "networks", "networks")
def run_networks(study: Study, key: str, item: schema.Networks, folder: Path) -> None:
    """Fetch the published networks of one training run."""
    if distributed.rank() == 0:
        pulled.refuse_fetching(study, key, folder)
        acquire.networks(study, item, folder, acquire.downloads(study))
    distributed.barrier()


@stage("models", "networks", "models")
def run_models(study: Study, key: str, item: Model, folder: Path) -> None:
    """Load a network of the user's own, better now than after hours, and note what it is."""
    write_json(folder / MODEL, {"sha256": load_model(item, torch.device("cpu"))[1]})


@stage("blends", "networks", "blends")
def run_blends(study: Study, key: str, item: schema.Blended, folder: Path) -> None:
    """Note what several guides are."""
    networks = study.out / "networks"
    write_json(folder / BLEND, {name: sha256_file(networks / name) for name in (item.guide, item.other)})


@stage("reconstruct", "networks", "reconstruct")
def run_reconstruct(study: Study, key: str, item: schema.Reconstruct, folder: Path) -> None:
    """Post-hoc EMA lengths of one run; what stands is not made again."""
    paths = sorted((study.out / "networks" / item.source).glob("*.safetensors"))
    nimg = snapshots.kimg_to_nimg(item.kimg)
    wanted = {std: folder / snapshots.format_name(key, item.kimg, std) for std in item.ema_stds}
    if lost := next((reasons for path in paths if (reasons := read_missing(path))), {}):
        print(f"{key}: not possible: {lost['']}")
        for path in wanted.values():
            note_missing(path, lost)
    else:
        origin = functools.cache(lambda: ema.origin(paths, nimg))
        missing = [std for std, path in wanted.items() if not _is_made_from(path, origin)]
        for std, snapshot in (ema.reconstruct(paths, missing, nimg) if missing else {}).items():
            snapshots.save(snapshot, wanted[std])
    if item.source in study.networks:
        write_text(folder / "LICENSE", LICENCE)
    acquire.clear(folder, ".safetensors", wanted.values())


def _is_made_from(path: Path, origin: Callable[[], dict[str, Any]]) -> bool:
    """Whether `path` is a reconstruction from all the snapshots that there are, by these numerics."""
    if not path.exists() or read_missing(path):
        return False
    metadata = snapshots.read_metadata(path)
    return {name: metadata[name] for name in ("reconstructed_from", "numerics") if name in metadata} == origin()


def placed(study: Study, guided: Guided) -> Guided:
    """`guided` of a study, whose networks are named as below out/STUDY/networks/, with the places of its networks.

    One of the user's own keeps its id: it is what the study says it is, whatever a file in out/ says.
    """

    def place(network: str) -> str:
        key = network.split("/")[0]
        return key if key in study.models else str(study.out / "networks" / network)

    guided = study.spelt_out(guided)
    others = [replace(other, guide=place(other.guide)) for other in guided.other_guides]
    return replace(guided, main=place(guided.main), guide=place(str(guided.guide)), other_guides=others)


def study_pair(study: Study, guided: Guided, device: torch.device) -> Pair:
    """`guided` of a study, loaded."""
    return load_pair(Configuration(placed(study, guided), study.sampler), device, study.models)


@stage("generate", "samples", "generate")
def run_generate(study: Study, key: str, item: schema.Generate, folder: Path) -> None:
    """Shards of images of one configuration; where a study keeps none, those that the report shows."""
    if _is_skipped(study, key, item, folder, IMAGES):
        return
    pair, seeds = study_pair(study, item.guided, distributed.device()), item.all_seeds()
    if not any(folder.glob(f"*{IMAGES.suffix}")):
        pulled.refuse_sampling(study, key, pair)
    if study.shards.keep_images:
        _sample(study, pair, seeds, folder, "", key, IMAGES)
    else:
        _sample(study, pair, grouped(seeds, study.shards.size)[0][:PREVIEW], folder, "", "", IMAGES)


def _is_skipped(study: Study, key: str, item: schema.Generate, folder: Path, form: Form) -> bool:
    """Whether a configuration is not possible, of which a folder then holds nothing."""
    reason = acquire.not_possible(study, item.guided)
    if reason and distributed.rank() == 0:
        acquire.clear(folder, form.suffix, [])
        for name in (PREVIEW_FILE, GRID):
            (folder / name).unlink(missing_ok=True)
        print(f"{key}: not possible: {reason}", flush=True)
    return bool(reason)


def _sample(
    study: Study, pair: Pair, seeds: list[int], folder: Path, part: str, description: str, form: Form
) -> list[Path]:
    """Shards in a part of a folder that then holds these and no others; those of other settings are set aside."""
    if distributed.rank() == 0:
        _set_aside(folder, part, pair, form)
    distributed.barrier()
    target, trust = folder / part, not machine().verify
    paths = generate(pair, seeds, target, study.shards.size, description, form, acquire.borrow, trust)
    if distributed.rank() == 0:
        acquire.clear(target, form.suffix, paths)
    return paths


def _set_aside(folder: Path, part: str, pair: Pair, form: Form) -> None:
    """Move shards that other settings or versions have made to a folder beside, from where going back links them."""
    for path in (folder / part).glob(f"*{form.suffix}"):
        try:
            manifest = form.manifest(path)
            other = "" if manifest is None or manifest.digest == pair.digest else manifest.digest[:12]
        except InputError:
            other = "version-0.1"
        if other:
            aside = folder.with_name(f"{folder.name}.{other}") / part / path.name
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.replace(aside)
            verified(path).unlink(missing_ok=True)
            print(f"{path}: made with other settings, kept as {aside}")


@stage("generate", "features", "features")
def run_features(study: Study, key: str, item: schema.Generate, folder: Path) -> None:
    """Features of one configuration's images, from its shards or in their place, and the first images to be shown."""
    if _is_skipped(study, key, item, folder, FeatureShards({})):
        return
    samples, place, device = study.out / "samples" / key, study.out / "references" / item.data, distributed.device()
    groups = grouped(item.all_seeds(), study.shards.size)
    for part in _had(study, item):
        form = FeatureShards(load_detectors(part.evaluate.plain, place / part.folder, device))
        wanted, target = _overlapping(groups, map(parse_seeds, part.blocks(item))), folder / part.folder
        if study.shards.keep_images:
            kept = form.extract([samples / shard_name(members) for members in wanted], target, f"{key} features")
        else:
            pair, members = study_pair(study, item.guided, device), [*itertools.chain(*wanted)]
            kept = _sample(study, pair, members, folder, part.folder, key, form)
        if distributed.rank() == 0:
            acquire.clear(target, form.suffix, kept)
    if distributed.rank() == 0:
        shown = groups[0] if study.shards.keep_images else groups[0][:PREVIEW]
        manifest, images = read_shard(samples / shard_name(shown), limit=PREVIEW)
        write_grid(folder / GRID, list(images), columns=8, scale=max(1, 48 // images.shape[1]))
        labels, seeds = np.array(manifest.labels[:PREVIEW], np.int64), np.array(manifest.seeds[:PREVIEW])
        write_npz(folder / PREVIEW_FILE, {"images": images, "seeds": seeds, "labels": labels})


def _had(study: Study, item: schema.Generate) -> list[schema.Part]:
    """The parts of what a study measures whose detectors had their weights when the reference was made."""
    place = study.out / "references" / item.data
    return [part for part in study.evaluate.parts if not read_missing(place / part.folder / NOTE)]


def _overlapping(groups: Sequence[list[int]], blocks: Iterable[Sequence[int]]) -> list[list[int]]:
    """Those of groups of seeds that overlap with blocks, all ascending."""
    ends = [(block[0], block[-1]) for block in blocks]
    return [group for group in groups if any(first <= group[-1] and group[0] <= last for first, last in ends)]


@stage("generate", "results", "evaluate")
def run_evaluate(study: Study, key: str, item: schema.Generate, folder: Path) -> None:
    """Every metric of one configuration, per seed block, from its features."""
    reason, place = acquire.not_possible(study, item.guided), study.out / "references" / item.data
    lost = {part.folder: read_missing(place / part.folder / NOTE) for part in study.evaluate.parts}
    note_missing(folder / NOTE, {"": reason} if reason else {name: why[""] for name, why in lost.items() if why})
    if reason:
        write_rows(folder / MEASURES, [])
        write_replicates(folder / REPLICATES, [])
        return
    rows, paired = list[Row](), list[Replicate]()
    for part in _had(study, item):
        found = _evaluate(study, key, replace(item, seeds=part.blocks(item)), part)
        rows, paired = rows + found[0], paired + found[1]
    write_replicates(folder / REPLICATES, paired)
    write_rows(folder / MEASURES, rows)
    for name in (PREVIEW_FILE, GRID):
        link_or_copy(study.out / "features" / key / name, folder / name)
    print(*(f"{key} {row.block}: {row.metric} {row.value:.6g}" for row in rows), sep="\n")


def _evaluate(study: Study, key: str, item: schema.Generate, part: schema.Part) -> tuple[list[Row], list[Replicate]]:
    """What one part measures of the seed blocks of a configuration."""
    evaluate, place = part.evaluate, study.out / "references" / item.data / part.folder
    features, shards = study.out / "features" / key, grouped(study.generate[key].all_seeds(), study.shards.size)
    reference = load_reference(place, evaluate)
    networks = load_detectors(evaluate.plain, place, torch.device("cpu")) if evaluate.options.needs_network else {}

    def kept(seeds: Sequence[int]) -> tuple[Manifest, dict[str, FeatureSet]]:
        names = [shard_name(shard, FeatureShards.suffix) for shard in _overlapping(shards, [seeds])]
        return block_features([features / part.folder / name for name in names], seeds)

    rows = []
    for block in item.seeds:
        common = {"study": study.study, "configuration": key, "method": item.method, "block": block}
        rows += measured_rows(*kept(parse_seeds(block)), reference, evaluate, networks, common)
    paired = replicates(key, lambda some: kept(some)[1], item.all_seeds(), reference, evaluate, networks)
    return rows, [*paired]


@stage("sweeps", "results", "sweep")
def run_sweep(study: Study, key: str, sweep: Sweep, folder: Path) -> None:
    """One sensitivity curve; finished points are kept (`repro.pipeline.points`)."""
    points = Points(study, sweep.data, folder / "points")
    common = {"study": study.study, "configuration": key, "method": sweep.method, "axis": sweep.axis}
    lost = {value: reason for value in sweep.values if (reason := acquire.not_possible(study, sweep.at(value)))}
    parts = []
    for value, pair in _pairs(study, sweep, lost, distributed.device()):
        for block in sweep.seeds:
            columns = common | {"block": block, "axis_value": value}
            parts.append((columns, points.measure(pair, block, columns, f"{key} {value:g}")))
    distributed.barrier()
    if distributed.rank() == 0:
        note_missing(folder / NOTE, {f"{value:g}": reason for value, reason in lost.items()})
        found = gather_rows(parts, folder / MEASURES)
        shown = found[["configuration", "axis_value", "block", "metric", "value"]]
        print(*(" ".join(map(str, row)) for row in shown.to_numpy()), sep="\n", flush=True)


def _pairs(study: Study, sweep: Sweep, lost: Container[float], device: torch.device) -> Iterator[tuple[float, Pair]]:
    """The values of a sweep with their networks, but the `lost` ones; all weights share one loaded pair."""
    values = [value for value in sweep.values if value not in lost]
    if sweep.axis != "guidance" or not values:
        return ((value, study_pair(study, sweep.at(value), device)) for value in values)
    pair = study_pair(study, sweep.at(next((value for value in values if value != 1), 1.0)), device)
    return ((value, pair.at(value)) for value in values)
