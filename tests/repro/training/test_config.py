"""Settings are refused where they mean nothing, in one line that names the key."""

from typing import Any

import pytest

from metrics.files import InputError
from repro.strict import build, facts
from repro.training import NetworkSettings, TrainingConfig


@pytest.mark.parametrize("key", ["total_nimg", "snapshot_nimg", "checkpoint_nimg", "log_nimg"])
def test_counts_that_no_step_reaches_are_refused(tiny: TrainingConfig, key: str) -> None:
    with pytest.raises(InputError, match=rf"{key} is 12, expected a positive multiple of batch_size \(8\)"):
        tiny.changed(**{key: 12})


def test_snapshots_too_close_to_tell_by_name_are_refused(tiny: TrainingConfig) -> None:
    with pytest.raises(InputError, match="snapshot_nimg is 48, expected 1000 or more"):
        tiny.changed(snapshot_nimg=48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../tiny"}, "name is '../tiny', expected a plain file name"),
        ({"name": ""}, "name is ''"),
        ({"seed": -1}, "seed is -1, expected a finite number of at least 0"),
        ({"seed": 1.5}, "seed: expected int, found 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"ref_lr": 0.0}, "ref_lr is 0.0"),
        ({"ref_batches": float("inf")}, "ref_batches is inf"),
        ({"P_mean": float("-inf")}, "P_mean is -inf, expected a finite number$"),
        ({"P_std": -1.0}, "P_std is -1.0"),
        ({"ema_stds": []}, "three decimals"),
        ({"ema_stds": [0.05, 0.31]}, r"ema_stds is \(0.05, 0.31\), expected a finite number from 0.001 to 0.3"),
        ({"ema_stds": [0.05, 0.0501]}, "three decimals"),
        ({"precision": "fp8"}, "precision is 'fp8', expected fp16, bf16, fp32"),
        ({"device_batch_size": 0}, "device_batch_size is 0"),
        ({"device_batchsize": 8}, "unknown key device_batchsize; did you mean 'device_batch_size'?"),
        ({"network": {"model_chanels": 8}}, "unknown key network.model_chanels; did you mean 'model_channels'?"),
        ({"network": {"dropout": 1.0}}, "network: dropout is 1.0"),
        ({"network": {"channel_mult": []}}, "network: channel_mult is empty"),
        ({"network": {"channel_mult": [1, 0]}}, "network: channel_mult is"),
        ({"network": {"attn_resolutions": [0]}}, "network: attn_resolutions is"),
        ({"network": {"res_balance": 1.5}}, "network: res_balance is 1.5, expected a finite number from 0 to 1"),
        ({"network": {"clip_act": 0}}, "network: clip_act is 0.0"),
        ({"network": 3}, "network: expected a mapping, found 3"),
    ],
)
def test_values_that_mean_nothing_are_refused(tiny: TrainingConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.changed(**changes)


def test_settings_stand_side_by_side_and_read_back_to_the_same_run(tiny: TrainingConfig) -> None:
    assert build(TrainingConfig, tiny.values()) == tiny
    bare = build(TrainingConfig, {"name": "bare", "network": {"model_channels": 8}, "total_nimg": 2048 << 20})
    assert facts(bare.settings.network) == {"model_channels": 8}
    assert bare.settings.network == NetworkSettings(model_channels=8)
    with pytest.raises(InputError, match="missing key total_nimg"):
        build(TrainingConfig, {"name": "bare", "network": {}})
