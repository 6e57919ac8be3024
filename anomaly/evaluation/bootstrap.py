"""Standard errors by bootstrap: how much a figure would move if other files had been collected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], n_items: int, rounds: int = 2000, seed: int = 0
) -> float:
    """Return the standard error of a statistic over items drawn with replacement.

    Rounds whose statistic is not finite (a draw without any anomaly, say) are left out.

    Args:
        statistic: gives the figure for the items of these indices, intp [n_items], some more than once.
        n_items: how many items there are.
        rounds: how many draws.
        seed: of the draws.

    Returns:
        The standard deviation over the rounds; NaN with fewer than two items or finite rounds.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife" (Annals of Statistics 7, 1979).
    """
    if n_items < 2:
        return float("nan")
    draws = np.random.default_rng(seed).integers(0, n_items, (rounds, n_items))
    figures = np.array([statistic(draw) for draw in draws])
    figures = figures[np.isfinite(figures)]
    return float(figures.std(ddof=1)) if len(figures) > 1 else float("nan")
