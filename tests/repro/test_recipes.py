"""Training recipes against the published numbers (EDM2 table 6; arXiv:2406.02507 algorithm 2)."""

import pytest

from metrics.files import InputError
from repro.study import MI, cost
from repro.training.recipes import RECIPES, configure, describe, recipe

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
    assert config.network == {"model_channels": channels, "dropout": dropout}
    assert config.total_nimg / 1e6 == pytest.approx(duration, abs=0.05)
    assert (config.ref_lr, config.ref_batches, config.P_mean, config.P_std) == (lr, t_ref, P_mean, P_std)
    assert (config.batch_size, config.rampup_Mimg, config.ema_stds, config.conditional) == (2048, 10, (0.05, 0.1), True)
    assert config.snapshot_nimg == 8 * MI
    facts = cost.training(config, *recipe(name).data_shape, 1000)
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
    config = configure(
        "edm2-img64-s", {"model_channels": 96, "dropout": None}, name="mine", total_nimg=MI, batch_size=48, seed=None
    )
    assert (config.name, config.seed, config.network["model_channels"], config.network["dropout"]) == ("mine", 0, 96, 0)
    assert config.total_nimg == config.snapshot_nimg == config.checkpoint_nimg == 21845 * 48
    assert config.log_nimg % 48 == 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("edm2-img512-z", {}, "no training preset 'edm2-img512-z'; did you mean 'edm2-img512-"),
        ("edm2-img64-s", {"batch_size": 0}, "batch_size is 0"),
        ("edm2-img64-s", {"precision": "fp8"}, "precision is 'fp8', expected fp16, bf16, fp32"),
    ],
)
def test_what_cannot_be_trained_is_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure(name, **changes)


def test_a_description_holds_configuration_and_cost() -> None:
    text = describe(configure("edm2-img512-s"), recipe("edm2-img512-s"))
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line and not line[:1].isupper())
    assert (lines["ref_lr"], lines["total_nimg"], lines["precision"]) == ("0.01", "2147483648", "fp16")
    assert "A100-days" in text
