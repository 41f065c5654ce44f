"""Methods beside the paper's, whose settings are looked for with the same effort (`repro.trials`)."""

from collections.abc import Callable, Mapping, Sequence

from metrics.names import named
from repro.degradations import GUIDE, degrade
from repro.guidance import Guided
from repro.networks import Denoiser
from repro.rows import settings as row_settings
from repro.toy.sampling import Method
from repro.toy.settings import ToyTuned
from repro.trials import Tuning, search, settings_at


def tune(
    methods: Mapping[str, ToyTuned],
    effort: Tuning,
    networks: Mapping[str, Denoiser],
    value: Callable[[Method], float],
) -> dict[str, list[tuple[Method, float]]]:
    """Name -> the trials of each of `methods`, in order, with their `value`.

    `networks` has the main network under `main`, and every guide that is a network of its own under the method's name.
    """
    return {name: _trials(name, item, networks, effort, value) for name, item in methods.items()}


def best(trials: Sequence[tuple[Method, float]], metric: str) -> Method:
    """The method of the best value."""
    return max(trials, key=lambda trial: named(metric).better * trial[1])[0]


def _trials(
    name: str, item: ToyTuned, networks: Mapping[str, Denoiser], effort: Tuning, value: Callable[[Method], float]
) -> list[tuple[Method, float]]:
    main, guide = networks["main"], networks[name if item.network else "main"]
    better, tried = named(effort.metric).better, list[tuple[Method, float]]()

    def loss(guided: Guided) -> float:
        worse, w = degrade(guide, guided.guide_degradations, GUIDE), guided.guidance
        how = row_settings(guided)["guide_degradations"]
        method = Method(name, f"{name}, w = {w:g}", w, main, worse, how)
        tried.append((method, value(method)))
        return -better * tried[-1][1]

    search(loss, lambda place: settings_at(item.over, item.guided, place), len(item.over), effort.trials)
    return tried
