"""Settings of the 2D example: the paper's by default, checked, and what their digest depends on."""

import dataclasses
import json
import math

import pytest
import yaml

from metrics.detectors import DETECTORS
from metrics.files import InputError
from metrics.names import named
from repro.strict import build, digest
from repro.toy.metrics import NAMES
from repro.toy.settings import ToyNetworkSettings, ToySettings, ToyTrainingSettings


def test_settings_survive_yaml_and_default_to_the_paper() -> None:
    facts = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(ToySettings())))))
    assert build(ToySettings, facts, "toy") == build(ToySettings, {}, "toy") == ToySettings()
    other = build(ToySettings, {"training": {"seed": 1}, "figures": False}, "toy")
    assert other == ToySettings(training=ToyTrainingSettings(seed=1), figures=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_steps": -1}, "num_steps is -1"),
        ({"rho": math.inf}, "rho is inf"),
        ({"sigma_max": math.inf}, "sigma_max is inf"),
        ({"sigma_min": 6.0}, "sigma_max is 5.0"),
        ({"cfg": math.nan}, "cfg is nan"),
        ({"autoguidance": math.inf}, "autoguidance is inf"),
        ({"truncation": -math.inf}, "truncation is -inf"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"sampling_seeds": (1, 1)}, "sampling_seeds"),
        ({"sampling_seeds": ()}, "at least one"),
        ({"sampling_seeds": (0, -1)}, r"sampling_seeds is \(0, -1\), expected a finite number from 0 to 2147483646"),
        ({"sampling_seeds": (2**31,)}, r"sampling_seeds is \(2147483648,\)"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(ToySettings(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"P_mean": math.nan}, "P_mean is nan"),
        ({"ema_std": 0.4}, "ema_std is 0.4"),
    ],
)
def test_impossible_trainings_are_refused_by_name(changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ToyTrainingSettings(**changes)
    with pytest.raises(InputError, match="classes is 'C'"):
        ToyNetworkSettings("C", 64, 4096)
    with pytest.raises(InputError, match="width is 0"):
        ToyNetworkSettings("A", 0, 4096)


def test_digest_of_the_paper_s_main_network_is_frozen() -> None:
    found = digest(ToySettings().main, ToyTrainingSettings())
    assert found == "8a52f9fbe213cfba5df688b71837188c3f71a107a175f574552cf1d8de0f3097"


def test_measures_are_named_and_not_offered_per_detector() -> None:
    assert [named(name).label for name in NAMES][:3] == ["outliers", "log-density", "median log-density"]
    assert named("component_jsd").better == -1
    for detector in DETECTORS:
        with pytest.raises(InputError, match=f"outliers_{detector}"):
            named(f"outliers_{detector}")
