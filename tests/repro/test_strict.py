"""Strict reading of settings, and their digests."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.files import InputError
from repro.strict import build, digest, facts, inline, load


@dataclass(frozen=True)
class Inner:
    a: int
    b: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = inline()
    pair: tuple[int, int] | None = None
    many: list[float] = field(default_factory=list)
    named: dict[str, Inner] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the file: expected a mapping, found a list"),
        ({"name": "x"}, "missing key a"),
        ({"name": "x", "a": 1, "c": 2}, "unknown key c; did you mean|unknown key c; known: a, b, many, name"),
        ({"name": 3, "a": 1}, "name: expected str, found 3"),
        ({"name": "x", "a": True}, "a: expected int, found True"),
        ({"name": "x", "a": 1.0}, "a: expected int, found 1.0"),
        ({"name": "x", "a": 1, "b": float("nan")}, "b: expected a number, found NaN"),
        ({"name": "x", "a": 1, "pair": [1]}, "pair: expected 2 values, found 1"),
        ({"name": "x", "a": 1, "pair": [1, 2, 3]}, "pair: expected 2 values, found 3"),
        ({"name": "x", "a": 1, "many": 3}, "many: expected a list, found 3"),
        ({"name": "x", "a": 1, "many": [1, "y"]}, r"many\[1\]: expected float, found 'y'"),
        ({"name": "x", "a": 1, "named": {"k": {}}}, r"missing key named\.k\.a"),
        ({"name": "x", "a": 1, "named": {1: {"a": 1}}}, "named: key 1 is no text"),
        ({"name": "y" * 500, "a": "y" * 500}, r"a: expected int, found 'y{70,76}\.\.\.$"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(Outer, value)


def test_inline_fields_stand_among_their_holder_s_keys() -> None:
    assert build(Outer, {"name": "x", "a": 1, "pair": [1, 2]}) == Outer("x", Inner(1), (1, 2))


def test_a_file_s_errors_begin_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("name: x\nb: 3\n")
    with pytest.raises(InputError, match=r"settings\.yaml: missing key a"):
        load(Outer, tmp_path / "settings.yaml")


@given(a=st.integers(), b=st.floats(allow_nan=False))
def test_a_field_at_its_default_changes_no_digest(a: int, b: float) -> None:
    @dataclass(frozen=True)
    class Later:
        a: int
        added: str = "default"
        b: float = 0.5
        of_many: list[int] = field(default_factory=list)

    assert digest(Inner(a, b)) == digest(Later(a, b=b))
    assert digest(Inner(a, b)) != digest(Later(a, "other", b))


def test_facts_are_what_differs_from_the_defaults() -> None:
    assert facts(Outer("x", Inner(1), many=[0.5])) == {"name": "x", "inner": {"a": 1}, "many": [0.5]}
