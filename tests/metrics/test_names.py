"""What measured values are called, and the doors by which others add their own."""

import pytest

from metrics.files import InputError
from metrics.measure import value_names
from metrics.names import named, qualified
from metrics.registry import Registry


def test_a_value_of_features_is_named_with_its_detector_whatever_else_is_measured() -> None:
    metrics = ["fd", "fd_infinity", "precision_recall", "kid"]
    assert value_names(metrics, "inception") == [
        *("fid", "fid_infinity", "precision_inception", "recall_inception", "kid_inception")
    ]
    assert value_names(["fd", "density_coverage"], "dinov2") == ["fd_dinov2", "density_dinov2", "coverage_dinov2"]


def test_names_are_qualified_once() -> None:
    assert qualified(qualified("fd", "inception"), "inception") == "fid"
    assert qualified("fid_infinity", "inception") == "fid_infinity"
    assert qualified("fd", "nobody's") == "fd_nobody's"


def test_readers_see_label_direction_and_space() -> None:
    assert (named("fid").label, named("fid").arrow, named("fid").decimals) == ("FID", " ↓", 2)
    assert (named("recall_inception").label, named("recall_inception").better) == ("recall (Inception)", 1)
    assert named("fd_dinov2").tex == r"FD$_\mathrm{DINOv2}$"


def test_a_metric_that_nobody_registered_is_an_error_with_the_nearest() -> None:
    with pytest.raises(InputError, match="metric 'fidd' is unknown; did you mean 'fid'"):
        named("fidd")


def test_a_registry_refuses_taken_and_unknown_names_and_keeps_the_order() -> None:
    registry: Registry[object] = Registry("thing")
    one, two = object(), object()
    for name, entry in (("b", one), ("a", two), ("b", one)):
        registry.register(name, entry)
    assert list(registry) == ["b", "a"]
    with pytest.raises(InputError, match="thing 'b' is registered already"):
        registry.register("b", two)
    with pytest.raises(InputError, match="thing 'c' is unknown; known: a, b"):
        registry["c"]
