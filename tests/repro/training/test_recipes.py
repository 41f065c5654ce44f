"""Training recipes against the published numbers (EDM2 table 6; arXiv:2406.02507 algorithm 2)."""

import pytest

from metrics.files import InputError
from repro.study import cost
from repro.training.config import MI, NetworkSettings
from repro.training.recipes import RECIPES, configure

# channels, Mparams, duration Mimg, alpha_ref, t_ref, dropout, P_mean, P_std, A100-days (32 x the published days), zetta
PUBLISHED = {
    "edm2-img512-xs": (128, 124.7, 2147.5, 0.0120, 70_000, 0.0, -0.4, 1.0, 32 * 3.0, 0.29),
    "edm2-img512-s": (192, 280.2, 2147.5, 0.0100, 70_000, 0.0, -0.4, 1.0, 32 * 5.3, 0.66),
    "edm2-img512-m": (256, 497.8, 2147.5, 0.0090, 70_000, 0.1, -0.4, 1.0, 32 * 7.8, 1.16),
    "edm2-img512-l": (320, 777.5, 1879.0, 0.0080, 70_000, 0.1, -0.4, 1.0, 32 * 10.2, 1.59),
    "edm2-img512-xl": (384, 1119.3, 1342.2, 0.0070, 70_000, 0.1, -0.4, 1.0, 32 * 9.7, 1.63),
    "edm2-img512-xxl": (448, 1523.2, 939.5, 0.0065, 70_000, 0.1, -0.4, 1.0, 32 * 9.1, 1.56),
    "edm2-img64-s": (192, 280.2, 1073.7, 0.0100, 35_000, 0.0, -0.8, 1.6, 32 * 2.6, 0.33),
    "edm2-img64-m": (256, 497.8, 2147.5, 0.0090, 35_000, 0.1, -0.8, 1.6, 32 * 7.8, 1.16),
    "edm2-img64-l": (320, 777.5, 1073.7, 0.0080, 35_000, 0.1, -0.8, 1.6, 32 * 5.8, 0.91),
    "edm2-img64-xl": (384, 1119.3, 671.1, 0.0070, 35_000, 0.1, -0.8, 1.6, 32 * 4.9, 0.82),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_settings_size_and_cost(name: str) -> None:
    channels, parameters, duration, lr, t_ref, dropout, P_mean, P_std, days, zettaflops = PUBLISHED[name]
    config = configure(name)
    s = config.settings
    assert s.network == NetworkSettings(model_channels=channels, dropout=dropout)
    assert config.pace.total_nimg / 1e6 == pytest.approx(duration, abs=0.05)
    assert (s.ref_lr, s.ref_batches, s.P_mean, s.P_std) == (lr, t_ref, P_mean, P_std)
    assert (s.batch_size, s.rampup_Mimg, s.ema_stds, s.conditional) == (2048, 10, (0.05, 0.1), True)
    assert s.snapshot_nimg == 8 * MI
    facts = cost.training(config, RECIPES[name])
    assert round(facts["Mparameters"], 1) == parameters
    assert facts["A100-days"] == pytest.approx(days, rel=0.03)
    assert facts["zettaflops"] == pytest.approx(zettaflops, abs=0.0075)


def test_algorithm_2_is_what_the_paper_trained_besides() -> None:
    found = {name: RECIPES[name] for name in RECIPES if name.startswith("autoguidance")}
    settings = {
        name: (r.resolution, r.channels, r.ref_lr, r.duration_Mi, r.dropout, r.conditional) for name, r in found.items()
    }
    assert settings == {
        "autoguidance-img512-s-uncond": (512, 192, 0.0100, 2048, 0, False),
        "autoguidance-img64-xs-uncond": (64, 128, 0.0120, 2048, 0, False),
        "autoguidance-img64-xs": (64, 128, 0.0120, 512, 0, True),
        "autoguidance-img512-xxs": (512, 64, 0.0170, 512, 0, True),
    }


def test_changes_replace_values_and_counts_become_whole_steps() -> None:
    changes = {"name": "mine", "network": {"model_channels": 96}, "total_nimg": MI, "batch_size": 48}
    config = configure("edm2-img64-s", changes)
    assert (config.settings.name, config.settings.seed) == ("mine", 0)
    assert config.settings.network == NetworkSettings(model_channels=96)
    counts = (config.pace.total_nimg, config.settings.snapshot_nimg, config.pace.checkpoint_nimg)
    assert counts == (21845 * 48,) * 3
    assert config.pace.log_nimg % 48 == 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("edm2-img512-z", {}, "training preset 'edm2-img512-z' is unknown; did you mean 'edm2-img512-"),
        ("edm2-img64-s", {"batch_size": 0}, "batch_size is 0"),
        ("edm2-img64-s", {"total_nimg": "long"}, "total_nimg: expected int, found 'long'"),
        ("edm2-img64-s", {"total_nimg": -1}, "total_nimg is -1"),
        ("edm2-img64-s", {"duration": 512}, "unknown key duration"),
        ("edm2-img64-s", {"precision": "fp8"}, "precision is 'fp8', expected fp16, bf16, fp32"),
    ],
)
def test_what_cannot_be_trained_is_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure(name, changes)


def test_a_description_holds_configuration_and_cost() -> None:
    text = cost.describe(configure("edm2-img512-s"), RECIPES["edm2-img512-s"])
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line and not line[:1].isupper())
    assert (lines["ref_lr"], lines["total_nimg"], lines["precision"]) == ("0.01", "2147483648", "fp16")
    assert lines["network.model_channels"] == "192"
    assert "A100-days" in text
