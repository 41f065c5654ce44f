"""Averaging profiles, tracking and post-hoc reconstruction against golden values, quadrature and direct sums."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from metrics.files import InputError
from repro import ema, snapshots

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
STDS = st.floats(0.005, 0.28)


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "ema.npz"))


def test_exponents_match_the_golden_values(oracle):
    np.testing.assert_allclose(ema.std_to_gamma(oracle["std"]), oracle["exponent"], rtol=1e-10)
    np.testing.assert_allclose(ema.gamma_to_std(oracle["exponent"]), oracle["std_roundtrip"], rtol=1e-10)


def test_decay_matches_the_golden_values(oracle):
    ours = ema.beta(oracle["std"][:, None], oracle["beta_t_next"], oracle["beta_t_delta"])
    np.testing.assert_allclose(ours, oracle["beta"], rtol=1e-10)


def test_correlations_match_the_golden_values(oracle):
    ofs = oracle["corr_a_ofs"].reshape(-1)
    stds = np.array([0.05, 0.10])
    ours = ema.correlation(ofs[:, None, None, None], stds[:, None, None], ofs[:, None], stds)  # [time, std, time, std]
    np.testing.assert_allclose(ours, oracle["corr"], rtol=1e-10)


def test_coefficients_match_the_golden_values(oracle):
    ours = ema.solve_coefficients(
        oracle["solve_in_nimg"], oracle["solve_in_std"], oracle["solve_out_nimg"], oracle["solve_out_std"]
    )
    np.testing.assert_allclose(ours, oracle["coefficients"], atol=1e-6)


@given(STDS)
def test_length_and_exponent_are_inverse(std):
    assert float(ema.gamma_to_std(ema.std_to_gamma(std))) == pytest.approx(std, rel=1e-10)


@given(st.floats(0.5, 8), STDS, st.floats(0.5, 8), STDS)
def test_correlation_is_the_integral_of_the_product_of_two_profiles(ta, sa, tb, sb):
    ga, gb = float(ema.std_to_gamma(sa)), float(ema.std_to_gamma(sb))

    def product(t: float) -> float:
        return (ga + 1) * t**ga / ta ** (ga + 1) * (gb + 1) * t**gb / tb ** (gb + 1)

    end = min(ta, tb)
    points = end * (1 - np.geomspace(1e-3, 0.5, 5))
    expected, _ = quad(product, 0, end, points=points, limit=400)
    assert float(ema.correlation(ta, sa, tb, sb)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(STDS)
def test_a_stored_average_is_its_own_reconstruction(std):
    coefficients = ema.solve_coefficients([1e6, 2e6, 2e6], [std, std, std / 2], 2e6, [std])
    np.testing.assert_allclose(coefficients[:, 0], [0, 1, 0], atol=1e-6)


def test_profile_error_matches_the_known_cost_of_sparse_snapshots():
    # ImageNet-512 XS at 128Mi images from snapshots every 32Mi and every 8Mi, EMA 0.125 (facts of the release).
    for spacing, expected in ((32, 0.052), (8, 0.0044)):
        times = np.arange(spacing, 129, spacing) * 2.0**20
        error = ema.profile_error(np.repeat(times, 2), np.tile([0.05, 0.10], len(times)), times[-1], 0.125)
        assert float(error[0]) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("std", [0, -0.1, 0.31, float("nan")])
def test_impossible_lengths_are_refused(std):
    with pytest.raises(ValueError, match="EMA lengths"):
        ema.std_to_gamma(std)


def test_tracking_matches_the_definition_and_copies_buffers():
    torch.manual_seed(0)
    net = nn.BatchNorm1d(3).double()
    tracker = ema.PowerFunctionEMA(net, [0.05, 0.10])
    history = []
    for step in range(1, 9):
        with torch.no_grad():
            for tensor in (*net.parameters(), net.running_mean):
                tensor.copy_(torch.randn_like(tensor))
        history.append(net.weight.detach().clone())
        tracker.update(step * 8, 8)
    for std, average in tracker.networks().items():
        gamma = float(ema.std_to_gamma(std))
        expected = torch.zeros_like(history[0])
        for step, weight in enumerate(history, start=1):
            share = (step ** (gamma + 1) - (step - 1) ** (gamma + 1)) / len(history) ** (gamma + 1)
            expected += share * weight
        torch.testing.assert_close(average.weight.detach(), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(average.running_mean, net.running_mean)
        assert not average.training
        assert not any(p.requires_grad for p in average.parameters())


def test_tracking_state_round_trips():
    tracker = ema.PowerFunctionEMA(nn.Linear(2, 2))
    other = ema.PowerFunctionEMA(nn.Linear(2, 2))
    other.load_state_dict(tracker.state_dict())
    for std, net in tracker.networks().items():
        assert torch.equal(net.weight, other.networks()[std].weight)


def test_reconstruction_matches_the_golden_networks():
    expected = np.load(GOLDEN / "reconstruction.npz")
    paths = sorted((GOLDEN / "raw-snapshots").glob("*.pkl"))
    networks = ema.reconstruct(paths, [0.03, 0.075, 0.15])
    assert set(networks) == {0.03, 0.075, 0.15}
    for std, snapshot in networks.items():
        state = snapshot.network.state_dict()
        names = [key.split("/", 1)[1] for key in expected if key.startswith(f"{std:.3f}/")]
        assert set(names) <= set(state)
        for name in names:
            ours, theirs = state[name].numpy(), expected[f"{std:.3f}/{name}"].astype(np.float32)
            # One unit in the last place of float16, where the float32 sums straddle a rounding boundary.
            np.testing.assert_allclose(ours, theirs, rtol=1.1e-3, atol=1e-4, err_msg=name)
            assert np.mean(ours == theirs) > 0.97
        assert snapshot.metadata["nimg"] == 98304
        assert snapshot.metadata["ema_std"] == std


def test_earlier_output_ignores_later_snapshots():
    paths = sorted((GOLDEN / "raw-snapshots").glob("*.pkl"))
    early = [path for path in paths if "-0000098-" not in path.name]
    ours = ema.reconstruct(paths, [0.07], out_nimg=65536)[0.07].network.state_dict()
    for name, tensor in ema.reconstruct(early, [0.07])[0.07].network.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


def test_reconstruction_names_what_is_missing(tmp_path):
    paths = sorted((GOLDEN / "raw-snapshots").glob("*.pkl"))
    with pytest.raises(InputError, match=r"no snapshot at 70000 images.*65536"):
        ema.reconstruct(paths, [0.07], out_nimg=70000)
    with pytest.raises(InputError, match="RUN-KIMG-STD"):
        ema.reconstruct([tmp_path / "net.pkl"], [0.07])
    with pytest.raises(InputError, match="same number of images"):
        ema.reconstruct([paths[0], tmp_path / paths[0].name], [0.07])


def test_reconstruction_round_trips_through_a_file(tmp_path):
    snapshot = ema.reconstruct(sorted((GOLDEN / "raw-snapshots").glob("*.pkl")), [0.075])[0.075]
    path = tmp_path / "tiny-0000098-0.075.safetensors"
    snapshots.save(snapshot, path)
    assert ema.snapshot_time(path) == (98304, 0.075)
    for name, tensor in snapshots.load(path).network.state_dict().items():
        assert torch.equal(tensor, snapshot.network.state_dict()[name].to(tensor.dtype)), name
