"""Training EDM2 networks: settings, loss, steps and the loop."""

from repro.training.config import NetworkSettings, Pace, TrainingConfig, TrainingSettings
from repro.training.trainer import EDM2Loss, learning_rate

__all__ = ["EDM2Loss", "NetworkSettings", "Pace", "TrainingConfig", "TrainingSettings", "learning_rate"]
