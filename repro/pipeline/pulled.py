"""A clone that was pulled has features and results, but no images: nothing is fetched or sampled again unasked."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from metrics.files import InputError
from repro.guidance import Guided
from repro.sampling.batches import grouped
from repro.sampling.features import FeatureShards
from repro.sampling.pairs import Configuration, Pair
from repro.sampling.shards import Manifest, shard_name
from repro.study import Study, schema


def refuse_sampling(study: Study, key: str, pair: Pair) -> None:
    """Raise InputError where a configuration `has_features` of `pair`."""
    if has_features(study, key, pair):
        _refuse(study.out / "samples" / key, [key], study)


def has_features(study: Study, key: str, pair: Pair) -> bool:
    """Whether features of `pair` stand here already of all images of a configuration."""
    found = _manifests(study, key)
    return bool(found) and all(manifest.digest == pair.digest for manifest in found)


def refuse_fetching(study: Study, key: str, folder: Path) -> None:
    """Raise InputError where all that a set of networks serves is measured, with the settings of now."""
    if any(folder.glob("*.safetensors")):
        return
    used = [name for name, item in study.generate.items() if key in _sets(study, item)]
    curves = [name for name, sweep in study.sweeps.items() if key in _sets(study, sweep)]
    curves += [name for name, item in study.tuned.items() if key in _sets(study, item)]
    done = all(_is_measured(study, name) for name in used)
    if (used or curves) and done and all((study.out / "results" / name).exists() for name in curves):
        _refuse(folder, [*used, *curves], study)


def _sets(study: Study, item: schema.Generate) -> Iterable[str]:
    """Ids of the networks of a configuration."""
    return {network.split("/")[0] for network in study.spelt_out(item.guided).networks}


def _is_measured(study: Study, key: str) -> bool:
    found, item = _manifests(study, key), study.generate[key]
    settings = Configuration(_unnamed(study.spelt_out(item.guided).active), study.sampler)
    return bool(found) and all(
        replace(manifest.configuration, guided=_unnamed(manifest.configuration.guided)) == settings
        for manifest in found
    )


def _unnamed(guided: Guided) -> Guided:
    """The same of whatever networks."""
    others = [replace(other, guide="other") for other in guided.other_guides]
    return replace(guided, main="main", guide=guided.guide and "guide", other_guides=others)


def _manifests(study: Study, key: str) -> list[Manifest]:
    """Of the shards of features of a configuration; none where one is missing."""
    form, folder = FeatureShards({}), study.out / "features" / key
    groups = grouped(study.generate[key].all_seeds(), study.shards.size)
    found = [(seeds, form.manifest(folder / shard_name(seeds, form.suffix))) for seeds in groups]
    return [m for seeds, m in found if m and m.seeds == seeds] if all(m for _, m in found) else []


def _refuse(folder: Path, keys: Iterable[str], study: Study) -> None:
    with suppress(OSError):
        folder.rmdir()  # to DVC an empty folder is no missing one
    features = ", ".join(str(study.out / "features" / key) for key in keys if key in study.generate)
    raise InputError(
        f"{folder}: is not there, but what it is for is measured already: `dvc repro --allow-missing` goes on without; "
        f"to make it again remove {features or 'what was measured with it'} first"
    )
