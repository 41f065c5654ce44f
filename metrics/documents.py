"""YAML from anywhere: bounded by what its text says, before anything is built of it."""

import re
from pathlib import Path
from typing import Any

import yaml

from metrics.errors import InputError, explained, on_one_line

#: Of a YAML text: characters, values with all that aliases repeat, levels, characters of a word without quotes.
MAX_TEXT, MAX_VALUES, MAX_LEVELS, MAX_WORD = 2 * 2**20, 50_000, 60, 2000
MERGE = "tag:yaml.org,2002:merge"
BROKEN = (OSError, ValueError, yaml.YAMLError, RecursionError)


def read_yaml(path: str | Path) -> Any:
    """Content of a YAML file; raises InputError where it cannot be read or is refused by `parse_yaml`."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file, or none that can be read")
    with explained(f"{path}: not valid YAML", errors=BROKEN), open(path, encoding="utf-8") as file:
        return parse_yaml(file.read(MAX_TEXT + 1), f"{path}: ")


def parse_yaml(text: str, source: str = "") -> Any:
    """What a YAML text says, by PyYAML's safe loader; `source` begins the errors.

    Raises InputError for what is no YAML, names a key twice, or would become large, deep or endless.
    """
    with explained(f"{source}not valid YAML", errors=BROKEN):
        try:
            _check(text)
            return yaml.load(text, Loader=_Loader)
        except InputError as err:
            raise InputError(f"{source}{err}") from None


def _check(text: str) -> None:
    """Refuse depth, size and self-reference by the events of a text, of which nothing is built."""
    if len(text) > MAX_TEXT:
        raise InputError(f"is longer than {MAX_TEXT} characters")
    total, sizes = 0, dict[str, int]()
    begun = list[tuple[str | None, int]]()  # collections: anchor, and the values before it
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        where = f"line {event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in begun):
                raise InputError(f"{on_one_line(str(event.anchor), 80)} contains itself ({where})")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes |= {anchor: total - before} if anchor else {}
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                begun.append((event.anchor, total))
            elif isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > MAX_WORD:
                # it might become a number
                raise InputError(f"a word of {len(event.value)} characters ({where}); write long texts in quotes")
            total += 1
        if total > MAX_VALUES or len(begun) > MAX_LEVELS:
            raise InputError(f"more than {MAX_VALUES} values, aliases included, or {MAX_LEVELS} levels ({where})")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which of two equal keys would silently keep the last, and this one refuses."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set[str]()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise InputError(f"key {on_one_line(repr(key.value), 80)} occurs twice (line {line})")
            seen.add(key.value)
    return dict(loader.construct_mapping(node))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
EXPONENT = re.compile(r"[-+]?\d*\.?\d+[eE][-+]?\d+$")  # YAML 1.2, and DVC with it, takes 1e-2 for a number
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
