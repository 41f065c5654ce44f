"""`repro guide`: a search over training runs, with all that it makes kept, so that a killed one repeats nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from metrics import distributed, names
from metrics.files import InputError, write_csv, write_text
from repro import rows, snapshots
from repro.pipeline import measuring, stages
from repro.sampling.features import FeatureShards
from repro.search.distance import SampledDistance
from repro.search.race import Finalist, Row, Search
from repro.search.runs import Networks, locate
from repro.search.space import Candidate, SearchSettings, Space
from repro.study import Study, known, parse_seeds

PATH, FINALISTS, SNIPPET, SUMMARY = "path.csv", "finalists.csv", "study.yaml", "summary.md"


def guide(
    study: Study, main: str, guides: Sequence[str], data: str, settings: SearchSettings, detector: str, folder: Path
) -> str:
    """Search, write everything to `folder` (networks, features of every image, the path so far), return the summary.

    Args:
        study: gives sampler and detectors, and its ids can name the rest.
        main: run (id or folder) whose last snapshots the main network is reconstructed from, or a network file.
        guides: runs of which a snapshot can be the guide.
        data: data set measured against, an id or a folder as the stage `reference` leaves it.
        detector: whose Fréchet distance is minimised.
    """
    known(f"detectors of study {study.study}", detector, study.evaluate.plain)
    _check_seeds(study, settings)
    networks = Networks(study, main, guides, folder / "networks")
    space = networks.space(settings)
    device, place = distributed.device(), locate(study, "references", data)
    reference = measuring.load_reference(place, replace(study.evaluate, detectors=[detector], metrics=["fd"]))
    form = FeatureShards(measuring.load_detectors([detector], place, device))
    objective = SampledDistance(networks, reference.require(detector), form, study, folder / "features", device)
    metric = names.space(detector)
    facts = {
        "metric": metric.distance,
        "detector_sha256": form.detectors[detector].tags.get("weights_sha256", ""),
        "reference_sha256": reference.digest,
        **rows.provenance(device),
    }

    def write(name: str, found: Sequence[Row | Finalist]) -> None:
        if distributed.rank() == 0:
            table = [vars(x.candidate) | vars(x) | objective.provenance[x.candidate] | facts for x in found]
            write_csv(folder / name, pd.DataFrame(table).drop(columns="candidate"))

    with stages.rank0_lock(folder):
        distributed.barrier()  # nobody looks what is there before it is ours
        finalists = Search(space, objective, lambda path: write(PATH, path)).run()
        write(FINALISTS, finalists)
        text = _summary(finalists, space, objective, metric.name)
        if distributed.rank() == 0:
            from repro.drawing import save
            from repro.search.figure import draw_search

            write_text(folder / SNIPPET, _snippet(networks, finalists[0].candidate, data, settings))
            write_text(folder / SUMMARY, text)
            save(draw_search(pd.read_csv(folder / PATH), metric.distance), folder / "path")
    return text


def _check_seeds(study: Study, settings: SearchSettings) -> None:
    """Raise InputError for blocks that cut batches, or that the study reports."""
    batch, smallest = study.sampler.batch_size, settings.sizes[0]
    for block in (settings.seeds, *settings.fresh):
        if parse_seeds(block).start % batch or smallest % batch:
            raise InputError(
                f"seeds {block}: batches are {batch} seeds (sampler.batch_size); let blocks begin at multiples "
                f"of {batch}, and the smallest rung ({smallest} images) be one"
            )
    for key, item in study.generate.items():
        if not set(item.all_seeds()).isdisjoint(settings.block):
            raise InputError(
                f"seeds {settings.seeds}: generate.{key} reports some of them; what a setting was chosen on cannot "
                "judge it, give other seeds"
            )


def _summary(finalists: Sequence[Finalist], space: Space, objective: SampledDistance, name: names.Name) -> str:
    blocks, full, grid, form = len(space.settings.fresh), len(space.settings.block), space.size(), f".{name.decimals}f"
    values = [f"- {f.mean:{form}} ({f.min:{form}} to {f.max:{form}}): {f.candidate}\n" for f in finalists]
    return (
        f"Best guide by {name.label} on {blocks} fresh blocks of {full} images: mean (least to greatest).\n\n"
        f"{''.join(values)}\n"
        f"{objective.images:,} images of {len(objective.shards)} configurations; all {grid:,} settings of the lattice "
        f"would take {grid * full:,} images. The settings for a study are in {SNIPPET}.\n"
    )


def _snippet(networks: Networks, best: Candidate, data: str, settings: SearchSettings) -> str:
    """A study's entries for the best setting, as YAML: what to reconstruct and what to generate."""
    files = {} if networks.main else {"main": "/".join(networks.file.parts[-2:])}
    reconstruct = {}
    for role, (run, kimg, std) in networks.averages(best).items():
        key = f"best-{role}"
        reconstruct[key] = {"source": run.source, "kimg": kimg, "ema_stds": [std]}
        files[role] = f"{key}/{snapshots.format_name(key, kimg, std)}"
    entry = {"method": "autoguidance", **files, "guidance": best.guidance, "data": data, "seeds": settings.fresh[:1]}
    comment = "# Ids of runs that the study does not have are folders; enter those under `networks`.\n"
    return comment + yaml.safe_dump(
        {"reconstruct": reconstruct, "generate": {"best-autoguidance": entry}}, sort_keys=False
    )
