"""Sampling in Python, a line each: `import repro`, then `repro.load`, `repro.sample`, `repro.grid`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from metrics import distributed
from metrics.files import InputError
from metrics.progress import progress
from repro.degradations import Strength
from repro.guidance import Guided
from repro.networks import Denoiser
from repro.pixels import image_grid
from repro.sampling.batches import sample_images
from repro.sampling.pairs import Configuration, Solver, pair_of
from repro.sampling.sources import load_network


def load(source: str | Path, device: torch.device | str | None = None) -> Denoiser:
    """A network ready to sample, on the GPU if there is one: .safetensors, .pkl, the folder of a pipeline of diffusers,
    or module:function of a Denoiser.

    Code in files never runs. Raises InputError where it is missing or broken.
    """
    return load_network(str(source), distributed.device() if device is None else torch.device(device))[0]


def sample(
    main: Denoiser,
    guide: Denoiser | None = None,
    guidance: float = 1.0,
    seeds: Sequence[int] = range(64),
    labels: int | Sequence[int] | None = None,
    steps: int = 32,
    interval: tuple[int, int] | None = None,
    degradation: Mapping[str, Strength] | None = None,
    rule: str = "linear",
    rule_settings: Mapping[str, float] | None = None,
    ramp: str = "constant",
    solver: Solver | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, C] of `seeds`, in their order; the same as `repro generate` makes of the same settings.

    Args:
        main: see `load`, or any `repro.networks.Denoiser`; where it lies on another device than `device`, say which.
        guide: the guiding network; by default, where there is a `degradation`, the main one.
        guidance: weight w of D_w = w D_main + (1 - w) D_guide; 1 = no guidance.
        labels: the class of all images, or of each seed; None: drawn by the seeds.
        steps: Heun steps; `solver` settles everything about them instead.
        interval: first and last guided step; None: all.
        degradation: what makes the guide worse (docs/guidance.md), as are `rule`, `rule_settings` and `ramp`.
        device: where the networks are; None: where the main one's parameters are.
        show: progress on a terminal, or in lines.

    Raises InputError for settings that do not fit together, and for latents that overflow.
    """
    numbers = [int(seed) for seed in seeds]
    classes = [labels] * len(numbers) if labels is None or isinstance(labels, int) else list(labels)
    if len(classes) != len(numbers) or len(set(numbers)) < len(numbers) or not numbers:
        raise InputError(f"{len(numbers)} seeds and {len(classes)} labels: expected different seeds, a label for each")
    guide = main if guide is None and degradation else guide
    guided = Guided(
        "main",
        None if guide is None else "guide",
        guidance,
        interval,
        rule,
        guide_degradations=dict(degradation or {}),
        rule_settings=dict(rule_settings or {}),
        ramp=ramp,
    ).active
    where = _device(main) if device is None else torch.device(device)
    configuration = Configuration(guided, solver or Solver(num_steps=steps, batch_size=32))
    guides = [] if guide is None or guided.guide is None else [(guide, "main" if guide is main else "guide")]
    pair = pair_of(configuration, where, (main, "main"), *guides)
    of_seeds = {seed: number for seed, number in zip(numbers, classes, strict=True) if number is not None}
    for number in of_seeds.values():
        pair.check_class(number)
    made: dict[int, NDArray[np.uint8]] = {}
    with progress("sampling", total=len(numbers), hidden=not show) as bar:
        for members, images, _ in sample_images(pair, numbers, of_seeds):
            made |= dict(zip(members, images, strict=True))
            bar.update(len(members))
    return np.stack([made[seed] for seed in numbers])


def grid(images: NDArray[np.uint8], columns: int = 8) -> Image.Image:
    """Images uint8 [N, H, W, C] side by side, as one that a notebook shows."""
    return image_grid(list(images), columns)


def _device(main: Denoiser) -> torch.device:
    """Where a network's parameters are; of what has none, this process's device."""
    parameters = main.parameters() if isinstance(main, torch.nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), distributed.device())
