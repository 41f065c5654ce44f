"""Network files: the published pickles, read without running anything in them, and safetensors with JSON metadata."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metrics.files import (
    NUMPY_GLOBALS,
    InputError,
    atomic_write,
    load_nested_tensors,
    load_pickle,
    rebuild_tensor,
    sha256_file,
)
from repro import encoders
from repro.encoders import Encoder, RGBEncoder, StabilityVAEEncoder
from repro.networks import Precond

METADATA = "autoguidance"  # the one string that safetensors keeps beside the tensors
BOUNDS = {  # largest values of the construction arguments that decide how much is built
    "img_resolution": 4096,
    "img_channels": 64,
    "label_dim": 1_000_000,
    "model_channels": 8192,
    "num_blocks": 64,
    "logvar_channels": 65_536,
}


@dataclass(frozen=True)
class Snapshot:
    """A network with its encoder.

    `metadata` is JSON: nimg and ema_std where known, source_sha256 of the file it was read from, and whatever
    its maker added.
    """

    network: Precond
    encoder: Encoder
    metadata: dict[str, Any]


# --- File names ------------------------------------------------------------------------------------------------


class Name(NamedTuple):
    """What RUN-KIMG-STD.ext says."""

    run: str
    kimg: int
    ema_std: float


def parse_name(name: str) -> Name | None:
    """`edm2-img512-s-2147483-0.130.pkl` -> its parts; None where a name is not of this form."""
    match = re.fullmatch(r"(.+)-(\d{7})-(\d\.\d{3})(?:\.\w+)?", name)
    return Name(match[1], int(match[2]), float(match[3])) if match else None


def format_name(run: str, kimg: int, ema_std: float) -> str:
    """The file name of a network, RUN-KIMG-STD.safetensors."""
    return f"{run}-{kimg:07d}-{ema_std:.3f}.safetensors"


def with_ema(name: str, ema_std: float) -> str:
    """The name of the same network at another EMA length."""
    parts = parse_name(name)
    if parts is None:
        raise InputError(f"{name}: expected a name RUN-KIMG-STD, as in net-0134217-0.100.safetensors")
    return format_name(parts.run, parts.kimg, ema_std)


def kimg_to_nimg(kimg: int) -> int:
    """Images behind a file name's kimg: training counts in multiples of 1,024, and kimg = nimg // 1000."""
    return -(-kimg * 1000 // 1024) * 1024


# --- Reading and writing ---------------------------------------------------------------------------------------


def load(path: str | Path) -> Snapshot:
    """Read a network file, .pkl as published or .safetensors; weights come as float32 on the CPU.

    Raises:
        InputError: naming file, key, expected and found, where anything is not as it should be.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such network file")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix == ".pkl":
        return _load_published(path)
    raise InputError(f"{path}: expected a .safetensors or .pkl file")


def save(snapshot: Snapshot, path: str | Path) -> None:
    """Write a .safetensors file atomically: parameters in float16, as published, buffers as they are."""
    network = snapshot.network
    parameters = {name: p.detach().to(torch.float16) for name, p in network.named_parameters()}
    tensors = {name: t.cpu().contiguous() for name, t in (parameters | dict(network.named_buffers())).items()}
    metadata = snapshot.metadata | {"init_kwargs": network.init_kwargs, "encoder": snapshot.encoder.config()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA: json.dumps(metadata, sort_keys=True)})


def convert(source: str | Path, target: str | Path) -> None:
    """Published pickle -> .safetensors with the same weights, the source's digest in its metadata."""
    save(load(source), target)


def _load_safetensors(path: Path) -> Snapshot:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as err:
        raise InputError(f"{path}: not a sound safetensors file ({err})") from err
    if text is None:
        raise InputError(f"{path}: no '{METADATA}' metadata; expected a network saved by this toolkit")
    try:
        metadata = json.loads(text)
        init_kwargs, encoder = metadata.pop("init_kwargs"), encoders.build(metadata.pop("encoder"))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise InputError(f"{path}: metadata cannot be used ({type(err).__name__}: {err})") from err
    return Snapshot(_assemble(path, init_kwargs, tensors), encoder, metadata)


def _assemble(path: Path, init_kwargs: Any, tensors: Mapping[str, Tensor]) -> Precond:
    """The network that `init_kwargs` describe with the given weights; nothing larger than the file is allocated."""
    if not isinstance(init_kwargs, dict):
        raise InputError(f"{path}: construction arguments are {type(init_kwargs).__name__}, expected a mapping")
    for key, limit in BOUNDS.items():
        value = init_kwargs.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise InputError(f"{path}: {key} is {value!r}, expected an integer of at most {limit}")
    if len(init_kwargs.get("channel_mult", ())) > 16:
        raise InputError(f"{path}: channel_mult has {len(init_kwargs['channel_mult'])} levels, expected at most 16")
    try:
        with torch.device("meta"):
            network = Precond(**init_kwargs)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as err:
        raise InputError(f"{path}: construction arguments do not build a network ({err})") from err
    expected = network.state_dict()
    for key, tensor in expected.items():
        if key not in tensors:
            raise InputError(f"{path}: {key} is missing")
        if tensors[key].shape != tensor.shape:
            raise InputError(f"{path}: {key} has shape {list(tensors[key].shape)}, expected {list(tensor.shape)}")
        if not tensors[key].is_floating_point() or not tensors[key].isfinite().all():
            raise InputError(f"{path}: {key} is not made of finite floating-point numbers")
    extra = tensors.keys() - expected.keys()
    if extra:
        raise InputError(f"{path}: {min(extra)} has no place in this network")
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


# --- Published pickles -----------------------------------------------------------------------------------------


class _Object(dict[str, Any]):
    """Inert record of an object with embedded source: its class name and state; the source is dropped unread."""

    class_name: str


class _ModuleDict(dict[str, Any]):
    """Inert stand-in for torch's ModuleDict: its state."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def _persistent_object(meta: Any) -> _Object:
    found = _Object(meta["state"])
    found.class_name = str(meta["class_name"])
    return found


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _load_published(path: Path) -> Snapshot:
    allowed: dict[tuple[str, str], Any] = NUMPY_GLOBALS | {
        ("dnnlib.util", "EasyDict"): dict,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
        ("collections", "OrderedDict"): dict,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch.nn.modules.container", "ModuleDict"): _ModuleDict,
        ("torch.storage", "_load_from_bytes"): lambda data: load_nested_tensors(data, str(path)),
    }
    tree = load_pickle(path, allowed)
    if not isinstance(tree, dict) or not isinstance(tree.get("ema"), _Object):
        raise InputError(f"{path}: expected a published network snapshot, a dictionary with the network under 'ema'")
    network = tree["ema"]
    if network.class_name != "Precond":
        raise InputError(f"{path}: the network's class is {network.class_name}, expected Precond")
    if network.get("_init_args"):
        raise InputError(f"{path}: positional construction arguments {network['_init_args']}, expected none")
    tensors = dict(_tensors(path, network, ""))
    precond = _assemble(path, _plain(path, network.get("_init_kwargs", {})), tensors)
    name = parse_name(path.name)
    known = {} if name is None else {"nimg": kimg_to_nimg(name.kimg), "ema_std": name.ema_std}
    return Snapshot(
        precond, _published_encoder(path, tree.get("encoder")), known | {"source_sha256": sha256_file(path)}
    )


def _tensors(path: Path, module: Any, prefix: str) -> Any:
    """Yield (parameter name, tensor) of an inert module tree."""
    if not isinstance(module, dict):
        raise InputError(f"{path}: {prefix.rstrip('.') or 'the network'} is not a module")
    for kind in ("_parameters", "_buffers"):
        for key, value in (module.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value
            elif value is not None:
                raise InputError(f"{path}: {prefix}{key} is {type(value).__name__}, expected a tensor")
    for key, child in (module.get("_modules") or {}).items():
        if child is not None:
            yield from _tensors(path, child, f"{prefix}{key}.")


def _plain(path: Path, value: Any) -> Any:
    """JSON-like copy of construction arguments; anything else is refused."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(path, item) for item in value]
    if type(value) is dict:
        return {str(key): _plain(path, item) for key, item in value.items()}
    raise InputError(f"{path}: a construction argument is {type(value).__name__}, expected plain numbers and lists")


def _published_encoder(path: Path, encoder: Any) -> Encoder:
    if isinstance(encoder, _Object):
        arguments = _plain(path, encoder.get("_init_kwargs", {}))
        if encoder.class_name == "StandardRGBEncoder" and not arguments:
            return RGBEncoder()
        if encoder.class_name == "StabilityVAEEncoder":
            try:
                return StabilityVAEEncoder(**arguments)
            except (TypeError, ValueError) as err:
                raise InputError(f"{path}: encoder arguments {arguments} cannot be used ({err})") from err
    found = getattr(encoder, "class_name", type(encoder).__name__)
    raise InputError(f"{path}: the encoder is {found}, expected StandardRGBEncoder or StabilityVAEEncoder")
