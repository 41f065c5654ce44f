"""Training presets: the published recipe for every size and resolution (EDM2 table 6), and the four models that the
autoguidance paper trained besides (arXiv:2406.02507 algorithm 2)."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from metrics.files import InputError
from repro.study import MI, cost, nearest
from repro.training import TrainingConfig

BATCH = 2048
LABELS = 1000  # classes of ImageNet
SNAPSHOT_MI, CHECKPOINT_MI = 8, 128


@dataclass(frozen=True)
class Recipe:
    """What tells one run from another; everything else is the same for all."""

    resolution: int
    """Of the images: 512 are trained as 64 x 64 latents of the VAE, 64 as pixels."""
    channels: int
    ref_lr: float
    duration_Mi: int
    """Training length in units of 2^20 images."""
    dropout: float = 0.0
    conditional: bool = True

    @property
    def data_shape(self) -> tuple[int, int]:
        """Resolution and channels that the network sees."""
        return (64, 4) if self.resolution == 512 else (64, 3)

    def config(self, name: str) -> TrainingConfig:
        """The run as the trainer takes it."""
        latent = self.resolution == 512
        return TrainingConfig(
            name=name,
            network={"model_channels": self.channels, "dropout": self.dropout},
            total_nimg=self.duration_Mi * MI,
            batch_size=BATCH,
            conditional=self.conditional,
            ref_lr=self.ref_lr,
            ref_batches=70_000 if latent else 35_000,
            P_mean=-0.4 if latent else -0.8,
            P_std=1.0 if latent else 1.6,
            snapshot_nimg=SNAPSHOT_MI * MI,
            checkpoint_nimg=CHECKPOINT_MI * MI,
        )


RECIPES = {
    "edm2-img512-xxs": Recipe(512, 64, 0.0170, 2048),
    "edm2-img512-xs": Recipe(512, 128, 0.0120, 2048),
    "edm2-img512-s": Recipe(512, 192, 0.0100, 2048),
    "edm2-img512-m": Recipe(512, 256, 0.0090, 2048, dropout=0.1),
    "edm2-img512-l": Recipe(512, 320, 0.0080, 1792, dropout=0.1),
    "edm2-img512-xl": Recipe(512, 384, 0.0070, 1280, dropout=0.1),
    "edm2-img512-xxl": Recipe(512, 448, 0.0065, 896, dropout=0.1),
    "edm2-img64-xs": Recipe(64, 128, 0.0120, 1024),
    "edm2-img64-s": Recipe(64, 192, 0.0100, 1024),
    "edm2-img64-m": Recipe(64, 256, 0.0090, 2048, dropout=0.1),
    "edm2-img64-l": Recipe(64, 320, 0.0080, 1024, dropout=0.1),
    "edm2-img64-xl": Recipe(64, 384, 0.0070, 640, dropout=0.1),
}
RECIPES |= {  # algorithm 2
    "autoguidance-img512-s-uncond": replace(RECIPES["edm2-img512-s"], conditional=False),
    "autoguidance-img64-xs-uncond": replace(RECIPES["edm2-img64-xs"], duration_Mi=2048, conditional=False),
    "autoguidance-img64-xs": replace(RECIPES["edm2-img64-xs"], duration_Mi=512),
    "autoguidance-img512-xxs": replace(RECIPES["edm2-img512-xxs"], duration_Mi=512),
}


def recipe(name: str) -> Recipe:
    """A recipe by name; raises InputError naming the nearest where there is none."""
    if name not in RECIPES:
        raise InputError(f"no training preset '{name}'{nearest(name, RECIPES)}")
    return RECIPES[name]


def configure(preset: str, network: dict[str, Any] | None = None, **changes: Any) -> TrainingConfig:
    """The recipe `preset` with other values of `TrainingConfig`, and of its network's arguments; None: as it is.

    Counts of images become whole steps; snapshots, checkpoints and log lines lie within the run.

    Raises:
        InputError: unknown recipe, or values that do not go together.
    """
    base = recipe(preset).config(preset)
    values = {key: value for key, value in changes.items() if value is not None}
    batch, total = values.get("batch_size", base.batch_size), values.get("total_nimg", base.total_nimg)
    if batch < 1:
        raise InputError(f"batch_size is {batch}, expected 1 or more")
    for key in ("total_nimg", "snapshot_nimg", "checkpoint_nimg", "log_nimg"):
        wanted = min(values.get(key, getattr(base, key)), total)
        values[key] = max(round(wanted / batch), 1) * batch
    arguments = base.network | {key: value for key, value in (network or {}).items() if value is not None}
    return replace(base, network=arguments, **values)


def describe(config: TrainingConfig, chosen: Recipe) -> str:
    """The full configuration and what it costs, as lines of text."""
    resolution, channels = chosen.data_shape
    facts = cost.training(config, resolution, channels, LABELS)
    lines = [f"{key:22} {value}" for key, value in asdict(config).items()]
    return "\n".join([*lines, "", *(f"{key:22} {value:,.4g}" for key, value in facts.items())])
