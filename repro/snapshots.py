"""Network files: the published pickles, read without running anything in them, and safetensors with JSON metadata."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metrics.files import InputError, atomic_write, explained, sha256_file
from metrics.files.reading import NUMPY_GLOBALS, Inert, load_pickle
from metrics.files.tensors import first, load_nested_tensors, load_state_dict, rebuild_tensor
from repro import encoders
from repro.missing import read_missing
from repro.networks import Precond
from repro.strict import build

METADATA = "autoguidance"  # the one string that safetensors keeps beside the tensors
MODULES = ("Precond", "UNet", "Block", "MPConv", "MPFourier")  # classes that a published network is made of
ENCODERS = {"StandardRGBEncoder": "rgb", "StabilityVAEEncoder": "vae"}
MAX_DEPTH = 8  # of modules; a network has 3
ARRAYS = (np.ndarray, np.generic)
# Largest values of the construction arguments that decide how much is built.
BOUNDS = {"img_resolution": 4096, "img_channels": 64, "label_dim": 1_000_000}
BOUNDS |= {"model_channels": 8192, "num_blocks": 64, "logvar_channels": 65_536}
FRACTIONS = ("label_balance", "concat_balance", "res_balance", "attn_balance", "dropout")


@dataclass(frozen=True)
class Snapshot:
    """A network with its encoder."""

    network: Precond
    encoder: encoders.Encoder
    #: JSON: nimg and ema_std where known, source_sha256 of the file it was read from, and what its maker added.
    metadata: dict[str, Any]


class Name(NamedTuple):
    """What RUN-KIMG-STD.ext says."""

    run: str
    kimg: int
    ema_std: float


def parse_name(name: str) -> Name | None:
    """`edm2-img512-s-2147483-0.130.pkl` -> its parts; None where a name is not of this form."""
    match = re.fullmatch(r"(.+)-(\d{7})-(\d\.\d{3})(?:\.\w+)?", name)
    return Name(match[1], int(match[2]), float(match[3])) if match else None


def checked_name(name: str) -> Name:
    """The parts of a name; InputError where it is not of this form."""
    parts = parse_name(name)
    if parts is None:
        raise InputError(f"{name}: expected a name RUN-KIMG-STD, as in net-0134217-0.100.safetensors")
    return parts


def format_name(run: str, kimg: int, ema_std: float) -> str:
    """The file name of a network, RUN-KIMG-STD.safetensors."""
    return f"{run}-{kimg:07d}-{ema_std:.3f}.safetensors"


def with_ema(name: str, ema_std: float) -> str:
    """The name of the same network at another EMA length."""
    run, kimg, _ = checked_name(name)
    return format_name(run, kimg, ema_std)


def kimg_to_nimg(kimg: int) -> int:
    """Images behind a file name's kimg: training counts in multiples of 1,024, and kimg = nimg // 1000."""
    return -(-kimg * 1000 // 1024) * 1024


def load(path: str | Path, as_stored: bool = False) -> Snapshot:
    """Read a network file, .pkl as published or .safetensors; weights come as float32 on the CPU.

    `as_stored`: convolutions and linear layers in float16 where the file has them so, of .safetensors memory-mapped:
    to be folded, which gives the same bits. All processes of a machine then share one copy, the system's of the file.
    InputError: anything is not as it should be; names file, key, expected and found.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such network file")
    if path.suffix == ".pkl":
        return load_published(path, as_stored)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a .safetensors or .pkl file")
    metadata = read_metadata(path)
    with explained(f"{path}: metadata cannot be used", "expected sound init_kwargs and encoder"):
        init_kwargs, encoder = metadata.pop("init_kwargs"), encoders.build(metadata.pop("encoder"))
    return Snapshot(_assemble(path, init_kwargs, load_state_dict(path), as_stored), encoder, metadata)


def save(snapshot: Snapshot, path: str | Path) -> None:
    """Write a .safetensors file atomically: parameters in float16, as published, buffers as they are."""
    network = snapshot.network
    parameters = {name: p.detach().to(torch.float16) for name, p in network.named_parameters()}
    tensors = {name: t.cpu().contiguous() for name, t in (parameters | dict(network.named_buffers())).items()}
    metadata = snapshot.metadata | {"init_kwargs": network.init_kwargs, "encoder": snapshot.encoder.config()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA: json.dumps(metadata, sort_keys=True)})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of a .safetensors network, with construction arguments and encoder; InputError if it has none."""
    if reasons := read_missing(Path(path)):
        raise InputError(f"{path}: is not there, since {reasons.get('')}; `repro fetch --retry` asks again")
    with explained(f"{path}: not a sound safetensors file"), safe_open(path, "pt") as file:
        found = json.loads((file.metadata() or {}).get(METADATA, "null"))
    if not isinstance(found, dict):
        raise InputError(f"{path}: no '{METADATA}' metadata; expected a network saved by this toolkit")
    return found


def _assemble(path: Path, init_kwargs: Any, tensors: Mapping[str, Tensor], as_stored: bool) -> Precond:
    """The network that `init_kwargs` describe with the given weights; nothing larger than the file is allocated."""
    _check_init_kwargs(path, init_kwargs)
    with explained(f"{path}: construction arguments do not build a network"), torch.device("meta"):
        network = Precond(**init_kwargs)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    for key, shape in shapes.items():
        if (tensor := tensors.get(key)) is None:
            raise InputError(f"{path}: {key} is missing; expected shape {shape}")
        if list(tensor.shape) != shape:
            raise InputError(f"{path}: {key} has shape {list(tensor.shape)}, expected {shape}")
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise InputError(f"{path}: {key} ({tensor.dtype}), expected finite floating-point numbers")
    if extra := tensors.keys() - shapes.keys():
        raise InputError(f"{path}: {min(extra)} has no place in this network")
    # Gains and buffers enter arithmetic as they are, so that they are float32 always.
    kept = {
        key for key, p in network.named_parameters() if as_stored and p.ndim and tensors[key].dtype == torch.float16
    }
    network.load_state_dict({k: t if k in kept else t.float() for k, t in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _check_init_kwargs(path: Path, init_kwargs: Any) -> None:
    """Plain numbers and short lists of them, within bounds; what they mean together is for the network to say."""
    for key, value in build(dict[str, Any], init_kwargs, f"{path}: construction arguments").items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key in BOUNDS and not (whole and 0 <= value <= BOUNDS[key]):
            raise InputError(f"{path}: {key} is {_brief(value)}, expected an integer of at most {BOUNDS[key]}")
        numbers = value if isinstance(value, list | tuple) else [value]
        if len(numbers) > 16 or not all(n is None or (isinstance(n, int | float) and abs(n) < 2**53) for n in numbers):
            raise InputError(f"{path}: {key} is {_brief(value)}, expected a finite number or a list of at most 16")
        single = isinstance(value, int | float)
        if key in FRACTIONS and not (single and 0 <= value <= 1):
            raise InputError(f"{path}: {key} is {_brief(value)}, expected a number from 0 to 1")
        if key == "sigma_data" and not (single and value > 0):
            raise InputError(f"{path}: sigma_data is {_brief(value)}, expected a number above 0")


def _brief(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, int | float | str | None) else f"of type {type(value).__name__}"


class _Object(NamedTuple):
    """Inert record of an object with embedded source; the source is dropped unread."""

    class_name: str
    state: dict[str, Any]


def _persistent_object(meta: Any) -> _Object:
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise ValueError("an object without its state")
    return _Object(str(meta.get("class_name")), meta["state"])


def load_published(path: Path, as_stored: bool = False) -> Snapshot:
    allowed: dict[tuple[str, str], Any] = NUMPY_GLOBALS | {
        ("dnnlib.util", "EasyDict"): dict,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
        ("collections", "OrderedDict"): dict,
        ("torch._utils", "_rebuild_parameter"): first,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch.nn.modules.container", "ModuleDict"): Inert,
        ("torch.storage", "_load_from_bytes"): lambda data: load_nested_tensors(data, str(path)),
    }
    tree = load_pickle(path, allowed)
    if not isinstance(tree, dict) or not isinstance(tree.get("ema"), _Object):
        raise InputError(f"{path}: expected a published network snapshot, a dictionary with the network under 'ema'")
    network = tree["ema"]
    if network.class_name != "Precond":
        raise InputError(f"{path}: the network's class is {network.class_name}, expected Precond")
    precond = _assemble(path, _arguments(path, network), dict(_tensors(path, network, "", set())), as_stored)
    name = parse_name(path.name)
    known: dict[str, Any] = {"nimg": kimg_to_nimg(name.kimg), "ema_std": name.ema_std} if name else {}
    return Snapshot(
        precond, _published_encoder(path, tree.get("encoder")), known | {"source_sha256": sha256_file(path)}
    )


def _tensors(path: Path, module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    name = prefix.rstrip(".") or "the network"
    if isinstance(module, _Object) and module.class_name not in MODULES:
        raise InputError(f"{path}: {name} is of class {module.class_name}, expected one of {', '.join(MODULES)}")
    state = module.state if isinstance(module, _Object | Inert) else None
    if not isinstance(state, dict):
        raise InputError(f"{path}: {name} is not a module")
    if id(state) in seen:
        raise InputError(f"{path}: {name} occurs twice in the network; every module has one place")
    if prefix.count(".") > MAX_DEPTH:
        raise InputError(f"{path}: modules nested more than {MAX_DEPTH} deep, at {name}")
    seen.add(id(state))
    for kind in ("_parameters", "_buffers", "_modules"):
        for key, value in build(dict[str, Any], state.get(kind, {}), f"{path}: {kind} of {name}").items():
            if kind == "_modules" and value is not None:
                yield from _tensors(path, value, f"{prefix}{key}.", seen)
            elif isinstance(value, Tensor):
                yield f"{prefix}{key}", value
            elif value is not None:
                raise InputError(f"{path}: {prefix}{key} is {type(value).__name__}, expected a tensor")


def _arguments(path: Path, found: _Object) -> dict[str, Any]:
    """Constructor arguments of an object, lists and numbers as JSON has them."""
    if found.state.get("_init_args"):
        raise InputError(f"{path}: {found.class_name} was built with positional arguments, expected none")
    arguments = build(dict[str, Any], found.state.get("_init_kwargs", {}), f"{path}: arguments of {found.class_name}")
    return {
        key: list(value) if isinstance(value, tuple) else value.tolist() if isinstance(value, ARRAYS) else value
        for key, value in arguments.items()
    }


def _published_encoder(path: Path, encoder: Any) -> encoders.Encoder:
    if encoder is None:  # as the released code takes it
        return encoders.RGBEncoder()
    if not isinstance(encoder, _Object) or encoder.class_name not in ENCODERS:
        found = getattr(encoder, "class_name", type(encoder).__name__)
        raise InputError(f"{path}: the encoder is {found}, expected {' or '.join(ENCODERS)}")
    arguments = _arguments(path, encoder)
    with explained(f"{path}: arguments {sorted(arguments)} of {encoder.class_name} cannot be used"):
        built = encoders.build(arguments | {"kind": ENCODERS[encoder.class_name]})
    for key in ("scale", "bias") if built.kind == "vae" else ():
        stored, expected = encoder.state.get(key), getattr(built, key)
        if not isinstance(stored, ARRAYS) or stored.shape != expected.shape or not np.allclose(stored, expected):
            raise InputError(f"{path}: the encoder's {key} is {stored}, expected {expected.tolist()}")
    return built
