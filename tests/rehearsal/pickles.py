"""Networks and reference statistics in the published pickle format, written without the authors' code.

A published network is a tree of records (type, version, module_src, class_name, state) behind one function. Here the
records are made from this project's modules; the names they refer to can be imported only while they are written.
"""

import contextlib
import io
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from repro.encoders import RGBEncoder, StabilityVAEEncoder
from repro.networks import Block, MPConv, MPFourier, Precond, UNet
from repro.snapshots import Snapshot

SOURCE = "# a network of a rehearsal: there is no source to embed\n"
VERSION = 6
UNET = ("img_resolution", "img_channels", "label_dim")
OF_UNET = (
    *("model_channels", "channel_mult", "channel_mult_noise", "channel_mult_emb", "num_blocks"),
    *("attn_resolutions", "label_balance", "concat_balance"),
)
DEFAULTS = {"use_fp16": True, "sigma_data": 0.5, "logvar_channels": 128}


def network(snapshot: Snapshot) -> bytes:
    """A network file as published: float16 weights, the encoder, and remarks on its training."""
    content = _EasyDict(
        encoder=_encoder(snapshot.encoder),
        dataset_kwargs=_EasyDict(
            class_name="training.dataset.ImageFolderDataset", path="datasets/rehearsal.zip", use_labels=True
        ),
        loss_fn=_Record(
            "EDM2Loss", {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}}
        ),
        ema=_precond(snapshot.network),
    )
    return _dump(content)


def statistics(num_images: int, **moments: tuple[np.ndarray, np.ndarray]) -> bytes:
    """A file of reference statistics: `fid` and `fd_dinov2`, each mean [D] and covariance [D, D] in float64."""
    content: dict[str, Any] = {"num_images": num_images}
    for name, (mu, sigma) in moments.items():
        content[name] = {"mu": mu.astype(np.float64), "sigma": sigma.astype(np.float64)}
    return pickle.dumps(content, protocol=4)


class _EasyDict(dict[str, Any]):
    """Written as dnnlib.util.EasyDict."""


class _Record:
    """An object with embedded source, as the published files hold it."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {
            "type": "class",
            "version": VERSION,
            "module_src": SOURCE,
            "class_name": class_name,
            "state": state,
        }


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise NotImplementedError("this name is written, never called")


class _Pickler(pickle.Pickler):
    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, _Record):
            return _reconstruct_persistent_obj, (found.meta,)
        return NotImplemented


NAMES = {
    "dnnlib.util.EasyDict": _EasyDict,
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct_persistent_obj,
}
for _name, _member in NAMES.items():
    _member.__module__, _, _member.__qualname__ = _name.rpartition(".")


def _dump(content: Any) -> bytes:
    buffer = io.BytesIO()
    with _importable():
        _Pickler(buffer, protocol=4).dump(content)
    return buffer.getvalue()


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Let `NAMES` be found by the pickler, which checks that what it writes can be read."""
    modules: dict[str, types.ModuleType] = {}
    for name, member in NAMES.items():
        module, _, attribute = name.rpartition(".")
        for key in (module.split(".")[0], module):
            modules.setdefault(key, types.ModuleType(key))
        setattr(modules[module], attribute, member)
    before = {key: sys.modules[key] for key in modules if key in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for key in modules:
            del sys.modules[key]
        sys.modules.update(before)


def _module(
    source: nn.Module, children: dict[str, Any], own: dict[str, Any], args: tuple[Any, ...], **kwargs: Any
) -> Any:
    """Record of a module: what every torch module has, then its own attributes, then its constructor's arguments."""
    state = vars(nn.Module()) | {"training": False, "_modules": children}
    state["_parameters"] = {
        name: nn.Parameter(p.detach().half(), requires_grad=False)
        for name, p in source._parameters.items()
        if p is not None
    }
    state["_buffers"] = {name: b.half() for name, b in source._buffers.items() if b is not None}
    absent = {name: None for name in ("emb_label", "conv_skip", "attn_qkv", "attn_proj") if hasattr(source, name)}
    absent = {name: None for name in absent if getattr(source, name) is None}
    return _Record(type(source).__name__, state | own | absent | {"_init_args": args, "_init_kwargs": kwargs})


def _precond(source: Precond) -> _Record:
    given = {key: value for key, value in source.init_kwargs.items() if DEFAULTS.get(key) != value}
    passed = {key: value for key, value in given.items() if key not in DEFAULTS}
    children = {
        "unet": _unet(source.unet, passed),
        "logvar_fourier": _leaf(source.logvar_fourier),
        "logvar_linear": _leaf(source.logvar_linear),
    }
    own = {key: getattr(source, key) for key in (*UNET, "use_fp16", "sigma_data")}
    return _module(source, children, own, (), **given)


def _unet(source: UNet, given: dict[str, Any]) -> _Record:
    for_blocks = {key: value for key, value in given.items() if key not in (*UNET, *OF_UNET)}
    children: dict[str, Any] = {}
    for name, child in source.named_children():
        if isinstance(child, nn.ModuleDict):
            members = {key: _layer(key, member, for_blocks) for key, member in child.items()}
            children[name] = nn.ModuleDict().eval()
            vars(children[name])["_modules"] = members
        else:
            children[name] = _leaf(child)
    own = {"label_balance": source.label_balance, "concat_balance": source.concat_balance}
    return _module(source, children, own, (), **given)


def _layer(name: str, source: nn.Module, for_blocks: dict[str, Any]) -> _Record:
    if not isinstance(source, Block):
        return _leaf(source)
    kwargs: dict[str, Any] = {"flavor": source.flavor}
    if source.resample_mode != "keep":
        kwargs["resample_mode"] = source.resample_mode
    elif not name.endswith("in1"):
        kwargs["attention"] = source.num_heads > 0
    incoming = source.conv_res0.weight.shape[1] if source.conv_skip is None else source.conv_skip.weight.shape[1]
    own = {"out_channels": source.out_channels, "flavor": source.flavor, "resample_filter": [1, 1]}
    keys = ("resample_mode", "num_heads", "dropout", "res_balance", "attn_balance", "clip_act")
    own |= {key: getattr(source, key) for key in keys}
    children = {key: _leaf(child) for key, child in source.named_children()}
    args = (incoming, source.out_channels, source.emb_linear.weight.shape[1])
    return _module(source, children, own, args, **kwargs, **for_blocks)


def _leaf(source: nn.Module) -> _Record:
    if isinstance(source, MPFourier):
        return _module(source, {}, {}, (len(source.freqs),))
    assert isinstance(source, MPConv)
    outgoing, incoming, *kernel = source.weight.shape
    return _module(source, {}, {"out_channels": outgoing}, (incoming, outgoing), kernel=kernel)


def _encoder(encoder: RGBEncoder | StabilityVAEEncoder) -> _Record:
    if isinstance(encoder, RGBEncoder):
        return _Record("StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}})
    state = {"_init_args": (), "_init_kwargs": {}, "vae_name": encoder.vae_name}
    moments = {"scale": encoder.scale.numpy(), "bias": encoder.bias.numpy()}
    return _Record("StabilityVAEEncoder", state | moments | {"batch_size": 8, "_vae": None})
