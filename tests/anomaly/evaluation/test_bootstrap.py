import math

import numpy as np
import pytest

from anomaly.evaluation.bootstrap import bootstrap


def test_error_of_a_mean_is_the_known_one() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    error = bootstrap(lambda draw: float(values[draw].mean()), len(values), rounds=2000)
    assert error == pytest.approx(values.std() / math.sqrt(len(values)), rel=0.08)


def test_seed_decides_and_rounds_without_a_figure_are_left_out() -> None:
    values = np.arange(5.0)

    def statistic(draw: np.ndarray) -> float:
        return float(values[draw].mean()) if 4 in draw else math.nan

    assert bootstrap(statistic, 5, 200, seed=3) == bootstrap(statistic, 5, 200, seed=3)
    assert bootstrap(statistic, 5, 200, seed=3) != bootstrap(statistic, 5, 200, seed=4)
    assert math.isfinite(bootstrap(statistic, 5, 200))


def test_one_item_has_no_error() -> None:
    assert math.isnan(bootstrap(lambda draw: 1.0, 1))
