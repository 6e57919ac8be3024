"""A calibration that learns late, so that a fault which grows slowly doesn't teach itself to be usual.

Averages over a window move slowly: a fault shows in them bit by bit, each reading hardly stranger than the
one before. A calibration that learns every reading at once (`anomaly.calibration`) gets used to each bit, and
never says a word. Here readings are gathered in blocks of a window, and a block is learned only when the next
one has ended, too. So a fault is compared with what was before it began.

A block of which at least half was strange is not learned, nor are the two beside it: a lasting fault stays
strange, until it has been so for `patience_s`. What is strange now and then is learned like everything else,
or the tail would be thinner than it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anomaly.calibration import BINS, TAIL, bin_of, learn_counts
from anomaly.compiled import compiled

#: What `turn` found: the block goes on, the one before is to be learned, or to be forgotten.
GOES_ON, LEARNED, FORGOTTEN = 0, 1, 2

#: The state of one score; of two values the first is of the block before, the second of the one that goes on.
LAGGED: np.dtype[Any] = np.dtype(
    [
        ("size", "<i4"),  # readings in the block that goes on,
        ("hot", "<i4"),  # and how many of them were strange
        ("bad", "<i4", (2,)),  # whether the two blocks before were strange, the older one first
        ("strange", "<i4"),  # whether it lasts
        ("since", "<f8"),  # from when on
        ("begun", "<f8"),  # when the block did
        ("tail", TAIL),
        ("counts", "<u2", (2, BINS)),
    ]
)


@compiled
def turn(state: Any, t: float, least: int, window_s: float, patience_s: float) -> int:
    """End the block where it is time; call it before each reading.

    Args:
        state: a record of `LAGGED`, changed.
        t: time of the reading, in seconds.
        least: readings in a block, at the least.
        window_s: how long it lasts, at the least.
        patience_s: seconds after which strange readings are learned; 0: never.

    Returns:
        GOES_ON, or what becomes of the block before: LEARNED or FORGOTTEN.
    """
    found = GOES_ON
    if state.size >= least and not 0.0 <= t - state.begun < window_s:
        bad = 1 if 2 * state.hot >= state.size else 0
        if bad and not state.strange:
            state.since = state.begun
        state.strange = bad
        if bad and patience_s > 0.0 and not 0.0 <= t - state.since < patience_s:
            bad = state.bad[0] = state.bad[1] = 0
        found = FORGOTTEN if bad or state.bad[0] or state.bad[1] else LEARNED
        if found == LEARNED:
            learn_counts(state.tail, state.counts[0])
        state.counts[0, :] = state.counts[1]
        state.counts[1, :] = 0
        state.bad[0], state.bad[1] = state.bad[1], bad
        state.size = state.hot = 0
    if state.size == 0:
        state.begun = t
    state.size += 1
    return found


@compiled
def keep(state: Any, raw: float, strange: bool, stride: int) -> None:
    """Keep a raw score for its block.

    Args:
        state: a record of `LAGGED`, changed.
        raw: larger is stranger, from 0.
        strange: whether it is.
        stride: one in so many is enough, where neighbours are alike.
    """
    if (state.size - 1) % stride == 0:
        b = int(bin_of(raw))
        state.counts[1, b] += state.counts[1, b] < 60_000
    state.hot += strange
