"""The one table of what measured values are called: in files, for readers, and which way is better."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from metrics.errors import InputError, nearest
from metrics.registry import Registry


@dataclass(frozen=True)
class Name:
    """How a measured value is named and printed."""

    label: str
    #: -1 lower, +1 higher, 0 neither: the best value is that of true samples.
    better: int
    decimals: int = 3
    #: The label for LaTeX and matplotlib, where it is another.
    tex: str = ""
    #: Whether it is measured in a detector's features, and so called another in those of each.
    of_features: bool = True

    @property
    def arrow(self) -> str:
        """Direction of improvement."""
        return {-1: " ↓", 0: "", 1: " ↑"}[self.better]

    @property
    def axis(self) -> str:
        """Label and direction for matplotlib."""
        return (self.tex or self.label) + self.arrow

    def suffixed(self, label: str, tex: str) -> "Name":
        """The same with something behind the label, and behind that for LaTeX."""
        return replace(self, label=self.label + label, tex=(self.tex or self.label) + tex)


@dataclass(frozen=True)
class Space:
    """A detector's label, and what the Fréchet distance in its features is called: in files and for readers."""

    label: str
    distance: str
    name: Name


#: Values that are not distances between Gaussians.
VALUES: Registry[Name] = Registry(
    "measured value",
    **{value: Name(value, 1) for value in ("precision", "recall", "density", "coverage")},
    kid=Name("KID", -1, 5),
    inception_score=Name("Inception score", 1, 2),
    adm_precision=Name("precision as ADM's", 1),
    adm_recall=Name("recall as ADM's", 1),
    vendi=Name("Vendi score", 1, 2),
    authpct=Name("AuthPct", 1, 1),
    ct=Name("C_T", 0, 2, "$C_T$"),
)
SPACES: Registry[Space] = Registry("feature space")
#: What several metrics, or one, are also called when they are asked for -> names of `metrics.measure.METRICS`.
ALIASES = {"prdc": ("precision_recall", "density_coverage"), "is": ("inception_score",)}
EVERY = "all"  # asks for whatever can be measured


def space(detector: str) -> Space:
    """How values in a detector's features are named; one that is not registered is called what it is."""
    return SPACES.get(detector, Space(detector, f"fd_{detector}", Name(f"FD_{detector}", -1)))


def qualified(value: str, detector: str) -> str:
    """What a value in a detector's features is called: `fid`, `fid_infinity`, `precision_inception`, ..."""
    distance = space(detector).distance
    known = {"fd": distance, "fd_infinity": f"{distance}_infinity"}
    return value if value in known.values() else known.get(value, f"{value}_{detector}")


def named(metric: str) -> Name:
    """Label and direction of a value by its full name; raises InputError with the nearest if there is none."""
    known: Registry[Name] = Registry("metric", **VALUES)
    for detector, space in SPACES.items():
        where = f" ({space.label})"
        known |= {qualified(x, detector): name.suffixed(where, where) for x, name in VALUES.items() if name.of_features}
        known |= {space.distance: space.name, f"{space.distance}_infinity": space.name.suffixed("∞", r"$_\infty$")}
    return known[metric]


def requested(name: str, metrics: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Which of `metrics` a name asks for, and in which detector's features, empty where it does not say.

    A name is that of a metric (`fd`, `kid`), of several (`prdc`, `all`), of a distance in a detector's features (`fid`,
    `fid_infinity`, `fd_dinov2`), or one of the first two with a detector behind it (`kid_dinov2`), in any case.
    Raises InputError with the nearest where it is none of these.
    """
    plain: dict[str, tuple[str, ...]] = {metric: (metric,) for metric in metrics}
    plain |= {alias: meant for alias, meant in ALIASES.items() if {*meant} <= plain.keys()} | {EVERY: (*plain,)}
    known: dict[str, tuple[tuple[str, ...], str]] = {}
    for detector, space in SPACES.items():
        known |= {f"{key}_{detector}": (meant, detector) for key, meant in plain.items()}
        known |= {space.distance: (("fd",), detector), f"{space.distance}_infinity": (("fd_infinity",), detector)}
    known |= {key: (meant, "") for key, meant in plain.items()}
    for spelled in (name, name.lower()):
        if spelled in known:
            return known[spelled]
    near = nearest(name, known)
    raise InputError(f"metric '{name}' is unknown{near if 'did you mean' in near else nearest(name, plain)}")
