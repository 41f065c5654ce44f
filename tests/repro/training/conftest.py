"""A run that takes a second."""

import pytest

from repro.training import NetworkSettings, Pace, TrainingConfig, TrainingSettings


@pytest.fixture(scope="session")
def tiny() -> TrainingConfig:
    """Twelve steps of the smallest network with attention and dropout on the digits."""
    network = NetworkSettings(
        model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,), channels_per_head=8, dropout=0.1
    )
    settings = TrainingSettings(
        name="tiny", network=network, batch_size=8, ref_lr=0.01, ref_batches=4, rampup_Mimg=16e-6, snapshot_nimg=96
    )
    return TrainingConfig(settings, Pace(total_nimg=96, checkpoint_nimg=16, log_nimg=32))
