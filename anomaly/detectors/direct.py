"""The frame of compiled detectors whose scores need no calibration: they are decades already.

Some bounds are absolute (a static limit is crossed or it isn't), and some detectors know the probability of
what they see better than counts of past raw scores would tell (`anomaly.detectors.lengths`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomaly.detectors.frame import CellConfig, CellDetector

if TYPE_CHECKING:
    from anomaly.detector import Explain, FloatArray, RowArray, StateArray


class DirectDetector(CellDetector):
    """Base of these detectors: `run` writes decades; NOT_YET in warm-up becomes 0."""

    def __init__(
        self, config: CellConfig, fields: tuple[str, ...], field_thresholds: dict[str, float] | None = None
    ) -> None:
        super().__init__(config, fields, field_thresholds)
        self.dtype = np.dtype([("cells", self.cell_dtype(), (self.columns,))])

    def examine(
        self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray
    ) -> tuple[FloatArray, Explain]:
        """See `Detector.examine`."""
        raw, why = self.raw(state, rows, values, ts)
        # not fmax: NaN stays NaN
        scores = np.maximum(raw, 0.0)

        def explain(i: int, j: int) -> str:
            if raw[i, j] != raw[i, j]:
                return "no value"
            if raw[i, j] < 0:
                return "still warming up"
            return self.words(j, dict(zip(self.evidence, why[i, j].tolist(), strict=True)))

        return scores, explain
