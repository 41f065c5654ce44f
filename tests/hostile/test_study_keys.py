"""Every key of a study, with values that it was not made for, and study files that are no studies."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.hostile.conftest import Place
from tests.hostile.materials import GUIDE, study

VALUES: list[Any] = [
    None,
    "",
    "x" * 3000,
    "..",
    "/tmp/x",
    "a\nb",
    "0-" + "9" * 20,
    -1,
    0,
    10**12,
    10**30,
    1.5,
    float("inf"),
    float("nan"),
    True,
    [],
    [[]],
    [None],
    ["0-1"] * 3,
    {},
    {"": 1},
    {"x": {"x": {}}},
]
#: Keys whose values are free, or where what is drawn may be right.
FREE = ("method", "name")
CASES = 45
COMMANDS = (["study", "show", "mini"], ["cost", "mini"], ["study", "use", "mini", "--force"])


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a study, the sections themselves included."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from leaves(item, *path, key)


def cases() -> Iterator[tuple[tuple[Any, ...], Any]]:
    rng = random.Random(0)
    paths = [path for path in leaves(study()) if path[-1] not in FREE]
    for path in rng.sample(paths, CASES):
        yield path, rng.choice(VALUES)


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    whole: Any = study()
    holder = whole
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return dict(whole)


@pytest.mark.parametrize(("path", "value"), list(cases()), ids=lambda item: ascii(item)[:40])
def test_a_value_that_a_key_was_not_made_for(place: Place, path: tuple[Any, ...], value: Any) -> None:
    (place / "studies/mini.yaml").write_text(yaml.safe_dump(changed(path, value), sort_keys=False))
    command = COMMANDS[len(str(path)) % 2]
    outcome = place.run("repro", command)
    if outcome.code == 0:  # what one command takes, the others take as well
        (place / "params.yaml").write_text((place / "studies/mini.yaml").read_text())
        assert place.run("repro", ["report", "--partial"]).code == 0


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../x", "/tmp/x", "a/b", "a b", "-x", "x" * 300, None, 7, ["x"], "con\n"]
)
def test_a_study_whose_name_is_no_plain_id_deletes_nothing(place: Place, name: Any) -> None:
    (place / "params.yaml").write_text(yaml.safe_dump({**study(), "study": name}))
    place.refuses("repro", ["report"], "study")


FILES = {
    "empty": b"",
    "text": b"just words",
    "list": b"- 1\n- 2\n",
    "number": b"42",
    "not UTF-8": b"study: \xff\xfe\n",
    "control characters": b"study: \x00\x07",
    "tab": b"study:\n\t- x",
    "two documents": b"study: a\n---\nstudy: b\n",
    "unclosed": b"study: [a, {b: ",
    "tag that makes objects": b"study: !!python/object/apply:os.system ['touch hacked']\n",
    "unknown tag": b"study: !mine x\n",
    "anchor of itself": b"study: &a [*a]\n",
    "merge of itself": b"a: &a\n  <<: *a\n",
    "unknown alias": b"study: *nobody\n",
    "list as key": b"? [a, b]\n: c\n",
    "mapping as key": b"? {a: b}\n: c\n",
    "date": b"study: 2024-01-01\n",
    "binary": b"study: !!binary aGVsbG8=\n",
    "set": b"study: !!set {a, b}\n",
    "deep list": b"study: " + b"[" * 20_000 + b"]" * 20_000,
    "deep mapping": b"study: " + b"{a: " * 20_000 + b"1" + b"}" * 20_000,
    "deep blocks": b"\n".join(b" " * i + b"a:" for i in range(3000)),
    "billion laughs": b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)),
    "a long key": b"k" * 500_000 + b": 1\n",
    "a long number": b"study: " + b"9" * 100_000 + b"\n",
    "a long number of another base": b"study: 0x" + b"f" * 100_000 + b"\n",
    "sexagesimal": b"study: " + b"1" + b":59" * 20_000 + b"\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_study(place: Place, kind: str) -> None:
    for name in ("studies/mini.yaml", "params.yaml", "search.yaml", "machine.yaml"):
        (place / name).write_bytes(FILES[kind])
    (place / "machine.yaml").unlink()
    place.refuses("repro", ["study", "show", "mini"], "mini.yaml")
    place.refuses("repro", ["report"], "params.yaml")
    assert not (place / "hacked").exists()


@pytest.mark.parametrize("kind", sorted(set(FILES) - {"empty"}))
def test_a_file_that_is_no_machine_and_no_search(place: Place, kind: str) -> None:
    (place / "search.yaml").write_bytes(FILES[kind])
    place.refuses("repro", [*GUIDE, "--settings", "search.yaml"], "search.yaml")
    (place / "machine.yaml").write_bytes(FILES[kind])
    place.refuses("repro", ["stage", "data", "mini-digits"], "machine.yaml")


@pytest.mark.parametrize(
    "arguments", [["stage", "data", "x"], ["stage", "nothing", "mini-digits"], ["stage", "train", "x"]]
)
def test_a_stage_that_is_not_there(place: Place, arguments: list[str]) -> None:
    place.refuses("repro", arguments)
