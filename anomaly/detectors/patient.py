"""A calibration that a lasting fault doesn't teach to be usual.

`anomaly.calibration` learns from every reading, so a fault that lasts surprises at its beginning only. Here
nothing is learned while a score is strange, but that it was a decade beyond the threshold, once: without
that the tail would be thinner than it is, and with the score as it is the second fault would be usual. What
has been strange for `patience_s` is learned after all: the world has changed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anomaly.calibration import BEYOND, TAIL, edge_of, learn, rarity
from anomaly.compiled import compiled

#: The state of one score.
PATIENT: np.dtype[Any] = np.dtype(
    [
        ("strange", "<i4"),
        ("held", "<i4"),  # whether the last score was held back from learning
        ("since", "<f8"),  # when it became strange
        ("tail", TAIL),
    ]
)


@compiled
def _censored(tail: Any, raw: float, decades: float) -> float:
    """Return the raw score of so many decades, by the past, if that is less than this one."""
    share = 10.0**-decades * (tail.n + 1.0) / (tail.tail_n + 0.5)
    if tail.tail_n == 0 or share >= 1.0:
        return raw
    excess = -math.log(share) if abs(tail.xi) < 1e-6 else (share**-tail.xi - 1.0) / tail.xi
    return float(min(raw, edge_of(float(tail.tail_bin)) + tail.sigma * excess))


@compiled
def patient_surprise(state: Any, raw: float, t: float, threshold: float, patience_s: float) -> float:
    """Return the surprise of a raw score in decades, and learn from it unless it is strange.

    Args:
        state: a record of `PATIENT`, changed.
        raw: larger is stranger, from 0.
        t: time of the reading, in seconds.
        threshold: decades from which it is strange.
        patience_s: seconds after which strange scores are learned; 0: never.
    """
    decades = rarity(state.tail, raw)
    if decades < threshold:
        state.strange = state.held = 0
        learn(state.tail, raw)
    elif state.strange == 0 or t < state.since:
        state.strange = state.held = 1
        state.since = t
        learn(state.tail, _censored(state.tail, raw, threshold + BEYOND))
    else:
        state.held = 1 if patience_s == 0.0 or t - state.since < patience_s else 0
        if state.held == 0:
            learn(state.tail, raw)
    return decades
