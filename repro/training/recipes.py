"""Training presets: the published recipe for every size and resolution (EDM2 table 6), and the four models that the
autoguidance paper trained besides (arXiv:2406.02507 algorithm 2)."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from metrics.registry import Registry
from repro.strict import build
from repro.training.config import COUNTS, MI, NetworkSettings, TrainingConfig

LABELS = 1000  # classes of ImageNet


@dataclass(frozen=True)
class Recipe:
    """What tells one run from another."""

    #: Of the images: 512 are trained as 64 x 64 latents of the VAE, 64 as pixels.
    resolution: int
    channels: int
    ref_lr: float
    #: Training length in units of 2^20 images.
    duration_Mi: int
    dropout: float = 0.0
    conditional: bool = True

    @property
    def data_shape(self) -> tuple[int, int]:
        """Resolution and channels that the network sees."""
        return (64, 4) if self.resolution == 512 else (64, 3)

    @property
    def network(self) -> NetworkSettings:
        """The network as the trainer takes it."""
        return NetworkSettings(model_channels=self.channels, dropout=self.dropout)


#: Resolution -> what all its recipes set.
SHARED = {
    512: {"ref_batches": 70_000, "P_mean": -0.4, "P_std": 1.0},
    64: {"ref_batches": 35_000, "P_mean": -0.8, "P_std": 1.6},
}
EDM2 = {
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
ALGORITHM_2 = {
    "autoguidance-img512-s-uncond": replace(EDM2["edm2-img512-s"], conditional=False),
    "autoguidance-img64-xs-uncond": replace(EDM2["edm2-img64-xs"], duration_Mi=2048, conditional=False),
    "autoguidance-img64-xs": replace(EDM2["edm2-img64-xs"], duration_Mi=512),
    "autoguidance-img512-xxs": replace(EDM2["edm2-img512-xxs"], duration_Mi=512),
}
RECIPES: Registry[Recipe] = Registry("training preset")
RECIPES.update(EDM2 | ALGORITHM_2)


def configure(preset: str, changes: dict[str, Any] | None = None) -> TrainingConfig:
    """The recipe `preset` with other values, named as in YAML: of `TrainingConfig`, of its network under `network`.

    Counts of images become whole steps; snapshots, checkpoints and log lines lie within the run. Raises InputError for
    an unknown recipe or name, or values that do not fit.
    """
    recipe, changes = RECIPES[preset], changes or {}
    own = {
        "name": preset,
        "network": asdict(recipe.network),
        "conditional": recipe.conditional,
        "ref_lr": recipe.ref_lr,
    }
    base = build(TrainingConfig, own | SHARED[recipe.resolution] | {"total_nimg": recipe.duration_Mi * MI})
    values = base.values() | changes
    batch_size, total, counts = values["batch_size"], values["total_nimg"], {key: values[key] for key in COUNTS}
    if all(type(n) is int and n > 0 for n in (batch_size, *counts.values())):  # whatever else is refused below
        counts = {key: max(round(min(n, total) / batch_size), 1) * batch_size for key, n in counts.items()}
    return base.changed(**changes | counts)
