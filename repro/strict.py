"""YAML as typed settings, strictly: unknown and missing keys are errors that name the key and the nearest valid one."""

import dataclasses
import difflib
import types
import typing
from typing import Any

from metrics.files import InputError


def build(cls: Any, value: Any, where: str = "") -> Any:
    """`value` from YAML as the annotated type `cls`, strictly: dataclasses, dict, list, unions and scalars."""
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return build(next(arg for arg in args if arg is not type(None)), value, where)
    if dataclasses.is_dataclass(cls):
        return _build_dataclass(cls, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a mapping, found {value!r}")
        return {str(key): build(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {value!r}")
        items = [build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if cls is Any:
        return value
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, cls) or (isinstance(value, bool) and cls is not bool):
        raise InputError(f"{where}: expected {cls.__name__}, found {value!r}")
    return value


def _build_dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where or 'the file'}: expected a mapping, found {type(value).__name__}")
    hints = typing.get_type_hints(cls)
    names = {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in names:
            raise InputError(f"unknown key {prefix}{key}{nearest(str(key), names)}")
    for name, f in names.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(f"missing key {prefix}{name}")
    arguments = {key: build(hints[key], item, f"{prefix}{key}") for key, item in value.items()}
    try:
        return cls(**arguments)
    except InputError as err:
        raise InputError(f"{prefix.rstrip('.')}: {err}" if where else str(err)) from None


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """End of a message about an unknown `key`: the nearest known one, or all of them."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known)) or 'none'}"
