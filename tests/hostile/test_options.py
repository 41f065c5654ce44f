"""Every option of every command, with values that it was not made for."""

import random
from collections.abc import Iterator, Sequence

import click
import pytest

import metrics.__main__
import repro.__main__
from tests.hostile.conftest import Place
from tests.hostile.materials import COMMANDS

GROUPS = {"metrics": metrics.__main__.cli, "repro": repro.__main__.cli}
NUMBERS = ["-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e400", "9" * 12, "9" * 30, "", "many", "0x10"]
#: None of them names a place outside the folder that a fault could damage.
TEXTS = [
    "",
    " ",
    "x" * 5000,
    "two\nlines",
    "\udcff\udcfe",
    "../../etc",
    ".",
    "images",
    "images.zip",
    "one.jpg",
    "main.pkl",
    "statistics.npz",
    "nowhere/at/all",
    "\u202e\u0000x".replace("\u0000", ""),
    "-",
    "=",
    "a=b=c",
    "0-" + "9" * 20,
    "5-1",
    "[1",
    "{}",
    "%s%n{0}",
]


def command(name: str) -> click.Command:
    program, arguments = COMMANDS[name]
    found: click.Command = GROUPS[program]
    for part in arguments:
        if not isinstance(found, click.Group):
            break
        found = found.commands[part]
    return found


def cases() -> Iterator[tuple[str, str, str]]:
    """Command, option and value: all numbers in turn, and as many texts, chosen by a fixed seed."""
    rng = random.Random(0)
    for name in COMMANDS:
        for parameter in command(name).params:
            if not isinstance(parameter, click.Option) or parameter.is_flag or "--plugin" in parameter.opts:
                continue
            is_number = isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
            for value in rng.sample(NUMBERS if is_number else TEXTS, 3):
                yield name, parameter.opts[0], value


@pytest.mark.parametrize(("name", "option", "value"), list(cases()), ids=lambda text: ascii(text)[1:25])
def test_a_value_that_an_option_was_not_made_for(place: Place, name: str, option: str, value: str) -> None:
    program, arguments = COMMANDS[name]
    if option in arguments:
        arguments = list(arguments)
        arguments[arguments.index(option) + 1] = value
    else:
        arguments = [*arguments, option, value]
    place.run(program, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_themselves_work(place: Place, name: str) -> None:
    program, arguments = COMMANDS[name]
    assert place.run(program, arguments).code == 0


def names(arguments: Sequence[str]) -> list[int]:
    """Places of what is no option, behind the command."""
    return [i for i, text in enumerate(arguments) if not text.startswith("-")][1:]


@pytest.mark.parametrize("name", [name for name, (_, arguments) in COMMANDS.items() if names(arguments)])
def test_a_name_in_the_wrong_place(place: Place, name: str) -> None:
    program, arguments = COMMANDS[name]
    plain = names(arguments)
    rng = random.Random(name)
    for value in rng.sample(TEXTS, 2):
        place.run(program, [value if i == plain[0] else text for i, text in enumerate(arguments)])
