"""Seeds -> shards: resumable, and the same bits whatever the rank, world size or resume point.

A shard holds what was made of a run of seeds, with a manifest of how: images as an uncompressed zip of PNGs, or their
features (`repro.sampling.features`). One that stands is verified instead of made again.
"""

import contextlib
import functools
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metrics import distributed
from metrics.files import InputError, explained, write_text
from metrics.files.reading import open_archive, read_entry
from metrics.progress import progress
from repro.pixels import decode_png, encode_png, write_zip
from repro.sampling.batches import grouped, sample_images
from repro.sampling.dealing import Wanted, plan
from repro.sampling.pairs import SIGMA_MAX, SIGMA_MIN, Configuration, Pair
from repro.strict import build

MANIFEST = "manifest.json"
TORN = (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Manifest:
    """How a shard was made."""

    #: `Pair.digest`.
    digest: str
    configuration: Configuration
    main_sha256: str
    guide_sha256: str | None
    device_type: str
    versions: dict[str, str]
    seeds: list[int]
    #: Class of each image; empty for unconditional networks.
    labels: list[int] = field(default_factory=list)
    #: Of the PNGs in seed order.
    images_sha256: str = ""

    @classmethod
    def read(cls, facts: Any, path: Path) -> "Manifest":
        """From JSON's types; raises InputError where it says other things than this version's manifests do."""
        try:
            return build(cls, _migrated(facts))
        except InputError as err:
            raise InputError(f"{path}: its manifest is of another version ({err}); move it away") from None

    def of(self, seeds: Sequence[int]) -> "Manifest":
        """What it says of some of its seeds."""
        labels = dict(zip(self.seeds, self.labels, strict=True)) if self.labels else {}
        return replace(self, seeds=list(seeds), labels=[labels[seed] for seed in seeds] if labels else [])

    def facts(self) -> dict[str, Any]:
        """In JSON's types."""
        return dict(json.loads(json.dumps(asdict(self))))


def _migrated(facts: Any) -> Any:
    """Facts of a manifest from when the range of noise levels was said where it was the default."""
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        solver = facts["configuration"]["solver"]
        default = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
        if {name: solver.get(name) for name in default} == default:
            solver = solver | dict.fromkeys(default)
            return facts | {"configuration": facts["configuration"] | {"solver": solver}}
    return facts


class Form(Protocol):
    """What shards keep of their images, and how."""

    #: Of the files.
    suffix: str

    def manifest(self, path: Path) -> Manifest | None:
        """What a shard says of its making; None where there is none or it is torn; InputError: of another version."""

    def is_sound(self, path: Path, manifest: Manifest, trust: bool = False) -> bool:
        """Whether a shard holds, unbroken, what this form makes of its images.

        With `trust` one that was found unbroken and has not changed since (size, time, inode) need not be read again.
        """

    def encode(self, images: NDArray[np.uint8]) -> Any:
        """What is kept of a batch [n, H, W, C], in another thread while the next one is sampled."""

    def keep(self, path: Path, manifest: Manifest, parts: list[Any]) -> None:
        """Write a shard from what `encode` gave for its batches, atomically."""

    def content(self, path: Path) -> tuple[Manifest, Any]:
        """Manifest of a sound shard, and what it holds, such as `encode` gives for all of it."""

    def bytes_per_image(self, pair: Pair) -> float:
        """Typical size on disk."""

    def is_whole(self, path: Path, seeds: list[int], pair: Pair, trust: bool = True) -> bool:
        """Whether a file holds exactly these seeds of this configuration, unbroken; InputError if of another one.

        `trust`: as of `is_sound`.
        """
        manifest = self.manifest(path)
        if manifest is None:
            return False
        if manifest.digest != pair.digest:
            raise InputError(
                f"{path}: made from another configuration ({manifest.digest[:12]}, expected {pair.digest[:12]}); "
                "move the folder away or choose another"
            )
        return manifest.seeds == seeds and self.is_sound(path, manifest, trust)

    def join(self, path: Path, parts: list[Path]) -> None:
        """Write a shard from parts of it in seed order, the same bytes as made in one go, and remove them."""
        manifests, contents = zip(*map(self.content, parts), strict=True)
        seeds, labels = ([x for m in manifests for x in getattr(m, name)] for name in ("seeds", "labels"))
        self.keep(path, replace(manifests[0], seeds=seeds, labels=labels), list(contents))
        for part in parts:
            part.unlink()

    def seeds_in(self, path: Path, pair: Pair) -> list[int] | None:
        """The seeds of a sound file of this configuration; None for any other."""
        manifest = self.manifest(path)
        ours = manifest is not None and manifest.digest == pair.digest and self.is_sound(path, manifest)
        return manifest.seeds if manifest is not None and ours else None

    def write(self, pair: Pair, seeds: list[int], path: Path, pool: Executor, bar: Any) -> None:
        """Sample seeds, ascending, into a file."""
        parts, labels = [], []
        for members, images, classes in sample_images(pair, seeds):
            parts.append(pool.submit(self.encode, images))
            labels += classes
            bar.update(len(members))
        made = (pair.digest, pair.configuration, pair.main_sha256, pair.guide_sha256, pair.device.type)
        versions = {"torch": torch.__version__, "numpy": np.__version__}
        self.keep(path, Manifest(*made, versions, seeds, labels), [part.result() for part in parts])


def verified(path: Path) -> Path:
    """Where it is noted in what state a shard was found unbroken."""
    return path.with_name(f".{path.name}.verified")


def _note_verified(path: Path) -> None:
    with contextlib.suppress(OSError, InputError):  # in a folder that cannot be written a shard is read each time
        write_text(verified(path), _state(path))


def _state(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"


class ImageShards(Form):
    """PNGs in an uncompressed zip."""

    suffix = ".zip"

    def manifest(self, path: Path) -> Manifest | None:
        found = None
        with contextlib.suppress(*TORN), open_archive(path) as archive:
            found = json.loads(read_entry(archive, MANIFEST))
        return None if found is None else Manifest.read(found, path)

    def is_sound(self, path: Path, manifest: Manifest, trust: bool = False) -> bool:
        with contextlib.suppress(OSError):
            if trust and verified(path).read_text() == _state(path):
                return True
        with contextlib.suppress(*TORN), open_archive(path) as archive:
            if manifest.images_sha256 == _digest(read_entry(archive, _name(seed)) for seed in manifest.seeds):
                _note_verified(path)
                return True
        return False

    def encode(self, images: NDArray[np.uint8]) -> list[bytes]:
        return [encode_png(image) for image in images]

    def keep(self, path: Path, manifest: Manifest, parts: list[list[bytes]]) -> None:
        pngs = dict(zip(map(_name, manifest.seeds), (png for part in parts for png in part), strict=True))
        facts = replace(manifest, images_sha256=_digest(pngs.values())).facts()
        write_zip(path, [*pngs.items(), (MANIFEST, json.dumps(facts, sort_keys=True))])
        _note_verified(path)

    def content(self, path: Path) -> tuple[Manifest, list[bytes]]:
        manifest = sound_manifest(path)
        with open_archive(path) as archive:
            return manifest, [read_entry(archive, _name(seed)) for seed in manifest.seeds]

    def bytes_per_image(self, pair: Pair) -> float:
        side, latent = pair.main.img_resolution, getattr(pair.main.encoder, "kind", "rgb") == "vae"
        return 0.5 * (3 * (8 * side) ** 2 if latent else pair.main.img_channels * side**2)  # half a byte per value


IMAGES = ImageShards()


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def read_shard(path: Path, limit: int | None = None) -> tuple[Manifest, NDArray[np.uint8]]:
    """Manifest and images uint8 [n, H, W, C] of a shard of images, in seed order; `limit` takes the first ones only.

    Raises InputError where it is missing or broken.
    """
    manifest, images = sound_manifest(path), ShardImages()
    return manifest, np.stack([images.read(path, seed) for seed in manifest.seeds[:limit]])


def sound_manifest(path: Path) -> Manifest:
    """What a shard of images says of its making; raises InputError where it is missing or broken."""
    manifest = IMAGES.manifest(path)
    if manifest is None:
        raise InputError(f"{path}: not a sound shard; remove it and generate again")
    return manifest


class ShardImages:
    """Images of shards by (path, seed), uint8 [H, W, C], or in words why one cannot be read."""

    def __init__(self) -> None:
        self._archive: tuple[Path, zipfile.ZipFile] | None = None

    def __getitem__(self, item: tuple[Path, int]) -> NDArray[np.uint8] | str:
        try:
            return self.read(*item)
        except (InputError, *TORN) as err:
            return f"{item[0]}: the image of seed {item[1]} cannot be read ({err}); remove the shard and generate again"

    def read(self, path: Path, seed: int) -> NDArray[np.uint8]:
        if self._archive is None or self._archive[0] != path:
            self._archive = path, open_archive(path)
        return decode_png(read_entry(self._archive[1], _name(seed)))


def generate(
    pair: Pair,
    seeds: Sequence[int],
    folder: Path,
    size: int = 1000,
    description: str = "",
    form: Form = IMAGES,
    borrow: Callable[[Path, Callable[[Path], bool]], bool] | None = None,
    trust: bool = True,
) -> list[Path]:
    """Write the shards of `seeds`, `size` each, that are missing in `folder`; under torchrun the ranks share batches.

    `borrow`, asked for a file with a test of its content, puts one there that somebody has made already, if it finds
    one. What was verified once and has not changed is not read again, unless `trust` is False. Returns the paths of all
    shards in seed order. Raises InputError where one was made from another configuration.
    """
    with explained(f"{folder}: cannot be a folder of shards", "name another", (OSError,)):
        folder.mkdir(parents=True, exist_ok=True)
    shards = [(members, folder / shard_name(members, form.suffix)) for members in grouped(seeds, size)]
    there = np.zeros(len(shards))
    for i in range(distributed.rank(), len(shards), distributed.world_size()):
        members, path = shards[i]
        is_same = functools.partial(form.is_whole, seeds=members, pair=pair, trust=trust)
        there[i] = is_same(path) or bool(borrow and borrow(path, is_same))
    there = distributed.all_reduce_sum(there)
    batch = pair.configuration.solver.batch_size
    wanted = [
        Wanted(path, grouped(members, batch)) for (members, path), found in zip(shards, there, strict=True) if not found
    ]
    work = plan(wanted, lambda _, part: form.seeds_in(part, pair))
    if work.total and description:
        room = tqdm.format_sizeof(work.total * form.bytes_per_image(pair), "B")
        distributed.print0(f"{description}: {work.total:,} images to sample, about {room} on disk")
    total = sum(len(job.seeds) for job in work.mine)
    with (
        progress(description, total=total, hidden=distributed.rank() > 0) as bar,
        ThreadPoolExecutor(2) as pool,
    ):
        for job in work.mine:
            form.write(pair, job.seeds, job.path, pool, bar)
    work.join(form.join)
    return [path for _, path in shards]


def shard_name(seeds: Sequence[int], suffix: str = ".zip") -> str:
    """File name of the shard that holds `seeds`."""
    return f"{seeds[0]:06d}-{seeds[-1]:06d}{suffix}"
