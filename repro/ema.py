"""Power-function averages of network weights: tracking in training, post-hoc reconstruction of any length.

The weights of an average at training time t are proportional to tau^gamma, 0 <= tau <= t (EDM2 eq. 121); its length is
named by sigma_rel ("std"), the standard deviation of that profile relative to t.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from metrics.files import InputError, explained, sha256_file
from repro import snapshots
from repro.networks import Precond
from repro.numerics import numerics
from repro.snapshots import Snapshot


def gamma_to_std(gamma: ArrayLike) -> NDArray[np.float64]:
    """Relative standard deviation sigma_rel of the averaging profile with exponent `gamma` > -1 (EDM2 eq. 123)."""
    g = np.asarray(gamma, dtype=np.float64)
    return np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))


def std_to_gamma(std: ArrayLike) -> NDArray[np.float64]:
    """Exponent of the averaging profile with relative standard deviation `std`, of any shape (EDM2 eq. 126).

    Raises InputError for a std outside (0, 0.3): no profile is as long as 0.3002 times the training.
    """
    s = np.asarray(std, dtype=np.float64)
    if not np.all((s > 0) & (s <= 0.3)):
        raise InputError(f"EMA lengths (sigma_rel) must lie in (0, 0.3], got {np.array2string(s, threshold=8)}")
    return np.array([np.roots([1, 7, 16 - v, 12 - v]).real.max() for v in s.reshape(-1) ** -2.0]).reshape(s.shape)


def beta(std: ArrayLike, t_next: ArrayLike, t_delta: ArrayLike) -> NDArray[np.float64]:
    """Decay of the average in the update that ends at `t_next` and spans `t_delta`, any unit of time (EDM2 eq. 127)."""
    return (1 - np.divide(t_delta, t_next, dtype=np.float64)) ** (std_to_gamma(std) + 1)


def correlation(a_ofs: ArrayLike, a_std: ArrayLike, b_ofs: ArrayLike, b_std: ArrayLike) -> NDArray[np.float64]:
    """Inner product of two averaging profiles (EDM2 eq. 151); the arguments broadcast.

    `a_ofs`, `b_ofs`: training time at which each average was taken, in images; `a_std`, `b_std`: their lengths.
    """
    ta, tb = np.broadcast_arrays(np.asarray(a_ofs, dtype=np.float64), np.asarray(b_ofs, dtype=np.float64))
    ga, gb = std_to_gamma(a_std), std_to_gamma(b_std)
    exponent = np.where(ta < tb, gb, -ga)
    return (ga + 1) * (gb + 1) * (ta / tb) ** exponent / ((ga + gb + 1) * np.maximum(ta, tb))


def solve_coefficients(
    in_nimg: ArrayLike, in_std: ArrayLike, out_nimg: ArrayLike, out_std: ArrayLike
) -> NDArray[np.float64]:
    """Coefficients [inputs, outputs] by which stored averages best add up to the wanted ones (EDM2 algorithm 3).

    The least-squares fit of the averaging profiles; every column is then scaled to sum to 1, since weights
    average to weights. `out_nimg` and `out_std` broadcast against each other.
    """
    coefficients = np.linalg.solve(*_products(in_nimg, in_std, out_nimg, out_std))
    return coefficients / coefficients.sum(axis=0)


def _products(
    in_nimg: ArrayLike, in_std: ArrayLike, out_nimg: ArrayLike, out_std: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inner products of the inputs with each other, [inputs, inputs], and with the outputs, [inputs, outputs]."""
    ti, si = np.broadcast_arrays(np.asarray(in_nimg), np.asarray(in_std))
    to, so = np.broadcast_arrays(np.atleast_1d(out_nimg), np.atleast_1d(out_std))
    return correlation(ti[:, None], si[:, None], ti, si), correlation(ti[:, None], si[:, None], to, so)


def profile_error(in_nimg: ArrayLike, in_std: ArrayLike, out_nimg: float, out_std: ArrayLike) -> NDArray[np.float64]:
    """Relative L2 error of the profiles that `solve_coefficients` can build from stored averages, one per output."""
    gram, cross = _products(in_nimg, in_std, out_nimg, out_std)
    x = solve_coefficients(in_nimg, in_std, out_nimg, out_std)
    norm = correlation(out_nimg, np.atleast_1d(out_std), out_nimg, np.atleast_1d(out_std))
    squared = norm - 2 * np.sum(x * cross, axis=0) + np.sum(x * (gram @ x), axis=0)
    return np.sqrt(np.maximum(squared, 0) / norm)


Network = TypeVar("Network", bound=nn.Module)


class PowerFunctionEMA(Generic[Network]):
    """Averages of a network's weights over its training, one per length in `stds` (EDM2 section 3.1)."""

    @torch.no_grad()
    def __init__(self, network: Network, stds: Sequence[float] = (0.05, 0.10)) -> None:
        self._network = network
        self._averages = {std: copy.deepcopy(network).eval().requires_grad_(False) for std in stds}

    @torch.no_grad()
    def update(self, cur_nimg: int, batch_size: int) -> None:
        """Take in the weights as they are after the step of `batch_size` images that ended at `cur_nimg` images."""
        for std, average in self._averages.items():
            weight = 1 - float(beta(std, cur_nimg, batch_size))
            torch._foreach_lerp_([*average.parameters()], [*self._network.parameters()], weight)
            for ours, theirs in zip(average.buffers(), self._network.buffers(), strict=True):
                ours.copy_(theirs)

    def networks(self) -> dict[float, Network]:
        """The averaged networks by length, in evaluation mode; live: later updates change them."""
        return dict(self._averages)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {f"{std:.3f}": average.state_dict() for std, average in self._averages.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for std, average in self._averages.items():
            average.load_state_dict(state[f"{std:.3f}"])


def snapshot_time(path: Path) -> tuple[int, float]:
    """(images seen, EMA length) of a snapshot, by its metadata or, if published, its name; InputError if by neither."""
    metadata = snapshots.read_metadata(path) if path.suffix == ".safetensors" else {}
    if "nimg" in metadata and "ema_std" in metadata:
        with explained(f"{path}: metadata cannot be used", "expected nimg and ema_std to be numbers"):
            return int(metadata["nimg"]), float(metadata["ema_std"])
    name = snapshots.checked_name(str(path))
    return snapshots.kimg_to_nimg(name.kimg), name.ema_std


def origin(paths: Iterable[Path], nimg: int) -> dict[str, Any]:
    """What metadata say of a reconstruction at `nimg` images, from those of the snapshots that it rests on."""
    used = sorted(path for path in paths if 0 < snapshot_time(path)[0] <= nimg)
    return {"reconstructed_from": {path.name: sha256_file(path) for path in used}} | numerics("training")


@torch.no_grad()
def reconstruct(
    paths: Sequence[str | Path], out_stds: Sequence[float], out_nimg: int | None = None
) -> dict[float, Snapshot]:
    """Networks with EMA lengths `out_stds` at `out_nimg` images from stored snapshots (EDM2 section 3.2).

    Inputs are read one at a time, so that memory depends on the number of outputs only. They are summed in float32
    and rounded to float16, the precision in which networks are stored. `out_nimg` must be the time of one of the
    inputs (None: the latest); later inputs and those at 0 images are not used.

    Raises InputError when no input lies at `out_nimg`, two inputs coincide, or networks differ in shape.
    """
    times = {path: snapshot_time(path) for path in map(Path, paths)}
    available = sorted({nimg for nimg, _ in times.values() if nimg > 0})
    target = max(available, default=0) if out_nimg is None else out_nimg
    if target not in available:
        raise InputError(f"no snapshot at {target} images, expected one after 0; there are snapshots at {available}")
    inputs = sorted((time, path) for path, time in times.items() if 0 < time[0] <= target)
    if len({time for time, _ in inputs}) < len(inputs):
        raise InputError("two snapshots have the same number of images and EMA length; name each once")

    in_nimg, in_std = zip(*(time for time, _ in inputs), strict=True)
    sums: dict[float, Precond] = {}
    for (_, path), row in zip(inputs, solve_coefficients(in_nimg, in_std, target, out_stds), strict=True):
        source = snapshots.load(path)
        weights = [p.float() for p in source.network.parameters()]
        for std, coefficient in zip(out_stds, row, strict=True):
            if std not in sums:
                sums[std] = copy.deepcopy(source.network).float().requires_grad_(False)
                torch._foreach_zero_(list(sums[std].parameters()))
            outputs: list[Tensor] = list(sums[std].parameters())
            if [p.shape for p in outputs] != [p.shape for p in weights]:
                raise InputError(f"{path}: the network differs in shape from {inputs[0][1].name}")
            torch._foreach_add_(outputs, weights, alpha=float(coefficient))
    for network in sums.values():
        network.load_state_dict(dict(source.network.named_buffers()), strict=False)
        for p in network.parameters():
            p.copy_(p.half())
    made = {"nimg": target} | origin(times, target)
    metadata = {k: v for k, v in source.metadata.items() if k != "source_sha256"} | made
    return {std: replace(source, network=net, metadata=metadata | {"ema_std": std}) for std, net in sums.items()}
