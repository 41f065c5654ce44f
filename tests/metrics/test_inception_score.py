"""The Inception score on cases worked by hand."""

import numpy as np
import pytest

from metrics.files import InputError
from metrics.inception_score import inception_score


def test_certain_and_evenly_spread_labels_score_the_number_of_classes() -> None:
    logits = np.tile(1000.0 * np.eye(7), (10, 1))
    value, spread = inception_score(logits, num_splits=10)
    assert value == pytest.approx(7, rel=1e-12)
    assert spread == pytest.approx(0, abs=1e-12)


def test_one_label_for_all_images_scores_one() -> None:
    assert inception_score(np.tile([3.0, 1.0, 0.5], (20, 1)), num_splits=4)[0] == pytest.approx(1, rel=1e-12)


def test_two_images_worked_by_hand() -> None:
    # p = (0.9, 0.1) and (0.3, 0.7); p(y) = (0.6, 0.4).
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    kl = 0.5 * sum(p[i, j] * np.log(p[i, j] / [0.6, 0.4][j]) for i in (0, 1) for j in (0, 1))
    assert inception_score(np.log(p) + 5.0, num_splits=1)[0] == pytest.approx(np.exp(kl), rel=1e-12)


def test_spread_is_the_deviation_over_consecutive_splits() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((40, 5))
    parts = [inception_score(part, num_splits=1)[0] for part in np.split(logits, 4)]
    value, spread = inception_score(logits, num_splits=4)
    assert value == pytest.approx(np.mean(parts))
    assert spread == pytest.approx(np.std(parts))


@pytest.mark.parametrize(("logits", "message"), [(np.zeros((3, 5)), "found 3"), (np.full((20, 5), np.nan), "NaN")])
def test_unusable_logits_are_refused(logits: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inception_score(logits)
