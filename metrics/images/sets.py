"""Image sets: what images there are, whether all of them can be read, and their pixels, decoded in parallel."""

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from metrics import distributed
from metrics.files import InputError, explained
from metrics.images.builtin import resolve
from metrics.images.decoding import Finding, decode, inspect
from metrics.images.sources import IMAGE_SUFFIXES, LABELS, Source, open_sources
from metrics.machine import cores, machine
from metrics.progress import progress
from metrics.sizes import Extent

CHECK_BATCH, MAX_CLASSES = 64, 1_000_000


class ImageSet:
    """Images of one or several sources, in order: sources as given, names sorted within each.

    The images are checked, all of them, when their digest, number or pixels are first asked for. In several processes
    each checks its share, so all must ask.

    Attributes:
        names: one per image; behind the source's own name where there are several sources.
        digest: hex sha256 over the content of the images in order, whatever contains them and is beside them.
        labels: class numbers [N] int64 from `dataset.json`, an npz's `arr_1` or a folder per class; None where unknown.
        warnings: what makes results less comparable, for people.
    """

    def __init__(
        self, sources: Sequence[Source], items: NDArray[np.int64], skip_bad: bool = False, notes: Sequence[str] = ()
    ) -> None:
        self._sources, self._items, self._skip_bad, self._notes = sources, items, skip_bad, notes

    def subset(self, num: int, seed: int | None = None) -> "ImageSet":
        """`num` images in order, the first ones or, with a `seed`, random ones; InputError where there are fewer."""
        kept, notes = choose(self._where, len(self._items), num, seed)
        return ImageSet(self._sources, self._items[kept], self._skip_bad, [*self._notes, *notes])

    def __len__(self) -> int:
        return len(self._checked[0])

    @cached_property
    def names(self) -> list[str]:
        return [_item_name(self._sources, item) for item in self._checked[0].tolist()]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of every image."""
        return [finding.size for finding in self._checked[1]]

    @cached_property
    def size(self) -> Extent:
        """Of the smallest and of the largest image."""
        return Extent.of(self.sizes)

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        """The sha256 of every image's content, [N, 32]."""
        return np.frombuffer(b"".join(finding.sha256 for finding in self._checked[1]), np.uint8).reshape(-1, 32)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.digests.tobytes()).hexdigest()

    @property
    def candidates(self) -> int:
        """How many images there are, those among them that a check would find unusable."""
        return len(self._items)

    @property
    def is_labelled(self) -> bool:
        """Whether classes are known, which needs no image."""
        return self._classes is not None

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        labels = self._classes
        return None if labels is None else np.array([labels[s][index] for s, index in self._checked[0]], np.int64)

    @cached_property
    def _classes(self) -> Any:
        """Class of each entry of each source."""
        own = [own_labels(source) for source in self._sources]
        return _folder_classes(self._sources) if any(found is None for found in own) else own

    @cached_property
    def warnings(self) -> list[str]:
        _, findings, bad = self._checked
        lossy, alpha = sum(x.lossy for x in findings), sum(x.alpha for x in findings)
        others = sum(source.others for source in self._sources)
        texts = {
            f"{lossy} images are lossy (JPEG or WebP), which moves FID by whole points against PNG": lossy,
            f"{alpha} images have an alpha channel, which is dropped": alpha,
            f"{others} images of other formats are left out; convert them to PNG": others,
            f"{len(bad)} images cannot be used and are left out: {'; '.join(bad)}": bad,
        }
        return [*self._notes, *(f"{self._where}: {text}" for text, applies in texts.items() if applies)]

    def batches(
        self, batches: Sequence[Sequence[int]], num_workers: int | None = None, use: Callable[[Any], Any] = decode
    ) -> Iterator[list[Any]]:
        """Images of each batch of image numbers, in order, [H, W, 3] uint8, made ahead by worker processes.

        num_workers: how many; None: as the machine is set, else one per core but one; 0: none, decode here.
        use: what is made of an image's content in a worker, if not its pixels.
        Raises InputError naming an image that passed the check and yet cannot be decoded.
        """
        workers = _workers(spare=1) if num_workers is None else num_workers
        workers = 0 if self._in_memory else workers
        items = self._checked[0]
        for results in _in_parallel(_Reader(self._sources, use), [items[list(batch)] for batch in batches], workers):
            for result in results:
                if isinstance(result, str):
                    raise InputError(f"{result}; its file is broken or has changed: make it again or remove it")
            yield results

    @cached_property
    def _checked(self) -> tuple[NDArray[np.int64], list[Finding], list[str]]:
        """Usable items [N, 2] as (source, entry), what was found of each, and what is wrong with the others."""
        rank, world = distributed.rank(), distributed.world_size()
        shares = [self._items[i : i + CHECK_BATCH] for i in range(0, len(self._items), CHECK_BATCH)]
        workers = 0 if self._in_memory else _workers()
        mine, total = list[list[Any]](), sum(map(len, shares[rank::world]))
        with progress("check of the images", total=total, hidden=rank > 0) as bar:
            for checked in _in_parallel(_Reader(self._sources, inspect), shares[rank::world], workers):
                mine.append(checked)
                bar.update(len(checked))
        everyone = distributed.all_gather(mine)
        results = [result for i in range(len(shares)) for result in everyone[i % world][i // world]]
        bad = [result for result in results if isinstance(result, str)]
        good = [i for i, result in enumerate(results) if not isinstance(result, str)]
        if bad and (not self._skip_bad or not good):
            found = f"{len(bad)} of {len(results)} images cannot be used: {'; '.join(bad)}"
            raise InputError(f"{self._where}: {found}. Make them again, remove them, or leave them out with --skip-bad")
        return self._items[good], [results[i] for i in good], bad

    @property
    def ignored(self) -> list[str]:
        """Files beside the images that are not taken for images, labels apart."""
        return [name for source in self._sources for name in source.ignored]

    @property
    def skipped(self) -> list[str]:
        """Images that cannot be used, each with the reason; always empty without `skip_bad`."""
        return self._checked[2]

    @property
    def _in_memory(self) -> bool:
        return all(source.in_memory for source in self._sources)

    @property
    def _where(self) -> str:
        return ", ".join(str(source.path) for source in self._sources[:3]) + (", ..." if self._sources[3:] else "")


def open_images(paths: str | Path | Sequence[str | Path], skip_bad: bool = False) -> ImageSet:
    """The images of a folder (with what is below it), zip, tar, compressed tar or npz, or of a list of these.

    A folder may hold archives instead of images; then they are read in the order of their names. A name of
    `metrics.images.DATASETS` stands for that data set. With `skip_bad`, images that cannot be used are left out, and
    named in `warnings`.

    InputError: nothing there, no images, a broken or hostile archive; what is wrong with single images is said when
    the set is first used, in one message for all of them.
    """
    given = [resolve(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise InputError("no path to images was given")
    path, count = Counter(os.path.realpath(path) for path in given).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: given twice; name each source once")
    sources = [source for path in given for source in open_sources(path)]
    for source in sources:
        if not source.names:
            others = f", only {source.others} of other formats: convert them" if source.others else "; check the path"
            raise InputError(f"{source.path}: holds no images ({', '.join(IMAGE_SUFFIXES)}){others}")
    items = [np.stack([np.full(len(s.names), i), np.arange(len(s.names))], axis=1) for i, s in enumerate(sources)]
    return ImageSet(sources, np.concatenate(items), skip_bad)


def choose(where: str, total: int, num: int, seed: int | None = None) -> tuple[NDArray[np.int64], list[str]]:
    """`num` of `total` numbers, ascending, the first ones or, with a `seed`, random ones; with a note if some are left.

    InputError, naming `where` they are of, when there are fewer.
    """
    if not 1 <= num <= total:
        raise InputError(f"{where}: holds {total} images, so {num} cannot be taken; lower --num")
    if num == total:
        return np.arange(num), []
    if seed is None:
        return np.arange(num), [f"took the first {num} of {total} images; --seed takes a random subset"]
    kept = np.sort(np.random.default_rng(seed).choice(total, num, replace=False))
    return kept, [f"took {num} of {total} images at random (seed {seed})"]


def _item_name(sources: Sequence[Source], item: Sequence[int]) -> str:
    source, entry = sources[item[0]], item[1]
    return f"{source.path.name}/{source.names[entry]}" if len(sources) > 1 else source.names[entry]


def own_labels(source: Source) -> Sequence[int] | NDArray[np.int64] | None:
    """Class of every entry of a source by its own record, None where it has none."""
    where = f"{source.path}: {LABELS}"
    try:
        with explained("cannot be read"):
            content = source.read_labels()
    except InputError as err:
        raise InputError(f"{where} {err}; copy the file again") from err
    if content is None or isinstance(content, np.ndarray):
        return content
    with explained(f'{where} is not {{"labels": [[name, class], ...]}}', "correct or remove it"):
        pairs = json.loads(content)["labels"]
        labels = None if pairs is None else {str(name): label for name, label in pairs}
    if labels is None:
        return None
    if wrong := [label for label in labels.values() if type(label) is not int or not 0 <= label < MAX_CLASSES]:
        raise InputError(f"{where} has the class {wrong[0]!r}, expected whole numbers from 0 below {MAX_CLASSES}")
    if missing := [name for name in source.names if name not in labels]:
        raise InputError(f"{where} has no label of {missing[0]}; add it or remove the file")
    return [labels[name] for name in source.names]


def _folder_classes(sources: Sequence[Source]) -> list[list[int]] | None:
    """Classes by the first folder in every name, if there are several: its number, or its place in sorted order."""
    folders = [[name.split("/")[0] if "/" in name else "" for name in source.names] for source in sources]
    classes = sorted({folder for names in folders for folder in names})
    if "" in classes or len(classes) < 2:
        return None
    numbered = all(name.isdecimal() and len(name) < len(str(MAX_CLASSES)) for name in classes)
    number = {name: int(name) if numbered else i for i, name in enumerate(classes)}
    return [[number[folder] for folder in names] for names in folders]


class _Reader:
    """What a worker does with an item: read it and use it; a string says what is wrong with it."""

    def __init__(self, sources: Sequence[Source], use: Callable[[Any], Any]) -> None:
        self.sources, self.use = sources, use

    def __getitem__(self, item: Sequence[int]) -> Any:
        try:
            with explained("cannot be read"):
                return self.use(self.sources[item[0]].read(item[1]))
        except InputError as err:
            return f"{_item_name(self.sources, item)} {err}"


def _in_parallel(reader: _Reader, shares: Sequence[NDArray[np.int64]], workers: int) -> Iterator[list[Any]]:
    """What the reader makes of each share, in order, sent through pipes since containers keep shared memory small."""
    loader: Any = DataLoader(
        reader,  # type: ignore[arg-type]
        batch_sampler=shares,  # type: ignore[arg-type]
        num_workers=min(workers, len(shares)) if len(shares) > 1 else 0,
        collate_fn=list,
        generator=torch.Generator(),  # leaves the global one alone, which a training loop may depend on
        worker_init_fn=_end_with_parent,
    )
    try:
        yield from loader
    except RuntimeError as err:
        if "DataLoader worker" not in str(err):
            raise
        raise InputError("a decoding process was killed, perhaps for want of memory; use fewer --workers") from err


def _end_with_parent(_: int) -> None:
    """Let a worker end when its parent was killed; one that waits to be read would live on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _workers(spare: int = 0) -> int:
    """Processes that read: as the machine is set, else a core each but `spare`, shared with torchrun's other ones."""
    if machine().workers:
        return int(machine().workers)
    return max(cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - spare, 1)


def read_ahead(reader: Any, batches: Sequence[Any]) -> Iterator[list[Any]]:
    """What `reader[item]` is for the items of each batch, in order, made ahead by worker processes.

    What a reader raises loses its shape on the way: it returns what is wrong.
    """
    yield from _in_parallel(reader, batches, _workers(spare=1))
