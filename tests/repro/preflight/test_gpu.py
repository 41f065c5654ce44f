"""What preflight finds on a GPU that is well."""

import pytest
import torch

from repro.preflight import exactness, host
from repro.preflight.checks import Setting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_golden_samples_and_features() -> None:
    device = torch.device("cuda")
    assert exactness.golden_sample(device) < exactness.FLOAT16_SAMPLES
    assert exactness.golden_features(device) < exactness.FEATURES


@pytest.mark.parametrize("size", ["xxs", "xs", "s"])
def test_float16_is_near_float32(size: str) -> None:
    assert exactness.float16_error(size, torch.device("cuda")) < exactness.FLOAT16


def test_devices_are_listed(setting: Setting) -> None:
    found = [f.about for f in host.check_devices(setting)]
    assert found == ["software", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), "memory"]
