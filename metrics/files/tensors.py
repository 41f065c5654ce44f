"""Files of tensors from anywhere: PyTorch state dicts, TorchScript archives, safetensors; read, never run."""

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from metrics.files import (
    Inert,
    InputError,
    RestrictedUnpickler,
    check_archive,
    check_opcodes,
    one_line,
    run_unpickler,
)

STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


def read(path: Path, max_bytes: int) -> dict[str, Tensor]:
    """`metrics.files.load_state_dict` of a file that exists."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as err:
            raise InputError(f"{path}: not a sound safetensors file ({one_line(err)})") from err
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                check_archive(archive, path, max_bytes)
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    return _read_torchscript(archive, path)
        except (zipfile.BadZipFile, NotImplementedError) as err:
            raise InputError(f"{path}: not a sound archive ({one_line(err)})") from err
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        raise InputError(f"{path}: not a PyTorch state dict: its contents {_refused(err)}") from err
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path}: expected a dictionary of tensors")
    return dict(loaded)


def load_nested_tensors(data: bytes, source: str) -> Any:
    """Stand-in for `torch.storage._load_from_bytes`: a nested file with one storage, read with `weights_only`.

    Raises:
        InputError: anything else inside, or sizes that do not fit the bytes at hand.
    """
    source = f"{source}: nested tensors"
    stream = io.BytesIO(data)
    storages = sum(_check_nested(stream, source) for _ in range(4))  # magic number, protocol, system, and the object
    stream.seek(0)
    try:
        loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as err:
        raise InputError(f"{source} {_refused(err)}") from err
    if storages != 1 or not isinstance(loaded, torch.storage.TypedStorage):
        raise InputError(f"{source} hold {type(loaded).__name__}, expected one storage")
    return loaded


def _check_nested(stream: io.BytesIO, source: str) -> int:
    """Check one pickle of a nested file before torch sees it; returns how many storages it names."""
    start, size = stream.tell(), stream.getbuffer().nbytes
    check_opcodes(stream, source)
    stream.seek(start)
    storages = largest = 0
    for opcode, argument, _ in pickletools.genops(stream):
        name = str(argument).replace(" ", ".")
        if opcode.name in ("GLOBAL", "INST") and name.removeprefix("torch.").removesuffix("Storage") not in STORAGES:
            raise InputError(f"{source} name {name}, which has no place there; nothing was run")
        if opcode.name == "PROTO" and argument != 2:
            raise InputError(f"{source} are of pickle protocol {argument}, expected 2")
        if opcode.name.startswith(("BININT", "INT", "LONG")) and isinstance(argument, int):
            largest = max(largest, argument)
        storages += opcode.name in ("PERSID", "BINPERSID")
    if storages and largest > size:
        raise InputError(f"{source} state {largest} elements in {size} bytes; the file is malformed")
    return storages


def _refused(err: Exception) -> str:
    """What torch's weights-only reading found wrong."""
    found = re.search(r"GLOBAL\s+(\S+)", str(err))
    return f"name {found[1]}, which has no place there; nothing was run" if found else f"are broken ({one_line(err)})"


def rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor_v2` that stays within the storage and never allocates."""
    flat = storage if isinstance(storage, Tensor) else torch.empty(0, dtype=storage.dtype).set_(storage)
    numbers = [offset, *size, *stride]
    if any(not isinstance(n, int) or n < 0 for n in numbers) or len(size) != len(stride):
        raise ValueError("a tensor whose offset, size and stride are not counts")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (math.prod(size) > flat.numel() or last >= flat.numel()):
        raise ValueError(f"a tensor of size {tuple(size)} in a storage of {flat.numel()} elements")
    return torch.as_strided(flat, tuple(size), tuple(stride), offset if 0 not in size else 0)


# --- TorchScript -----------------------------------------------------------------------------------------------


class _TorchScriptUnpickler(RestrictedUnpickler):
    """Reads data.pkl of a TorchScript archive: modules become `Inert`, storages come from the zip, once each."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str, source: str) -> None:
        super().__init__(stream, _TORCHSCRIPT_GLOBALS, source)
        self.archive = archive
        self.root = root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        return Inert if module.startswith("__torch__") else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, numel = pid
        if key not in self.storages:
            dtype = STORAGES[kind]
            data = self.archive.read(f"{self.root}data/{key}")
            if len(data) != numel * dtype.itemsize:
                raise InputError(f"{self.source}: storage {key} has {len(data)} bytes, expected {numel} of {dtype}")
            self.storages[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _first(value: Any, *_: Any) -> Any:
    return value


_TORCHSCRIPT_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    ("collections", "OrderedDict"): dict,
    **{("torch", f"{name}Storage"): name for name in STORAGES},
}


def _read_torchscript(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    main = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if main is None:
        raise InputError(f"{path}: a TorchScript archive without data.pkl")
    stream = io.BytesIO(archive.read(main))
    check_opcodes(stream, str(path))
    stream.seek(0)
    tree = run_unpickler(_TorchScriptUnpickler(stream, archive, main.removesuffix("data.pkl"), str(path)))
    found = dict(_tensors(tree, "", set(), path))
    if not found:
        raise InputError(f"{path}: a TorchScript archive that holds no tensors")
    return found


def _tensors(module: Any, prefix: str, seen: set[int], path: Path) -> Iterator[tuple[str, Tensor]]:
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
