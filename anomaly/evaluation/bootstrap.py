"""Standard errors by drawing files with replacement: points of one file go up and down together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def standard_error(
    figure: Callable[[NDArray[Any]], float], parts: NDArray[Any], draws: int = 1000, seed: int = 0
) -> float:
    """Return the standard error of a figure of many files.

    Args:
        figure: from the parts of some files to a number.
        parts: [files, ...], what the figure is made of.
        draws: how often files are drawn.
        seed: of the draws: the same in, the same out.
    """
    rng = np.random.default_rng(seed)
    found = [figure(parts[rng.integers(0, len(parts), len(parts))]) for _ in range(draws)]
    return float(np.nanstd(found))
