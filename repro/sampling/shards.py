"""Seeds -> shards: resumable, and the same bits whatever the rank, world size or resume point.

A shard is an uncompressed zip of PNGs with a manifest, or another format of the same seeds. Work is cut by seed, not by
rank: batch k is always the seeds [k B, (k + 1) B), and a shard that stands is verified instead of made again.
"""

import hashlib
import importlib
import io
import json
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from metrics import distributed
from metrics.files import InputError, atomic_write, link_or_copy, sha256_file
from repro import snapshots
from repro.guidance import Corruption, Dropped, RaisedNoise, check_pair
from repro.networks import Denoiser, Precond, prepare
from repro.sampler import NonFiniteError, SeedStreams, draw_inputs, sample
from repro.study import OUT, Sampler

MANIFEST = "manifest.json"
CODE_SUFFIX = ".denoiser"  # a file that names the user's own code, module:function


@dataclass(frozen=True)
class Configuration:
    """What decides the bits of an image, apart from its seed and the device type."""

    main: str
    """Network file, or `module:function` of the user's own that returns a Denoiser."""
    guide: str | None = None
    guidance: float = 1.0
    interval: tuple[int, int] | None = None
    sampler: Sampler = field(default_factory=Sampler)
    main_corruption: dict[str, float] = field(default_factory=dict)
    guide_corruption: dict[str, float] = field(default_factory=dict)


@dataclass
class Pair:
    """A loaded configuration, ready to sample."""

    configuration: Configuration
    main: Denoiser
    guide: Denoiser | None
    main_sha256: str
    guide_sha256: str | None
    device: torch.device

    @property
    def digest(self) -> str:
        """sha256 of everything that decides an image's bits besides seed and software versions.

        Without guidance it does not matter which guide is left out.
        """
        facts = asdict(self.configuration) | {
            "main": self.main_sha256,
            "guide": self.guide_sha256,
            "device": self.device.type,
        }
        if self.configuration.guidance == 1:
            facts |= {"guide": None, "interval": None, "guide_corruption": {}}
        for name in ("shard_size", "keep_images"):
            facts["sampler"].pop(name)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def with_guidance(self, guidance: float) -> "Pair":
        """The same loaded networks at another weight; 1 needs no guide, and any other one."""
        if guidance != 1 and self.guide is None:
            raise InputError(f"guidance {guidance} needs a guide, and none is loaded")
        configuration = replace(self.configuration, guidance=guidance)
        if guidance == 1:
            return replace(self, configuration=configuration, guide=None, guide_sha256=None)
        return replace(self, configuration=configuration)


def load_network(source: str, device: torch.device, compiled: bool = False) -> tuple[Denoiser, str]:
    """A network file, or `module:function`, as an inference-ready denoiser and a digest of what it is."""
    path = Path(source)
    if path.suffix not in (".safetensors", ".pkl", CODE_SUFFIX) and ":" in source:
        return load_code(source), hashlib.sha256(source.encode()).hexdigest()
    if not path.exists():
        raise InputError(f"{path}: no such network file")
    if path.suffix == CODE_SUFFIX:
        return load_code(path.read_text().strip()), sha256_file(path)
    snapshot = snapshots.load(path)
    network = prepare(snapshot.network, device)
    network.encoder = snapshot.encoder
    if compiled:
        network.compile()
    return network, sha256_file(path)


def load_code(source: str) -> Denoiser:
    """The user's own model: what `function` of `module:function` returns.

    Raises:
        InputError: it cannot be imported, or does not satisfy `repro.networks.Denoiser`.
    """
    module, _, function = source.partition(":")
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as err:
        raise InputError(f"cannot import the model {source}: {err}") from err
    if not isinstance(model, Denoiser):
        raise InputError(f"{source} does not return a Denoiser (see repro.networks.Denoiser)")
    return model


def load_pair(configuration: Configuration, device: torch.device) -> Pair:
    """Load and check main and guide before hours are spent.

    Raises:
        InputError: files missing or broken, networks that do not fit together, or the same network twice with
            a guidance weight other than 1 (it would do nothing).
    """
    c = configuration
    main, main_sha256 = load_network(c.main, device, c.sampler.compile)
    guide, guide_sha256 = None, None
    if c.guidance != 1:
        if c.guide is None:
            raise InputError(f"guidance {c.guidance} needs a guide")
        guide, guide_sha256 = load_network(c.guide, device, c.sampler.compile)
        check_pair(main, guide, c.main, c.guide)
        if guide_sha256 == main_sha256 and c.main_corruption == c.guide_corruption:
            raise InputError(f"{c.main} and {c.guide} are the same network: guidance {c.guidance} would do nothing")
    if c.interval is not None and c.interval[1] >= c.sampler.num_steps:
        raise InputError(f"interval {list(c.interval)}: the sampler has steps 0 to {c.sampler.num_steps - 1}")
    main = _corrupt(main, c.main_corruption, stream=0)
    guide = None if guide is None else _corrupt(guide, c.guide_corruption, stream=1)
    return Pair(c, main, guide, main_sha256, guide_sha256, device)


def _corrupt(network: Denoiser, corruption: dict[str, float], stream: int) -> Denoiser:
    if "dropout" in corruption:
        if not isinstance(network, Precond):
            raise InputError("dropout at inference needs one of this project's networks")
        network = Dropped(network, corruption["dropout"], stream)
    if "input_noise" in corruption:
        network = RaisedNoise(network, corruption["input_noise"], stream)
    return network


def sample_batch(pair: Pair, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Latents [N, C, H, W] and one-hot labels of one batch of seeds.

    Raises:
        NonFiniteError: naming seeds and steps.
    """
    c = pair.configuration
    for model in (pair.main, pair.guide):
        if isinstance(model, Corruption):
            model.reseed(seeds, pair.device)
    streams = SeedStreams(pair.device, seeds)
    noise, labels = draw_inputs(pair.main, streams, pair.device)
    apart = ("batch_size", "shard_size", "keep_images", "compile")
    settings = {k: v for k, v in asdict(c.sampler).items() if k not in apart}
    try:
        latents = sample(
            pair.main,
            noise,
            labels,
            guide=pair.guide,
            guidance=c.guidance if pair.guide is not None else 1.0,
            interval=c.interval,
            randn_like=streams.randn_like,
            **settings,
        )
    except NonFiniteError as err:
        raise InputError(
            "non-finite latents: " + ", ".join(f"seed {seeds[i]} at step {step}" for i, step in err.failures)
        ) from err
    return latents, labels


def sample_images(pair: Pair, seeds: Sequence[int]) -> Iterator[tuple[list[int], np.ndarray, list[int]]]:
    """Yield (seeds, uint8 images [n, H, W, C], class indices or []) batch by batch, ascending seeds.

    Every batch is whole: seeds nobody asked for are sampled along and dropped, so that an image does not
    depend on which others were wanted. On a GPU the next batch is already on its way while one is decoded and fetched.
    """
    size = pair.configuration.sampler.batch_size
    wanted: dict[int, list[int]] = {}
    for seed in sorted(set(seeds)):
        wanted.setdefault(seed // size, []).append(seed)
    batches = [range(k * size, (k + 1) * size) for k in wanted]
    sampled = _ahead(lambda batch: sample_batch(pair, batch), batches, 1 if pair.device.type == "cuda" else 0)
    for (k, members), (latents, labels) in zip(wanted.items(), sampled, strict=True):
        keep = [seed - k * size for seed in members]
        images = pair.main.encoder.decode(latents)[keep]  # the decoder, too, always sees whole batches
        classes = [] if labels is None else labels[keep].argmax(dim=1).tolist()
        yield members, images.permute(0, 2, 3, 1).cpu().numpy(), classes


def _ahead(make: Callable[[range], Any], items: Iterable[range], ahead: int) -> Iterator[Any]:
    """`make` of every item, in order, with up to `ahead` later ones begun in another thread."""
    with ThreadPoolExecutor(1) as pool:
        begun: deque[Future[Any]] = deque()
        for item in items:
            if ahead == 0:
                yield make(item)
                continue
            begun.append(pool.submit(make, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


@dataclass(frozen=True)
class Format:
    """How the batches of a shard are kept."""

    suffix: str
    """Of the files."""
    is_whole: Callable[[Path, list[int], Pair], bool]
    """Whether a file holds exactly these seeds of this configuration, unbroken; InputError if of another one."""
    write: Callable[[Pair, list[int], Path, Executor, Any], None]
    """Sample seeds into a file, atomically; what need not wait for it goes to the executor."""
    bytes_per_image: float | None
    """Size on disk; None: that of a PNG."""


def generate(
    pair: Pair, seeds: Sequence[int], folder: Path, description: str = "", form: Format | None = None
) -> list[Path]:
    """Write the shards of `seeds` that are missing in `folder`; under torchrun the ranks share them.

    Shards of the same images that stand in another configuration's folder are linked instead of made again.

    Returns the paths of all shards, in seed order.

    Raises:
        InputError: a shard in `folder` was made from another configuration.
    """
    form = form or IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(seeds, pair.configuration.sampler.shard_size)
    paths = [folder / shard_name(members, form.suffix) for members in shards]
    mine = list(zip(shards, paths, strict=True))[distributed.rank() :: distributed.world_size()]
    missing = [(members, path) for members, path in mine if not form.is_whole(path, members, pair)]
    missing = [(members, path) for members, path in missing if not _borrow(path, members, pair, form)]
    total = sum(len(members) for members, _ in missing)
    if total and description:
        images = total * distributed.world_size()
        size = images * (form.bytes_per_image or _png_bytes(pair))
        distributed.print0(f"{description}: {images:,} images to sample, about {tqdm.format_sizeof(size, 'B')} on disk")
    with (
        tqdm(total=total, unit="img", desc=description, disable=None if distributed.rank() == 0 else True) as bar,
        ThreadPoolExecutor(2) as pool,
    ):
        for members, path in missing:
            form.write(pair, members, path, pool, bar)
    distributed.barrier()
    return paths


def _png_bytes(pair: Pair) -> float:
    """Typical size of an image's PNG: half a byte per value."""
    side = pair.main.img_resolution
    latent = getattr(pair.main.encoder, "kind", "rgb") == "vae"
    return 0.5 * (3 * (8 * side) ** 2 if latent else pair.main.img_channels * side**2)


def _borrow(path: Path, seeds: list[int], pair: Pair, form: Format) -> bool:
    """Link a shard with the same content that a study made before, if there is one."""
    for other in OUT.glob(f"*/samples/*/{path.name}"):
        try:
            if other != path and form.is_whole(other, seeds, pair):
                link_or_copy(other, path)
                return True
        except InputError:  # of another configuration
            continue
    return False


def plan_shards(seeds: Sequence[int], shard_size: int) -> list[list[int]]:
    """Seeds grouped by seed // shard_size, ascending."""
    groups: dict[int, list[int]] = {}
    for seed in sorted(set(seeds)):
        groups.setdefault(seed // shard_size, []).append(seed)
    return list(groups.values())


def shard_name(seeds: list[int], suffix: str = ".zip") -> str:
    """File name of the shard that holds `seeds`."""
    return f"{seeds[0]:06d}-{seeds[-1]:06d}{suffix}"


def _write_shard(pair: Pair, seeds: list[int], path: Path, pool: Executor, bar: Any) -> None:
    """Sample one shard; PNG encoding of a batch overlaps with the sampling of the next."""
    encoded: list[tuple[list[int], Future[list[bytes]]]] = []
    labels: list[int] = []
    for members, images, classes in sample_images(pair, seeds):
        encoded.append((members, pool.submit(_encode_pngs, images)))
        labels += classes
        bar.update(len(members))
    pngs = {seed: png for members, future in encoded for seed, png in zip(members, future.result(), strict=True)}
    manifest = manifest_facts(pair) | {
        "seeds": seeds,
        "labels": labels,
        "images_sha256": _digest(pngs[seed] for seed in seeds),
    }
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for seed in seeds:
            archive.writestr(zipfile.ZipInfo(f"{seed:06d}.png"), pngs[seed])  # ZipInfo: no time stamp of today
        archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest, sort_keys=True))


def manifest_facts(pair: Pair) -> dict[str, Any]:
    """What a shard says of its making besides its seeds."""
    return {
        "digest": pair.digest,
        "configuration": asdict(pair.configuration),
        "main_sha256": pair.main_sha256,
        "guide_sha256": pair.guide_sha256,
        "device_type": pair.device.type,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def shard_is_whole(path: Path, seeds: list[int], pair: Pair) -> bool:
    """Whether `path` holds exactly these seeds of this configuration, unbroken.

    Raises:
        InputError: it is a sound shard of another configuration, which is not ours to overwrite.
    """
    if not path.exists():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(MANIFEST))
            check_digest(path, manifest, pair)
            found = _digest(archive.read(f"{seed:06d}.png") for seed in seeds)
            return manifest["seeds"] == seeds and manifest["images_sha256"] == found
    except InputError:
        raise
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return False  # torn or altered: made again


def check_digest(path: Path, manifest: dict[str, Any], pair: Pair) -> None:
    """Raise InputError if a shard's manifest is that of another configuration."""
    if manifest["digest"] != pair.digest:
        raise InputError(
            f"{path}: made from another configuration ({manifest['digest'][:12]}, expected {pair.digest[:12]}); "
            f"move the folder away or choose another"
        )


IMAGES = Format(".zip", shard_is_whole, _write_shard, bytes_per_image=None)
"""PNGs in an uncompressed zip, with a manifest."""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What a shard of images says of its making; None where it is torn."""
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(json.loads(archive.read(MANIFEST)))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def read_shard(path: Path, limit: int | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """Manifest and images uint8 [n, H, W, C] of a shard, in seed order; `limit` takes the first ones only."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        images = [_decode_png(archive.read(f"{seed:06d}.png")) for seed in manifest["seeds"][:limit]]
    return manifest, np.stack(images)


def image_grid(images: Sequence[np.ndarray], columns: int, scale: int = 1) -> Image.Image:
    """Images uint8 [H, W, C] side by side, row by row."""
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    rows[-1] = np.pad(rows[-1], ((0, 0), (0, rows[0].shape[1] - rows[-1].shape[1]), (0, 0)))
    grid = np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(grid[:, :, 0] if grid.shape[2] == 1 else grid)


def _encode_pngs(images: np.ndarray) -> list[bytes]:
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "png", compress_level=1)
        encoded.append(buffer.getvalue())
    return encoded


def _decode_png(data: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
