"""The frame that the compiled detectors share: state in cells, raw scores, calibration, words.

A *cell* is the state of one sensor and field, or of one sensor for a detector that scores its fields
together. A detector of this kind gives four things: the type of its cell, a compiled loop that writes raw
scores and evidence (the numbers behind them), words made from the evidence, and its configuration. The frame
adds calibration (`anomaly.calibration`), so scores are surprises in decades and the threshold is "once in n
readings"."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.calibration import NOT_YET, TAIL, calibrate
from anomaly.detector import DetectorConfig, thresholds_of

if TYPE_CHECKING:
    from anomaly.detector import Explain, FloatArray, RowArray, StateArray

#: A value beyond this is taken as this: squares stay finite.
HUGE = 1e150


class CellConfig(DetectorConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of every calibrated detector.

    Args:
        once_in: a reading is anomalous when one so strange comes once in so many readings, or more rarely.
        warmup: readings of a sensor and field before it is scored.
    """

    once_in: float = 10_000.0
    warmup: int = 100

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = {}
        if not 2 <= self.once_in <= 1e15:
            faults["once_in"] = f"{self.once_in} is not in [2, 1e15]"
        if not 1 <= self.warmup <= 1_000_000:
            faults["warmup"] = f"{self.warmup} is not in [1, 1000000]"
        return faults


class CellDetector(ABC):
    """Base of the compiled detectors; meets `anomaly.detector.Detector`.

    Subclasses set the class variables and give `cell_dtype`, `run` and `words`.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    config_type: ClassVar[type[DetectorConfig]]
    #: The names of the numbers kept of each score, for `words`.
    evidence: ClassVar[tuple[str, ...]]
    #: Whether each field has a score of its own; else one score a reading, over all fields.
    per_field: ClassVar[bool] = True

    def __init__(
        self, config: CellConfig, fields: tuple[str, ...], field_thresholds: dict[str, float] | None = None
    ) -> None:
        self.config = config
        self.fields = fields
        self.columns = len(fields) if self.per_field else 1
        self.dtype: np.dtype[Any] = np.dtype(
            [("cells", self.cell_dtype(), (self.columns,)), ("tails", TAIL, (self.columns,))]
        )
        threshold = math.log10(config.once_in)
        self.thresholds = (
            thresholds_of(fields, threshold, field_thresholds) if self.per_field else np.array([threshold])
        )

    @abstractmethod
    def cell_dtype(self) -> np.dtype[Any]:
        """Return the type of a cell; all zero means never seen."""

    @abstractmethod
    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """Score a chunk and learn from it: call the compiled loop.

        Args:
            cells: structured [sensors, columns] of `cell_dtype()`, changed in place; maybe not contiguous.
            rows: int32 [n].
            values: float64 [n, fields], finite and at most HUGE, or NaN.
            ts: float64 [n], seconds since 1970.
            raw: float64 [n, columns], to be filled: larger is stranger, from 0; NaN without a value; NOT_YET
                in the detector's own warm-up.
            why: float64 [n, columns, len(evidence)], zeros, to be filled where there is a raw score.
        """

    @abstractmethod
    def words(self, column: int, evidence: dict[str, float]) -> str:
        """Say why a reading scored what it did: "6.1 sd above the usual 71.0 ± 3.5"."""

    def init(self, n: int) -> StateArray:
        """See `Detector.init`."""
        return np.zeros(n, self.dtype)

    def relearn(self, state: StateArray, row: int, column: int) -> None:
        """Forget a sensor's field (the whole sensor where fields are scored together): it warms up again."""
        column = column if self.per_field else 0
        for part in self.dtype.names or ():
            state[part][row, column] = np.zeros((), state[part].dtype)

    def score(self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray) -> FloatArray:
        """See `Detector.score`; the score is the surprise in decades."""
        return self.examine(state, rows, values, ts)[0]

    def examine(
        self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray
    ) -> tuple[FloatArray, Explain]:
        """See `Detector.examine`."""
        raw, why = self.raw(state, rows, values, ts)
        scores = self.calibrated(state["tails"], rows, raw)

        def explain(i: int, j: int) -> str:
            if raw[i, j] != raw[i, j]:
                return "no value"
            if raw[i, j] < 0:
                return "still warming up"
            numbers = dict(zip(self.evidence, why[i, j].tolist(), strict=True))
            return f"{self.words(j, numbers)}; so strange once in {10 ** scores[i, j]:,.0f} readings"

        return scores, explain

    def calibrated(self, tails: Any, rows: RowArray, raw: FloatArray) -> FloatArray:
        """Return the surprise of raw scores; for detectors that know their law to override."""
        return calibrate(tails, rows, raw)

    def raw(
        self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return the raw scores, float64 [n, columns], and their evidence, [n, columns, evidence]."""
        raw = np.full((len(rows), self.columns), NOT_YET)
        why = np.zeros((len(rows), self.columns, len(self.evidence)))
        if len(rows):
            self.run(state["cells"], rows, np.clip(values, -HUGE, HUGE), ts, raw, why)
        return raw, why
