"""Seeds -> images, batch by batch.

Work is cut by seed: batch k is always the seeds [k B, (k + 1) B), so that an image does not depend on who else was
wanted, on rank or on resume point.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metrics.files import InputError
from metrics.machine import machine
from metrics.precision import tf32
from repro.degradations import core, seed_degradations
from repro.networks import Precond
from repro.sampler import NonFiniteError, SeedStreams, draw_inputs, sample
from repro.sampling.pairs import Pair

#: Values of a layer of full width, in all batches that are sampled at once on a CPU.
MAX_LAYER = 2**25
NO_CLASSES: Mapping[int, int] = {}


def sample_batch(
    pair: Pair, seeds: Sequence[int], classes: Mapping[int, int] = NO_CLASSES
) -> tuple[Tensor, Tensor | None]:
    """Latents [N, C, H, W] and one-hot labels of one batch; InputError names seed and step of non-finite latents.

    `classes`: of the seeds that have one of their own, beside the pair's only one, or the one that is drawn.
    """
    guided, streams = pair.configuration.guided, SeedStreams(pair.device, seeds)
    for network in (pair.main, *pair.guides):
        seed_degradations(network, streams)
    noise, labels = draw_inputs(pair.main, streams, pair.device)
    exact = tf32(False) if pair.device.type == "cuda" and not _is_half(pair) else nullcontext()
    only = pair.configuration.only_class
    if labels is not None and (classes or only is not None):
        others = labels.argmax(dim=1).tolist() if only is None else [only] * len(seeds)
        numbers = torch.tensor([classes.get(seed, other) for seed, other in zip(seeds, others, strict=True)])
        labels = F.one_hot(numbers, labels.shape[1]).to(labels)
    try:
        with exact:
            latents = sample(
                pair.main,
                noise,
                labels,
                guide=pair.guide,
                guidance=guided.guidance,
                interval=guided.interval,
                rule=guided.rule,
                rule_settings=guided.rule_settings,
                ramp=guided.ramp,
                randn_like=streams.randn_like,
                streams=bool(machine().streams),
                **pair.configuration.solver.arguments(),
            )
    except torch.OutOfMemoryError as err:
        raise InputError(
            f"{len(seeds)} images at once do not fit the GPU's memory; lower batch_size, which makes other images"
        ) from err
    except NonFiniteError as err:
        raise InputError(err.told("seed", lambda index: seeds[index])) from err
    return latents, labels


def _is_half(pair: Pair) -> bool:
    """Whether all networks compute in float16, so that TF32 is nothing to them and they need not wait for the VAE."""
    networks = [core(network) for network in (pair.main, *pair.guides)]
    return all(isinstance(n, Precond) and n.dtype(pair.device) == torch.float16 for n in networks)


def sample_images(
    pair: Pair, seeds: Sequence[int], classes: Mapping[int, int] = NO_CLASSES
) -> Iterator[tuple[list[int], NDArray[np.uint8], list[int]]]:
    """Yield (seeds, uint8 images [n, H, W, C], class numbers or []) batch by batch, ascending seeds.

    `classes`: see `sample_batch`.
    Every batch is whole: seeds nobody asked for are sampled along and dropped. On a GPU the next batch is already on
    its way while one is decoded and fetched; on a CPU each thread of torch's has a batch of its own, which is faster
    than to share one, where the networks are known to bear it and small enough.
    """
    size = pair.configuration.solver.batch_size
    wanted = grouped(seeds, size)
    batches = [range(members[0] // size * size, (members[0] // size + 1) * size) for members in wanted]
    sampled = ahead(lambda batch: sample_batch(pair, batch, classes), batches, _count_ahead(pair, len(batches)))
    for members, (latents, labels) in zip(wanted, sampled, strict=True):
        keep = [seed % size for seed in members]
        images = pair.main.encoder.decode(latents)[keep]  # the decoder, too, always sees whole batches
        numbers = [] if labels is None else labels[keep].argmax(dim=1).tolist()
        yield members, images.permute(0, 2, 3, 1).cpu().numpy(), numbers


def _count_ahead(pair: Pair, batches: int) -> int:
    """How many batches are begun in other threads: see `sample_images`."""
    if pair.device.type == "cuda":
        return 1
    solver, main = pair.configuration.solver, pair.main
    if solver.compile or not isinstance(main, Precond) or not all(isinstance(g, Precond) for g in pair.guides):
        return 0
    layer = solver.batch_size * main.img_resolution**2 * main.init_kwargs.get("model_channels", 192)
    count = min(torch.get_num_threads(), batches, MAX_LAYER // layer)
    return count if count > 1 else 0


def grouped(seeds: Iterable[int], size: int) -> list[list[int]]:
    """Seeds by seed // size, ascending: batches or shards of at most `size`."""
    return [list(members) for _, members in itertools.groupby(sorted(set(seeds)), lambda seed: seed // size)]


def ahead(make: Callable[[Any], Any], items: Iterable[Any], count: int, threads: int | None = None) -> Iterator[Any]:
    """`make` of every item, in order, with up to `count` later ones begun in as many threads of Python.

    `threads`: how many of torch's each of them computes with; None: they share out torch's.
    """
    if count == 0:
        yield from map(make, items)
        return
    own = torch.get_num_threads()  # settles those of this thread, which else would become what the others set
    threads = threads or max(own // count, 1)
    with ThreadPoolExecutor(count, "ahead", torch.set_num_threads, (threads,)) as pool:
        futures = (pool.submit(make, item) for item in items)
        begun = deque(itertools.islice(futures, count))
        for future in futures:
            begun.append(future)
            yield begun.popleft().result()
        yield from (future.result() for future in begun)
