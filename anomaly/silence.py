"""Sources that fall silent: which sensors are missing, and whether sensor, link or broker is to blame.

A sensor's usual gap is the longest of its recent ones: the larger of the gaps by its own clock and by the
times at which its readings reached Kafka, in a maximum that forgets 0.2% with each reading. It is regular
after `REGULAR` signs of life, and missing when nothing has come for `after` times its usual gap and at least
`least_s` seconds.

How long nothing has come is told by the partition's clock: the newest time at which any reading of the
partition reached Kafka, and the seconds since that was handled. So a backlog after a pause of the worker is
not taken for silence, nor does it matter how the clocks of worker, broker and publishers differ.

A gap beyond which a sensor would be missing also ends in an event when nobody looked while it lasted: silence
is found by the readings alone then, at any cut of the stream.

Cost: 8 ns a reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from anomaly.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import FloatArray, RowArray, StateArray

    RowMask = NDArray[np.bool_]

Scope: TypeAlias = Literal["sensor", "link", "broker"]

#: Signs of life from which on a sensor counts as regular: readings that came at least a SIGN-th of its usual
#: gap after the one before.
REGULAR = 20
SIGN = 20.0
#: What is left of the longest gap with each reading; and before the sensor is regular, when one pause would
#: count for long.
KEPT, KEPT_YOUNG = 0.998, 0.98
#: What a sensor is told to be silent as, by `phase`; 0 is heard.
PHASES: tuple[Scope, ...] = ("sensor", "link", "broker")

#: One sensor.
HEARD: np.dtype[Any] = np.dtype(
    [
        ("n", "<i4"),  # signs of life; 0 is never heard
        ("phase", "u1"),
        ("heard", "<f8"),  # when its newest reading reached Kafka, seconds since 1970
        ("ts", "<f8"),  # its newest event time
        ("gap", "<f8"),  # its usual gap, seconds
    ]
)


class Return(NamedTuple):
    """A reading that ends a silence."""

    row: int
    reading: int
    phase: int
    gap_s: float
    usual_s: float
    since: float


def init(n: int) -> StateArray:
    """Return the state of n sensors that were never heard, [n]."""
    return np.zeros(n, HEARD)


def hear(
    state: Any, rows: RowArray, ts: FloatArray, published: FloatArray, after: float, least_s: float
) -> list[Return]:
    """Take readings in, and return those that end a silence.

    Args:
        state: structured [sensors] of `HEARD`, changed in place.
        rows: int32 [n], the sensor of each reading, in log order.
        ts: float64 [n], event time, seconds since 1970.
        published: float64 [n], when each reached Kafka, seconds since 1970.
        after: usual gaps after which a sensor is missing.
        least_s: seconds before which it never is.
    """
    ended = np.zeros((len(rows), 5))
    count = _hear(state, rows, ts, published, after, least_s, ended)
    found = ended[:count].tolist()
    return [
        Return(int(rows[int(index)]), int(index), int(phase), gap, usual, since)
        for index, phase, gap, usual, since in found
    ]


@compiled
def _hear(
    state: Any,
    rows: RowArray,
    ts: FloatArray,
    published: FloatArray,
    after: float,
    least_s: float,
    ended: FloatArray,
) -> int:
    count = 0
    for i in range(rows.shape[0]):
        cell = state[rows[i]]
        if cell.n > 0:
            silent = published[i] - cell.heard
            longest = max(after * cell.gap, least_s)
            if cell.phase > 0 or (cell.n >= REGULAR and silent > longest):
                ended[count, 0] = i
                ended[count, 1] = cell.phase
                ended[count, 2] = silent
                ended[count, 3] = cell.gap
                ended[count, 4] = cell.heard
                count += 1
                cell.phase = 0
            gap = max(ts[i] - cell.ts, silent)
            if cell.n >= REGULAR:
                # a silence is no usual gap; but a sensor that has become slower is believed after a while
                gap = min(gap, 2.0 * cell.gap)
            # a batch of readings at once is one sign of life
            kept = KEPT if cell.n >= REGULAR else KEPT_YOUNG
            if SIGN * silent >= cell.gap:
                cell.n = min(cell.n + 1, 1 << 30)
            if gap > 0.0:
                cell.gap = max(gap, kept * cell.gap)
        else:
            cell.n = 1
        cell.heard = max(cell.heard, published[i])
        cell.ts = max(cell.ts, ts[i])
    return count


def overdue(state: StateArray, clock: float, after: float, least_s: float) -> tuple[RowMask, RowMask]:
    """Tell which sensors are missing, and which are at least half-way there.

    Args:
        state: structured [sensors] of `HEARD`.
        clock: of the partition, seconds since 1970.
        after: as in `hear`.
        least_s: as in `hear`.

    Returns:
        bool [sensors] each; sensors that are told to be silent already are quiet and not missing.
    """
    waited = clock - state["heard"]
    longest = np.maximum(after * state["gap"], least_s)
    regular = state["n"] >= REGULAR
    told = state["phase"] > 0
    return regular & ~told & (waited > longest), regular & (told | (waited > longest / 2))


def blame(quiet: Mapping[str, int], speaking: Mapping[str, int], broker_answers: bool) -> dict[str, Scope]:
    """Say who is to blame for the silence at each site.

    Args:
        quiet: how many regular sensors of each site are quiet.
        speaking: how many are not.
        broker_answers: whether the broker does.

    Returns:
        By site: "sensor" where others of the site speak, "link" where all of a site of several are
        quiet, "broker" where nothing is heard of anybody, at several sites.
    """
    nobody = not any(speaking.values())
    if not broker_answers or (nobody and len(quiet) > 1 and sum(quiet.values()) > 2):
        return dict.fromkeys(quiet, "broker")
    return {
        site: "link" if count > 1 and not speaking.get(site, 0) else "sensor" for site, count in quiet.items()
    }
