"""Networks by what names them: a file, a folder of diffusers, or code of the user's own."""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from metrics.detectors import weights
from metrics.documents import parse_yaml
from metrics.files import InputError, explained, sha256_file
from repro import snapshots
from repro.adapters import from_diffusers
from repro.adapters.parameterisations import Adapted
from repro.inference import fold
from repro.networks import Denoiser
from repro.strict import build

SUFFIXES = (".safetensors", ".pkl")
#: What of a folder of diffusers decides an answer; what else lies there is not read.
PIPELINE_FILES = (".json", ".safetensors")


@dataclass(frozen=True)
class Model:
    """A network that is no file of this project's (stage `models`), called `ID/model.json` in a study."""

    #: `module:function` that returns a `repro.networks.Denoiser`.
    code: str | None = None
    #: What the function is called with, by keyword.
    arguments: dict[str, Any] = field(default_factory=dict)
    #: Instead of code: the folder of a pipeline that diffusers saved (`repro.adapters.from_diffusers`).
    diffusers: str | None = None
    #: Of such a pipeline's network; default: that of its weights.
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    #: File or folder that decides what the network is, such as its weights; of a pipeline its folder. A study must
    #: name it, since DVC makes everything again when it changes.
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.code is None) == (self.diffusers is None):
            raise InputError("expected exactly one of code and diffusers")
        if self.code is not None and not re.fullmatch(r"[\w.]+:\w+", self.code):
            raise InputError(f"code is '{self.code}', expected module:function")
        if self.diffusers is not None and self.arguments:
            raise InputError("arguments are for code; a pipeline of diffusers takes none")
        if self.code is not None and self.dtype is not None:
            raise InputError("dtype is for a pipeline of diffusers; code settles its own")
        if self.diffusers is not None and self.path not in (None, self.diffusers):
            raise InputError(f"path is '{self.path}', expected the pipeline's folder, '{self.diffusers}'")


def load_network(source: str, device: torch.device, models: Mapping[str, Model] | None = None) -> tuple[Denoiser, str]:
    """A network ready to sample on `device`, and the sha256 of what it is.

    `source` is a name of `models`, a network file, the folder of a pipeline of diffusers, `module:function`, or an
    entry of `models` as YAML, in braces. Raises InputError where it is missing or broken.
    """
    model = (models or {}).get(source) or _named(source)
    if model is not None:
        return load_model(model, device)
    snapshot = snapshots.load(source, as_stored=True)
    network = fold(snapshot.network, device)
    network.encoder = snapshot.encoder
    return network, sha256_file(source)


def _named(source: str) -> Model | None:
    """The model that a source is by its form; None: it is a network file."""
    if source.startswith("{"):
        model: Model = build(Model, parse_yaml(source, "the network: "), "the network")
        return model
    if Path(source).suffix not in SUFFIXES and ":" in source:
        return Model(code=source)
    return Model(diffusers=source) if os.path.isdir(source) else None  # which takes any text


def load_model(model: Model, device: torch.device) -> tuple[Denoiser, str]:
    """What a `Model` names, in evaluation mode on `device`; its sha256.

    The digest is that of parameters, buffers and settings, of the arguments, of `path` and of the files in a list
    `files` of the network's; of a pipeline that of the files which are read. It is never of a name. Raises InputError
    where it cannot be imported, is no Denoiser, or has nothing to tell it by.
    """
    network = _pipeline(model, device) if model.diffusers is not None else _called(model)
    name = model.diffusers or model.code
    if not isinstance(network, Denoiser):
        raise InputError(f"{name} does not return a Denoiser (see repro.networks.Denoiser)")
    tensors: dict[str, Any] = {}
    if isinstance(network, torch.nn.Module):
        tensors = network.eval().requires_grad_(False).to(device).state_dict()
    listed = [model.path] if model.path and model.code else []
    files = [*_contents([*listed, *getattr(network, "files", ())]), *_pipeline_contents(model)]
    is_function = isinstance(network, Adapted) and not isinstance(network.model, torch.nn.Module)
    if (is_function or not tensors) and not files:
        raise InputError(
            f"{name}: has neither parameters nor a list `files` of what decides its answers, so that a change of it "
            "would go unnoticed; make it a torch.nn.Module or give it `files`"
        )
    content = [weights.digest(tensors), *files]
    if model.arguments:
        content.append(json.dumps(model.arguments, sort_keys=True, default=str))
    if isinstance(network, Adapted):
        content.append(json.dumps(network.settings(), sort_keys=True))
    return network, hashlib.sha256("\n".join(content).encode()).hexdigest()


def _called(model: Model) -> object:
    """What the user's function returns."""
    module, _, function = str(model.code).partition(":")
    with explained(f"cannot import or make the model {model.code}"):
        return getattr(importlib.import_module(module), function)(**model.arguments)


def _pipeline(model: Model, device: torch.device) -> Denoiser:
    return from_diffusers(str(model.diffusers), device, model.dtype and getattr(torch, model.dtype))


def _contents(paths: list[str]) -> Iterator[str]:
    """Digests of files, and of the files in folders."""
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder, though the model depends on it")
        yield from (sha256_file(p) for p in sorted([path, *path.rglob("*")]) if p.is_file() and p.suffix != ".pyc")


def _pipeline_contents(model: Model) -> Iterator[str]:
    """Names and digests of the files of a pipeline."""
    if model.diffusers is not None:
        folder = Path(model.diffusers)
        parts = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
        for path in sorted(path for path in parts if path.suffix in PIPELINE_FILES):
            yield f"{path.relative_to(folder)} {sha256_file(path)}"
