"""Both sides of laws over a window, in integral form.

The laws of a detector as arrays (`Programs`), and the loop that moves the averages of both sides on by one
reading (`sides`). The formulas: `anomaly.detectors.physics`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from anomaly.calibration import NOT_YET
from anomaly.compiled import compiled
from anomaly.detectors.frame import HUGE
from anomaly.detectors.laws import Law, evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import FloatArray

#: Averaged over so many seconds where a law has a derivative and no `window_s`.
WINDOW_S = 600.0
#: A window is full from this weight on: one `window_s`.
FULL = 0.63
#: Readings after which usual sides are known, and how many they are a mean of.
KNOWN = 10
MEMORY = 5_000
#: A side counts at most so many usual sides: a wild value is not remembered for long. Nor does it raise the
#: usual ones by more than GROWTH.
FAR = 1_000.0
GROWTH = 100.0
#: Usual gaps after which a sensor begins anew.
GAPS = 10.0


class Balance(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One law.

    Args:
        law: `left = right`.
        name: what the explanation calls it; the law itself without.
        window_s: seconds that both sides are averaged over; unset: 600 with a derivative, else 0: each
            reading for itself.
        tolerance: a difference of the sides up to this is never strange, in their unit.
    """

    law: str
    name: str = ""
    window_s: float | None = None
    tolerance: float = 0.0

    def faults(self) -> dict[str, str]:
        """What is wrong with it, by setting; the law itself is read with the fields."""
        faults = {}
        if self.window_s is not None and not 0 <= self.window_s <= 1e9:
            faults["window_s"] = f"{self.window_s} is not in [0, 1e9]"
        if not 0 <= self.tolerance <= HUGE:
            faults["tolerance"] = f"{self.tolerance} is not in [0, 1e150]"
        return faults


class Programs:
    """All laws as arrays for the compiled loop.

    Attributes:
        code: int32 [steps, 2], see `laws.evaluate`.
        numbers: float64.
        parts: int32 [laws, 2 + slopes, 2], begin and end in `code`; slopes that a law lacks are empty.
        counts: int32 [laws, 2], fields that it uses, derivatives.
        uses: int32 [laws, fields], which these are.
        settings: float64 [laws, 2], window_s and tolerance.
        depth: of the stack.
    """

    def __init__(self, laws: list[Law], balances: list[Balance]) -> None:
        slopes, fields = max(law.slopes for law in laws), max(len(law.uses) for law in laws)
        self.parts = np.zeros((len(laws), 2 + slopes, 2), np.int32)
        self.counts = np.zeros((len(laws), 2), np.int32)
        self.uses = np.zeros((len(laws), fields), np.int32)
        self.settings = np.zeros((len(laws), 2))
        code: list[tuple[int, int]] = []
        numbers: list[float] = []
        for i, (law, balance) in enumerate(zip(laws, balances, strict=True)):
            self.parts[i, : len(law.parts)] = np.array(law.parts) + len(code)
            self.counts[i] = len(law.uses), law.slopes
            self.uses[i, : len(law.uses)] = law.uses
            self.settings[i] = _window_s(law, balance), balance.tolerance
            # each law counts its numbers from its own first
            code += [(op, arg + len(numbers) if op == 0 else arg) for op, arg in law.code]
            numbers += law.numbers
        self.code = np.array(code, np.int32).reshape(-1, 2)
        self.numbers = np.array([*numbers, 0.0])
        self.depth = max(law.depth for law in laws)


def _window_s(law: Law, balance: Balance) -> float:
    if balance.window_s is not None:
        return balance.window_s
    return WINDOW_S if law.slopes else 0.0


@compiled
def sides(
    cell: Any,
    now: FloatArray,
    t: float,
    code: NDArray[np.int32],
    numbers: FloatArray,
    parts: NDArray[np.int32],
    counts: NDArray[np.int32],
    window_s: float,
    before: FloatArray,
    slopes: FloatArray,
    stack: FloatArray,
) -> float:
    """Move the averages of both sides on to a reading.

    Args:
        cell: of one sensor and law, changed.
        now: float64 [uses], values of the law's fields.
        t: their time.
        code: see `Programs`.
        numbers: see `Programs`.
        parts: of this law.
        counts: of this law.
        window_s: of this law.
        before: float64 [uses], written over.
        slopes: float64, written over.
        stack: float64, written over.

    Returns:
        Which share of a window is new where the sides are known, NOT_YET where they aren't yet, NaN where
        they have no value.
    """
    dt = t - cell.ts
    known = cell.known
    if counts[1] == 0 and window_s == 0.0:
        left = evaluate(code, parts[0, 0], parts[0, 1], numbers, now, slopes, stack)
        right = evaluate(code, parts[1, 0], parts[1, 1], numbers, now, slopes, stack)
        fade = 0.0
    else:
        if known and dt <= 0.0 and -dt <= window_s:
            return NOT_YET
        left = right = 0.0
        fade = 1.0
        if known and dt > 0.0:
            fade = math.exp(-dt / window_s) if window_s > 0.0 else 0.0
            for k in range(counts[0]):
                before[k] = cell.last[k]
            for k in range(counts[1]):
                begin, end = parts[2 + k, 0], parts[2 + k, 1]
                slopes[k] = evaluate(code, begin, end, numbers, now, slopes, stack)
                slopes[k] -= evaluate(code, begin, end, numbers, before, slopes, stack)
                slopes[k] /= dt
            for at in (before, now):
                left += 0.5 * evaluate(code, parts[0, 0], parts[0, 1], numbers, at, slopes, stack)
                right += 0.5 * evaluate(code, parts[1, 0], parts[1, 1], numbers, at, slopes, stack)
            gap = cell.gap_s
            usual = gap == 0.0 or dt <= max(GAPS * gap, window_s)
            cell.gap_s = dt if gap == 0.0 else gap + 0.02 * (min(dt, GAPS * gap) - gap)
            if not usual:
                cell.weight *= fade
                cell.left *= fade
                cell.right *= fade
                fade = 1.0
    cell.known = 1
    cell.ts = t
    for k in range(counts[0]):
        cell.last[k] = now[k]
    if not (abs(left) <= HUGE and abs(right) <= HUGE):
        return math.nan
    if fade < 1.0:
        size = abs(left) + abs(right)
        if cell.n >= KNOWN and cell.size > 0.0:
            most = FAR * cell.size / (1.0 - fade)
            left = min(max(left, -most), most)
            right = min(max(right, -most), most)
            size = min(size, GROWTH * cell.size)
        cell.size += (size - cell.size) / (1.0 + min(cell.n, MEMORY))
        cell.weight = fade * cell.weight + (1.0 - fade)
        cell.left = fade * cell.left + (1.0 - fade) * left
        cell.right = fade * cell.right + (1.0 - fade) * right
    elif known == 0 or dt <= 0.0:
        return NOT_YET
    return 1.0 - fade if cell.weight >= FULL and fade < 1.0 else NOT_YET
