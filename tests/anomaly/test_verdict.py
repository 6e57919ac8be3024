from __future__ import annotations

import numpy as np

from anomaly import judge

NAN = np.nan


def test_the_worst_field_is_worst_against_its_own_threshold() -> None:
    verdict = judge(np.array([[5.0, 9.0], [5.0, 11.0], [0.0, 0.0]]), np.array([5.0, 10.0]))
    assert verdict.field.tolist() == [0, 1, 0]
    assert verdict.score.tolist() == [5.0, 11.0, 0.0]
    assert verdict.is_anomaly.tolist() == [True, True, False]


def test_fields_without_a_score_are_passed_over() -> None:
    verdict = judge(np.array([[NAN, 1.0, NAN], [1.0, NAN, 7.0], [NAN, NAN, NAN]]), np.full(3, 6.0))
    assert verdict.field.tolist() == [1, 2, 0]
    assert verdict.score[:2].tolist() == [1.0, 7.0]
    assert np.isnan(verdict.score[2])
    assert verdict.is_anomaly.tolist() == [False, True, False]


def test_a_score_just_below_its_threshold_is_no_anomaly() -> None:
    for threshold in (6.0, 0.1, 3.3, 1e9):
        scores = np.array([[np.nextafter(threshold, 0)], [threshold]])
        assert judge(scores, np.array([threshold])).is_anomaly.tolist() == [False, True]


def test_the_scores_are_left_as_they_are() -> None:
    scores = np.array([[1.0, 2.0]])
    judge(scores, np.ones(2))
    assert scores.tolist() == [[1.0, 2.0]]
