"""Spiking neurons over the changes of a value: a detector in 19 bytes, for very small computers.

What it finds: spikes, jumps, ramps within some 30 readings, more movement than usual. When it misleads: a
slow drift, a value that freezes and a usual value at the wrong time move nobody; what comes more often than
`once_in` says is usual in the end; of values beyond a million
times their usual steps it sees the steps only roughly (32-bit numbers).

For each sensor and field three pairs of leaky integrate-and-fire neurons, one of each pair for rises and one
for falls, with time constants of 2, 8 and 32 readings. The two inhibit each other, so a pair is one signed
potential, which gets each change d of the value in units of the usual change s (a mean over 256 readings of
|d|, long ones clipped):

    v     = v - v / tau + d / s
    score = threshold * max |v| / limit      over the pairs

At |v| >= limit the neuron fires: the limit is taken off the potential, and the limit rises by a third of an
octave; with time it sinks again, by as much as keeps a neuron at one spike in 3 * `once_in` readings.
So alarms come about once in `once_in` readings without any calibration. In the second half of the
warm-up the limit is what the potential reaches; then it begins half as high again.

Potentials are 16-bit and limits 8-bit integers, and nothing but multiplications and comparisons is needed:
0.02 us a reading and field.

Sources: L. Lapicque (1907) for the neuron, in the form of W. Gerstner, W. Kistler, "Spiking neuron models"
(2002); G. Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking neurons"
(NeurIPS 2018), for limits that rise with each spike.

    >>> import numpy as np
    >>> detector = SpikingDetector(SpikingConfig(), ("temperature",))
    >>> rows, ts = np.zeros(400, np.int32), np.arange(400.0)
    >>> values = 20 + np.sin(2.3 * np.arange(400.0) ** 1.5)[:, None]
    >>> values[300:] += 8
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(300, 0)
    'moved up within some 2 readings by 4.22 times what makes a neuron fire; the usual change is 0.827'
    >>> detector.dtype.itemsize
    19
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import CellConfig
from anomaly.detectors.memory import clip

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Time constants in readings.
TAUS = (2, 8, 32)
PAIRS = len(TAUS)
#: A potential of one usual change, in its integer units, and where potentials end.
UNIT = 128
FULL = 32_000
#: A change counts up to so many usual ones.
FURTHEST = 64.0
#: The usual change is a mean over so many, each clipped at CLIP times the usual.
MEMORY = 256
CLIP = 8.0
#: Limits are powers of two, in steps an octave; by so many steps they rise with a spike, and after warm-up.
PER_OCTAVE = 16
RISE = 6
MARGIN = 10
LIMITS = 2.0 ** (np.arange(256) / PER_OCTAVE)
#: The score ends at so many thresholds.
MOST = 4.0
MOST_ONCE = 100_000.0
MOST_WARMUP = 10_000


class SpikingConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `spiking`.

    Args:
        once_in: alarms come about once in so many readings, up to 100,000.
        warmup: readings of a sensor and field before it is scored, up to 10,000.
    """

    warmup: int = 200

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if self.once_in > MOST_ONCE:
            faults["once_in"] = f"{self.once_in} is above {MOST_ONCE:,.0f}, more than 8-bit limits can hold"
        if self.warmup > MOST_WARMUP:
            faults["warmup"] = f"{self.warmup} is above {MOST_WARMUP:,}"
        return faults


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    warmup: int,
    sink: int,
    threshold: float,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    # from here on the number of readings says nothing but when limits sink
    old = max(warmup, MEMORY)
    for i in range(rows.shape[0]):
        for j in range(values.shape[1]):
            if values[i, j] != values[i, j]:
                raw[i, j] = math.nan
                continue
            cell = cells[rows[i], j]
            x = np.float32(clip(values[i, j]))
            n = int(cell.n)
            change = float(x) - float(cell.last) if n > 0 else 0.0
            cell.last = x
            usual = float(cell.usual)
            scaled = 0.0
            if change != 0.0:
                scaled = min(max(change / usual, -FURTHEST), FURTHEST) if usual > 0.0 else FURTHEST
            if n > 0:
                size = abs(change)
                if usual > 0.0 and n >= warmup:
                    size = min(size, CLIP * usual)
                cell.usual = usual + (size - usual) / min(n, MEMORY)
            worst, which = 0.0, 0
            for k in range(PAIRS):
                v = float(cell.v[k])
                v += scaled * UNIT - v / TAUS[k]
                code = int(cell.limit[k])
                limit = LIMITS[code]
                # until half of the warm-up the usual change is not settled
                if warmup // 2 <= n < warmup:
                    while abs(v) > LIMITS[code] and code < 255:
                        code += 1
                elif n == warmup and code < 255 - MARGIN:
                    code += MARGIN
                    limit = LIMITS[code]
                if n >= warmup:
                    if abs(v) / limit > abs(worst):
                        worst, which = v / limit, k
                    if abs(v) >= limit:
                        v -= math.copysign(limit, v)
                        code = min(code + RISE, 255)
                    elif n == old + sink:
                        code = max(code - 1, 0)
                # the nearest integer, not the next lower one: potentials would creep down
                cell.v[k] = math.floor(min(max(v, -FULL), FULL) + 0.5)
                cell.limit[k] = code
            if n >= warmup:
                raw[i, j] = threshold * min(abs(worst), MOST)
                why[i, j, 0], why[i, j, 1] = worst, TAUS[which]
                why[i, j, 2] = usual
            # counts on, then round and round: limits sink once a round
            cell.n = n + 1 if n < old + sink else old + 1


class SpikingDetector(DirectDetector):
    """See the module."""

    name: ClassVar[str] = "spiking"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = SpikingConfig
    evidence: ClassVar[tuple[str, ...]] = ("ratio", "tau", "usual")
    config: SpikingConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype(
            [
                ("n", "<u2"),
                ("last", "<f4"),
                ("usual", "<f4"),  # change
                ("v", "<i2", (PAIRS,)),
                ("limit", "u1", (PAIRS,)),  # steps on the scale of LIMITS
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        # steps down in as many readings as a spike in PAIRS * once_in brings steps up
        sink = max(int(PAIRS * config.once_in / RISE), 1)
        _run(cells, rows, values, config.warmup, sink, math.log10(config.once_in), raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        side = "up" if evidence["ratio"] >= 0 else "down"
        return (
            f"moved {side} within some {evidence['tau']:.0f} readings by {abs(evidence['ratio']):.3g} times "
            f"what makes a neuron fire; the usual change is {evidence['usual']:.3g}"
        )
