"""Settings of a training run: what decides its bits, and what does not."""

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metrics.files import InputError
from repro.strict import build, finite, inline, positive, within

MI = 2**20  # images: training lengths are multiples of it
#: By name, the U-Net's dtype; None: what the network has for its device.
PRECISIONS: dict[str, torch.dtype | None] = {"fp16": None, "bf16": torch.bfloat16, "fp32": torch.float32}
COUNTS = ("total_nimg", "snapshot_nimg", "checkpoint_nimg", "log_nimg")  # settings that are whole steps


@dataclass(frozen=True)
class NetworkSettings:
    """Arguments of `repro.networks.Precond` and its blocks, apart from those that the data settle."""

    model_channels: int = 192
    #: Widths of the levels, in units of `model_channels`.
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: float | None = None
    channel_mult_emb: float | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    channels_per_head: int = 64
    dropout: float = 0.0
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256.0
    logvar_channels: int = 128
    sigma_data: float = 0.5
    use_fp16: bool = True

    def __post_init__(self) -> None:
        positive(self, "model_channels", "channel_mult", "channel_mult_noise", "channel_mult_emb", "num_blocks")
        positive(self, "attn_resolutions", "channels_per_head", "clip_act", "logvar_channels", "sigma_data")
        if not self.channel_mult:
            raise InputError("channel_mult is empty, expected a width for each level")
        within(self, 0, 0.999, "dropout")
        within(self, 0, 1, "label_balance", "concat_balance", "res_balance", "attn_balance")


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the bits of a run, and which snapshots there are of it."""

    #: Run name, the first part of its snapshots' file names.
    name: str
    network: NetworkSettings
    #: Images per optimiser step, over all processes.
    batch_size: int = 2048
    #: Whether the network sees the labels.
    conditional: bool = True
    #: Settles initial weights, data order, noise and dropout.
    seed: int = 0
    #: Peak learning rate alpha_ref.
    ref_lr: float = 0.01
    #: Steps t_ref after which the learning rate decays as 1/sqrt; 0: constant.
    ref_batches: float = 70_000
    #: Length of the linear ramp-up, in millions of images; 0: none.
    rampup_Mimg: float = 10
    #: Mean of ln(sigma) in training.
    P_mean: float = -0.4
    #: Standard deviation of ln(sigma) in training.
    P_std: float = 1.0
    #: Lengths (sigma_rel) of the tracked averages.
    ema_stds: tuple[float, ...] = (0.05, 0.10)
    #: Distance of the snapshots of the averages; one is always written at the end.
    snapshot_nimg: int = 8 * MI
    #: Arithmetic of the U-Net: fp16 as published (on CUDA; float32 elsewhere), bf16, or fp32.
    precision: str = "fp16"

    def __post_init__(self) -> None:
        positive(self, "batch_size", "ref_lr", "P_std")
        within(self, 0, torch.inf, "seed", "ref_batches", "rampup_Mimg")
        finite(self, "P_mean")
        within(self, 0.001, 0.3, "ema_stds")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise InputError(f"name is '{self.name}', expected a plain file name of letters, digits, '-', '_' and '.'")
        if not self.ema_stds or len({f"{std:.3f}" for std in self.ema_stds}) < len(self.ema_stds):
            raise InputError(
                f"ema_stds is {self.ema_stds}, expected lengths that differ in three decimals (file names)"
            )
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is '{self.precision}', expected {', '.join(PRECISIONS)}")

    def dotted(self) -> dict[str, Any]:
        """All values by name, those of the network as `network.NAME`."""
        values = asdict(self)
        return {f"network.{key}": value for key, value in values.pop("network").items()} | values


@dataclass(frozen=True)
class Pace:
    """How far a run goes, how often it saves and reports, and in what pieces it works; no folder is bound to these."""

    #: Length of training.
    total_nimg: int
    #: Distance of the checkpoints, from which an interrupted run goes on; one is always written at the end.
    checkpoint_nimg: int = 128 * MI
    #: Distance of the lines in the log.
    log_nimg: int = MI // 8
    #: Most images that a process takes at once; a larger share is accumulated. None: no limit.
    device_batch_size: int | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """One training run; in YAML all settings stand side by side. Counts are in images unless a name says otherwise."""

    settings: TrainingSettings = inline()
    pace: Pace = inline()

    def __post_init__(self) -> None:
        positive(self.pace, "device_batch_size")
        values, batch_size = self.values(), self.settings.batch_size
        for key in COUNTS:
            if values[key] <= 0 or values[key] % batch_size:
                raise InputError(f"{key} is {values[key]}, expected a positive multiple of batch_size ({batch_size})")
        if values["snapshot_nimg"] < min(1000, values["total_nimg"]):
            raise InputError(f"snapshot_nimg is {values['snapshot_nimg']}, expected 1000 or more (file names)")

    def values(self) -> dict[str, Any]:
        """All settings side by side, as in YAML."""
        return asdict(self.settings) | asdict(self.pace)

    def changed(self, **changes: Any) -> "TrainingConfig":
        """The same run with other values, by their names in YAML; of `network` those that are given.

        Raises InputError for an unknown name, or a value that does not fit.
        """
        if isinstance(network := changes.get("network", {}), dict):
            changes["network"] = asdict(self.settings.network) | network
        return build(TrainingConfig, self.values() | changes)
