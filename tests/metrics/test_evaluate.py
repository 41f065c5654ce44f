"""The evaluation API on feature files: values, spread, refusals, warnings, outputs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics import detectors, features, references
from metrics.adm import adm_precision_recall
from metrics.evaluation import Extractor, compare, evaluate
from metrics.evaluator import Evaluator
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.frechet import frechet_distance, frechet_with_error
from metrics.kernel import kernel_distance
from metrics.measure import Options
from metrics.memorisation import authentic_percentage, data_copying
from metrics.neighbours import neighbour_metrics
from metrics.statistics import from_features
from metrics.vendi import vendi_score

TAGS = {"detector": "planes", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}


class Planes:
    """Mean and deviation of the red and the green plane: a detector of four features."""

    name = "planes"
    dim = 4
    tags = TAGS

    def __call__(self, images: Tensor) -> Tensor:
        x = images[:, :2].float().flatten(2)
        return torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)


detectors.register("planes", lambda **_: Planes())
EXTRACTOR = Extractor(["planes"])


def feature_file(
    path: Path, count: int = 60, shift: float = 0.0, seed: int = 0, **tags: str
) -> tuple[Path, np.ndarray]:
    x = (np.random.default_rng(seed).standard_normal((count, 4)) + shift).astype(np.float32)
    labels = np.arange(count) % 2
    features.save({"planes": FeatureSet.of(x, TAGS | tags, labels)}, path)
    return path, x


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    fake, x = feature_file(tmp_path / "fake.npz", 60, 0.5, 1)
    real, y = feature_file(tmp_path / "real.npz", 70)
    return fake, real, x, y


def values(measurements: Sequence) -> dict[tuple[str, str], float]:
    return {(m.metric, m.subset): m.value for m in measurements}


def test_values_are_those_of_the_metric_functions(pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    fake, real, x, y = pair
    wanted = ("fd", "fd_infinity", "kid", "precision_recall", "density_coverage", "per_class", "adm_precision_recall")
    options = Options(wanted, error_blocks=6, kid_subset_size=20)
    report = evaluate(fake, real, extractor=EXTRACTOR, options=options)
    found = values(report.measurements)
    reference = from_features(y)
    assert found["fd_planes", "all"] == pytest.approx(frechet_distance(from_features(x), reference), rel=1e-9)
    assert found["kid", "all"] == kernel_distance(y, x, subset_size=20)[0]
    for metric, value in (neighbour_metrics(y, x) | adm_precision_recall(y, x)).items():
        assert found[metric, "all"] == value
    for label in (0, 1):
        expected = frechet_distance(from_features(x[label::2]), from_features(y[label::2]))
        assert found["fd_planes", f"class {label}"] == pytest.approx(expected, rel=1e-9)
    fd = next(m for m in report.measurements if m.metric == "fd_planes" and m.subset == "all")
    assert fd.error == pytest.approx(frechet_with_error(x, reference, 6).standard_error, rel=1e-6)
    infinity = next(m for m in report.measurements if m.metric == "fd_planes_infinity")
    assert infinity.value < fd.value
    assert infinity.error is not None


def test_metrics_of_memorisation_compare_with_training_and_held_out_images(tmp_path: Path) -> None:
    (fake, x), (train, y), (test, z) = (
        feature_file(tmp_path / f"{name}.npz", 90, shift, seed)
        for seed, (name, shift) in enumerate((("fake", 0.2), ("train", 0.0), ("test", 0.0)))
    )
    real, _ = feature_file(tmp_path / "real.npz", 70, 0.1, 9)
    found = evaluate(fake, real, metrics=("authpct", "ct", "vendi"), train=train, test=test, extractor=EXTRACTOR)
    expected = {"authpct": authentic_percentage(y, x), "ct": data_copying(y, z, x), "vendi": vendi_score(x)}
    assert values(found.measurements) == {(name, "all"): value for name, value in expected.items()}
    assert found.facts["train"] == str(train)
    assert found.facts["test_digest"] != found.facts["train_digest"] != found.facts["reference_digest"]
    default = evaluate(fake, train, metrics=("authpct",), extractor=EXTRACTOR)
    assert default.measurements[0].value == expected["authpct"]
    assert (default.facts["train"], default.facts["test"]) == (str(train), "")
    assert evaluate(fake, train, metrics=("vendi",), extractor=EXTRACTOR).facts["train"] == ""


def test_metrics_of_memorisation_say_which_set_they_lack(tmp_path: Path) -> None:
    fake, x = feature_file(tmp_path / "fake.npz")
    references.save({"planes": from_features(x, TAGS)}, tmp_path / "ref.npz")
    other, _ = feature_file(tmp_path / "other.npz", resize="pil")
    for metrics, sets, message in (
        (("authpct",), {}, "authpct compares with the training images, and the reference.*name them with --train"),
        (("ct",), {"train": fake}, "name such a held-out set with --test"),
        (("vendi",), {"train": fake}, "--train is given, which only authpct and ct can compare with"),
        (("authpct",), {"train": fake, "test": fake}, "--test is given, which only ct can"),
        (("authpct",), {"train": other}, "tag 'resize' differs"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(fake, tmp_path / "ref.npz", metrics=metrics, extractor=EXTRACTOR, **sets)


def test_all_leaves_out_what_has_no_set_to_compare_with(tmp_path: Path) -> None:
    fake, _ = feature_file(tmp_path / "fake.npz", 60, 0.2, 1)
    real, _ = feature_file(tmp_path / "real.npz")
    results = evaluate(fake, real, metrics=("all",), extractor=EXTRACTOR)
    assert {"authpct", "vendi", "adm_recall"} <= {m.metric for m in results.measurements}
    assert "ct" not in {m.metric for m in results.measurements}
    assert any("ct of planes is left out: ct compares with images" in text for text in results.warnings)


def test_some_images_of_a_reference_are_not_taken_for_the_training_set(tmp_path: Path) -> None:
    fake, _ = feature_file(tmp_path / "fake.npz")
    some = replace(references.load(fake), images=tmp_path / "some.npz")
    with pytest.raises(InputError, match="the reference does not hold them all; name them with --train"):
        evaluate(fake, some, metrics=("authpct",), extractor=EXTRACTOR)


def test_blocks_are_measured_on_their_own_and_summarised(pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    fake, real, x, y = pair
    options = Options(("fd", "precision_recall"), num_blocks=3)
    report = evaluate(fake, real, extractor=EXTRACTOR, options=options)
    found = values(report.measurements)
    for i in range(3):
        block = from_features(x[20 * i : 20 * i + 20])
        assert found["fd_planes", f"block {i + 1}/3"] == pytest.approx(
            frechet_distance(block, from_features(y)), rel=1e-9
        )
        assert ("precision", f"block {i + 1}/3") in found
    assert "3 blocks" in report.table()
    assert "(min / mean / max)" in report.table()


def test_comparison_tells_which_side_is_nearer_and_how_sure_that_is(tmp_path: Path) -> None:
    real, _ = feature_file(tmp_path / "real.npz", 200)
    near, _ = feature_file(tmp_path / "near.npz", 200, 0.1, 1)
    far, _ = feature_file(tmp_path / "far.npz", 200, 0.6, 1)
    found = values(compare(EXTRACTOR, near, far, real).measurements)
    assert found["fd_planes", "A - B"] == pytest.approx(found["fd_planes", "A"] - found["fd_planes", "B"], rel=1e-9)
    assert found["chance of A nearer by fd_planes", "A - B"] > 0.99
    swapped = values(compare(EXTRACTOR, far, near, real).measurements)
    assert swapped["chance of A nearer by fd_planes", "A - B"] < 0.01


def test_comparison_of_a_set_with_itself_is_undecided(pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    fake, real, _, _ = pair
    found = values(compare(EXTRACTOR, fake, fake, real).measurements)
    assert found["fd_planes", "A - B"] == 0
    assert found["chance of A nearer by fd_planes", "A - B"] == 0.5


def test_features_of_other_settings_are_refused_by_tag(tmp_path: Path) -> None:
    fake, _ = feature_file(tmp_path / "fake.npz", resize="pil")
    real, _ = feature_file(tmp_path / "real.npz")
    with pytest.raises(InputError, match=r"tag 'resize' differs: 'pil' in .*fake\.npz against 'none' in .*real\.npz"):
        evaluate(fake, real, extractor=EXTRACTOR)


def test_warnings_name_small_sets_and_unchecked_tags(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fake = tmp_path / "fake.npz"
    tags = TAGS | {"detector": "inception"}
    features.save({"inception": FeatureSet.of(rng.standard_normal((9, 2048)).astype(np.float32), tags)}, fake)
    np.savez(tmp_path / "edm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    text = " ".join(evaluate(fake, tmp_path / "edm.npz").warnings)
    assert "published values use 50000" in text
    assert "covariance is singular" in text
    assert "does not say weights_sha256, resize, dtype" in text


def test_statistics_alone_do_not_give_metrics_that_need_features(tmp_path: Path) -> None:
    fake, x = feature_file(tmp_path / "fake.npz")
    references.save({"planes": from_features(x, TAGS)}, tmp_path / "ref.npz")
    with pytest.raises(InputError, match=r"ref\.npz: holds statistics only, and kid need features"):
        evaluate(fake, tmp_path / "ref.npz", metrics=("fd", "kid"), extractor=EXTRACTOR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ("fdi",)}, "metric 'fdi' is unknown; did you mean 'fd'"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"error_blocks": 1}, "leaves out one of at least 2"),
        ({"kid_subset_size": 1}, "kid_subset_size is 1"),
    ],
)
def test_senseless_options_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options(**arguments)


def test_csv_and_json_carry_tags_digests_and_versions(pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    fake, real, _, _ = pair
    report = evaluate(fake, real, extractor=EXTRACTOR)
    row = next(csv.DictReader(io.StringIO(report.csv())))
    assert row["metric"] == "fd_planes"
    assert float(row["value"]) == report.measurements[0].value
    assert row["weights_sha256"] == "0" * 64
    assert row["tf32"] == "off"
    assert row["images"] == str(fake)
    assert report.as_dict()["sets"] == [{key: row[key] for key in ("images", "images_digest", "images_size")}]
    for key in ("reference_digest", "device", "versions"):
        assert row[key] == report.as_dict()[key] != ""
    assert report.as_dict()["detectors"]["planes"]["resize"] == "none"


def test_batches_fed_in_a_training_loop_give_the_value_of_the_whole(tmp_path: Path) -> None:
    real, y = feature_file(tmp_path / "real.npz")
    batches = [torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8) for n in (16, 16, 5)]
    evaluator = Evaluator(real, extractor=EXTRACTOR, options=Options(("fd", "precision_recall")))
    for batch in batches:
        evaluator.update(batch)
    x = Planes()(torch.cat(batches)).numpy()
    found = values(evaluator.result())
    assert found["fd_planes", "all"] == pytest.approx(frechet_distance(from_features(x), from_features(y)), rel=1e-9)
    assert found["recall", "all"] == neighbour_metrics(y, x)["recall"]
