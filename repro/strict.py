"""YAML as typed settings, strictly, and the digest of settings.

Unknown and missing keys, duplicate keys and values of another type are errors that name the key and the nearest valid
one. A field of a dataclass that is marked `inline()` is written among the keys of the one that holds it.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from metrics.documents import parse_yaml, read_yaml
from metrics.files import InputError, nearest


def inline() -> Any:
    """Marks a field of a dataclass type whose own fields stand among its holder's keys."""
    return dataclasses.field(metadata={"inline": True})


@contextlib.contextmanager
def located(where: str | Path) -> Iterator[None]:
    """Let an InputError raised inside begin with the place `where`, unless that is empty."""
    try:
        yield
    except InputError as err:
        raise InputError(f"{where}: {err}" if where else str(err)) from None


def finite(settings: Any, *names: str) -> None:
    """Raise InputError unless each named field is a finite number, several such, or None."""
    _check(settings, names, -math.inf, math.inf, "")


def positive(settings: Any, *names: str) -> None:
    """The same for finite numbers above 0."""
    _check(settings, names, math.ulp(0.0), math.inf, " above 0")


def within(settings: Any, low: float, high: float, *names: str) -> None:
    """The same for finite numbers from `low` to `high`, which may be infinite."""
    _check(settings, names, low, high, f" from {low} to {high}" if high < math.inf else f" of at least {low}")


def _check(settings: Any, names: Sequence[str], low: float, high: float, bounds: str) -> None:
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not (low <= number <= high and math.isfinite(number)):
                raise InputError(f"{name} is {value}, expected a finite number{bounds}")


def build(cls: Any, value: Any, where: str = "") -> Any:
    """`value` from YAML as the annotated type `cls`: dataclasses, dict, list, tuple, unions, literals and scalars.

    Raises InputError naming the key (`where`), what was found and what was expected.
    """
    origin, args = get_origin(cls), get_args(cls)
    if origin in (types.UnionType, Union):
        return _build_union(args, value, where)
    if origin in (list, tuple):
        return _build_sequence(origin, args, value, where)
    if not isinstance(value, dict) and (origin is dict or dataclasses.is_dataclass(cls)):
        raise InputError(f"{where or 'the file'}: expected a mapping, found {_brief(value)}")
    if dataclasses.is_dataclass(cls):
        return _build_dataclass(cls, value, where)
    if origin is dict:
        if others := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"{where}: key {_brief(others[0])} is no text; write it in quotes")
        return {build(args[0], key, where): build(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and value not in args:
        raise InputError(f"{where}: {_brief(value)} is unknown{nearest(str(value), args)}")
    if origin is Literal or cls is Any:
        return value
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, cls) or (isinstance(value, bool) and cls is not bool):
        raise InputError(f"{where}: expected {cls.__name__}, found {_brief(value)}")
    if isinstance(value, float) and math.isnan(value):
        raise InputError(f"{where}: expected a number, found NaN")
    return value


def _build_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first member of a union that takes the value; the first one's complaint where none does."""
    complaints = []
    for arg in args:
        try:
            return build(arg, value, where)
        except InputError as err:
            complaints.append(err)
    raise complaints[0]


def _build_sequence(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: expected a list, found {_brief(value)}")
    kinds = [args[0]] * len(value) if origin is list or args[-1] is Ellipsis else list(args)
    if len(value) != len(kinds):
        raise InputError(f"{where}: expected {len(kinds)} values, found {len(value)}")
    return origin(build(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _build_dataclass(cls: Any, value: dict[Any, Any], where: str) -> Any:
    prefix, known, hints = f"{where}." if where else "", _keys(cls), get_type_hints(cls)
    if unknown := [key for key in value if key not in known]:
        raise InputError(f"unknown key {prefix}{unknown[0]}{nearest(str(unknown[0]), known)}")
    if missing := [name for name, required in known.items() if required and name not in value]:
        raise InputError(f"missing key {prefix}{missing[0]}")
    arguments = {}
    for f in dataclasses.fields(cls):
        if f.metadata.get("inline"):
            arguments[f.name] = build(hints[f.name], {k: value[k] for k in _keys(hints[f.name]) if k in value}, where)
        elif f.name in value:
            arguments[f.name] = build(hints[f.name], value[f.name], f"{prefix}{f.name}")
    with located(where):
        return cls(**arguments)


def _keys(cls: Any) -> dict[str, bool]:
    """The keys of a dataclass in YAML, those of inline fields included -> whether they must be there."""
    hints = get_type_hints(cls)
    found: dict[str, bool] = {}
    for f in dataclasses.fields(cls):
        found |= _keys(hints[f.name]) if f.metadata.get("inline") else {f.name: _default(f) is dataclasses.MISSING}
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def load(cls: Any, path: str | Path) -> Any:
    """A YAML file as the dataclass `cls`; raises InputError that names file and key."""
    raw = read_yaml(path)
    with located(path):
        return build(cls, raw)


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` arguments of a command line as what `build` takes: `a.b=1` is {a: {b: 1}}, values are YAML.

    `512Mi` is 512 x 2^20. Raises InputError for what is no such argument, and where a key is given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        holder, _, name = key.rpartition(".")
        inner = found.setdefault(holder, {}) if holder else found
        if not name or not text or not isinstance(inner, dict) or name in inner:
            raise InputError(f"'{pair}': expected KEY=VALUE, every key once")
        count = re.fullmatch(r"(\d*\.?\d+)Mi", text)
        inner[name] = round(float(count[1]) * 2**20) if count else parse_yaml(text, f"'{pair}': the value is ")
    return found


def facts(settings: Any) -> Any:
    """Settings in JSON's types, less the fields at their defaults: a field added later changes no older digest."""
    if dataclasses.is_dataclass(settings):
        values = ((f, getattr(settings, f.name)) for f in dataclasses.fields(settings))
        return {f.name: facts(value) for f, value in values if value != _default(f)}
    if isinstance(settings, Mapping):
        return {str(key): facts(value) for key, value in settings.items()}
    return [facts(value) for value in settings] if isinstance(settings, list | tuple) else settings


def digest(*settings: Any) -> str:
    """Hex sha256 of settings: dataclasses, and whatever JSON can say."""
    return hashlib.sha256(json.dumps([facts(s) for s in settings], sort_keys=True).encode()).hexdigest()
