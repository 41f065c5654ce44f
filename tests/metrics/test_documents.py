"""YAML from anywhere."""

import time
from pathlib import Path

import pytest

from metrics.documents import MAX_LEVELS, MAX_TEXT, MAX_VALUES, MAX_WORD, parse_yaml, read_yaml
from metrics.files import InputError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {k0: 0}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 0}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nname: y\n", r"key 'name' occurs twice \(line 2\)"),
        ("name: {a: 1, a: 2}\n", "key 'a' occurs twice"),
        ("name: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("a: &a [*a]\n", r"a contains itself \(line 1\)"),
        ("a: &a {b: {c: *a}}\n", "a contains itself"),
        (LAUGHS, f"more than {MAX_VALUES} values, aliases included"),
        (MERGES, f"more than {MAX_VALUES} values, aliases included"),
        ("[" * (MAX_LEVELS + 1), f"or {MAX_LEVELS} levels"),
        ("a: " + "1" * (MAX_WORD + 1), f"a word of {MAX_WORD + 1} characters"),
        (" " * (MAX_TEXT + 1), f"longer than {MAX_TEXT} characters"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_texts_that_say_two_things_or_too_much_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path, began = tmp_path / "settings.yaml", time.process_time()
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 20  # not a benchmark: these would otherwise never end


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match=r"a\.yaml: not valid YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_anchors_and_merges_are_yaml_s() -> None:
    assert parse_yaml("one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\n")["two"] == {"a": 1, "b": 3}
