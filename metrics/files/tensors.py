"""Files of tensors from anywhere: PyTorch state dicts, TorchScript archives, safetensors; read, never run."""

import io
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from metrics.errors import InputError, explained, one_line
from metrics.files.reading import Inert, RestrictedUnpickler, check_archive, check_file, checked_opcodes, read_entry

STORAGES = {  # torch.FloatStorage: torch.float
    **{x: getattr(torch, x.lower()) for x in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Bool")},
    **{"Char": torch.int8, "Byte": torch.uint8},
}


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file, a PyTorch state dict, or a TorchScript archive (read, never run).

    InputError: missing or broken file, or anything in it besides tensors.
    """
    check_file(path)
    if Path(path).suffix == ".safetensors":
        with explained(f"{path}: not a sound safetensors file"):
            return load_file(path)
    if zipfile.is_zipfile(path):
        with explained(f"{path}: not a sound archive"), zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            if beside := [name for name in archive.namelist() if name.endswith("/constants.pkl")]:
                script = _TorchScriptUnpickler(archive, beside[0].removesuffix("constants.pkl"), str(path)).unpickle()
                if found := dict(_tensors(script, "", set(), str(path))):
                    return found
                raise InputError(f"{path}: a TorchScript archive that holds no tensors")
    loaded = _load_weights_only(path, f"{path}: not a PyTorch state dict: its contents")
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path}: expected a dictionary of tensors")
    return dict(loaded)


def load_nested_tensors(data: bytes, source: str) -> Any:
    """Stand-in for `torch.storage._load_from_bytes`: a nested file with one storage, read with `weights_only`.

    InputError: anything else inside, or sizes that do not fit the bytes at hand.
    """
    source = f"{source}: nested tensors"
    stream = io.BytesIO(data)
    storages = sum(_check_nested(stream, source) for _ in range(4))  # magic number, protocol, system, and the object
    stream.seek(0)
    loaded = _load_weights_only(stream, source)
    if storages != 1 or not isinstance(loaded, torch.storage.TypedStorage):
        raise InputError(f"{source} hold {type(loaded).__name__}, expected one storage")
    return loaded


def _check_nested(stream: io.BytesIO, source: str) -> int:
    """Check one pickle of a nested file before torch sees it; returns how many storages it names."""
    size, storages, largest = stream.getbuffer().nbytes, 0, 0
    for opcode, argument in checked_opcodes(stream, source):
        name = str(argument).replace(" ", ".")
        if opcode in ("GLOBAL", "INST") and name.removeprefix("torch.").removesuffix("Storage") not in STORAGES:
            raise InputError(f"{source} name {name}, which has no place there; nothing was run")
        if opcode == "PROTO" and argument != 2:
            raise InputError(f"{source} are of pickle protocol {argument}, expected 2")
        if opcode.startswith(("BININT", "INT", "LONG")) and isinstance(argument, int):
            largest = max(largest, argument)
        storages += opcode in ("PERSID", "BINPERSID")
    if storages and largest > size:
        raise InputError(f"{source} state {largest} elements in {size} bytes; the file is malformed")
    return storages


def _load_weights_only(file: str | Path | IO[bytes], what: str) -> Any:
    """What torch reads without running anything; an InputError says of `what` the name that was refused."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as err:
        found = re.search(r"GLOBAL\s+(\S+)", str(err))
        refused = f"name {found[1]}, which has no place there; nothing was run" if found else ""
        raise InputError(f"{what} {refused or f'are broken ({one_line(err)})'}") from err


def rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor_v2` that stays within the storage and never allocates."""
    flat = storage if isinstance(storage, Tensor) else torch.empty(0, dtype=storage.dtype).set_(storage)
    if any(not isinstance(n, int) or n < 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError("a tensor whose offset, size and stride are not counts")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (math.prod(size) > flat.numel() or last >= flat.numel()):
        raise ValueError(f"a tensor of size {tuple(size)} in a storage of {flat.numel()} elements")
    return torch.as_strided(flat, tuple(size), tuple(stride), offset if 0 not in size else 0)


class _TorchScriptUnpickler(RestrictedUnpickler):
    """Reads data.pkl of a TorchScript archive: modules become `Inert`, storages come from the zip, once each."""

    def __init__(self, archive: zipfile.ZipFile, root: str, source: str) -> None:
        super().__init__(io.BytesIO(read_entry(archive, f"{root}data.pkl")), _TORCHSCRIPT_GLOBALS, source)
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        return Inert if module.startswith("__torch__") else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, numel = pid
        if key not in self.storages:
            dtype, data = STORAGES[kind], read_entry(self.archive, f"{self.root}data/{key}")
            if len(data) != numel * dtype.itemsize:
                raise InputError(f"{self.source}: storage {key} has {len(data)} bytes, expected {numel} of {dtype}")
            self.storages[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def first(value: Any, *_: Any) -> Any:
    """Stand-in for functions that only mark a value."""
    return value


_TORCHSCRIPT_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch.jit._pickle", "restore_type_tag"): first,
    ("collections", "OrderedDict"): dict,
    **{("torch.jit._pickle", f"build_{kind}list"): first for kind in ("int", "double", "bool", "tensor")},
    **{("torch", f"{name}Storage"): name for name in STORAGES},
}


def _tensors(module: Any, prefix: str, seen: set[int], path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a module tree; a module that occurs twice is named where it occurs first."""
    if not isinstance(module, Inert) or not isinstance(module.state, dict) or id(module) in seen:
        return
    seen.add(id(module))
    if prefix.count(".") > 64:
        raise InputError(f"{path}: modules nested more than 64 deep")
    for key, value in module.state.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}.", seen, path)
