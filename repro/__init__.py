"""Everything that makes samples and tables: networks, guidance, sampling, training, studies, reports.

`repro.load`, `repro.sample` and `repro.grid` are `repro.api`'s.
"""

from typing import Any

__all__ = ["grid", "load", "sample"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from repro import api  # only once it is asked for: commands that need no networks start sooner

    return getattr(api, name)
