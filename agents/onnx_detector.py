"""A learned model as a detector: an ONNX autoencoder or forecaster over the last readings of each sensor.

It lives here, since detectors know no engine and engines no detector.

What it finds: what the model was trained to tell from the usual: windows that an autoencoder can't rebuild,
readings that a forecaster didn't see coming. When it misleads: on anything that the training didn't hold,
such as another load or another sampling interval; an autoencoder that is too able rebuilds faults too; the
error of a window stays large for as long as the fault is in it.

For each sensor the last `window` readings are kept in a ring, and mean and standard deviation of its past. A
window goes to the model in standard deviations from the mean, cut off at 20 (`normalise = false`: as it is).

    autoencoder     raw score = root mean square of (window - what the model makes of it)
    forecaster      raw score = root mean square of (reading - forecast from the window before it)

both in standard deviations, then calibrated: late, and not from what stays strange, until `patience_s` has
passed (`anomaly.detectors.lagged`).

A model that takes one value a step scores each field alone; one that takes as many as the stream has fields
scores them together. After a gap of ten usual gaps the window begins anew. A field without a value keeps its
last one where fields go together.

Scores don't depend on how readings are cut into batches; how that is held: `agents/window_model.py`.

Cost: mostly the model's. State: 8 bytes a value of the window, and 0.7 KB.

Sources: M. Sakurada, T. Yairi, "Anomaly detection using autoencoders with nonlinear dimensionality reduction"
(MLSDA 2014); P. Malhotra et al., "Long short term memory networks for anomaly detection in time series"
(ESANN 2015).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from agents.window_model import WindowModel
from anomaly.calibration import rarity
from anomaly.compiled import compiled
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import CellConfig
from anomaly.detectors.lagged import LAGGED, keep, turn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Readings that mean and standard deviation remember, and how far one counts, in standard deviations.
MEMORY = 10_000
LEARN_CLIP = 6.0
#: Standard deviations at which the model's input is cut off, and the largest error.
INPUT_CLIP = 20.0
MOST = 1e6
#: Usual gaps after which a window begins anew.
GAPS = 10.0
#: Readings whose windows are made at once: bounds the memory of a chunk.
BLOCK: Final = 2_048
#: Of values that are not normalised, so that they fit float32.
LARGEST = 1e30


class OnnxConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `onnx`.

    Args:
        model: path of the .onnx file.
        kind: what the model is.
        window: readings in a window; unset: as the model says.
        engine: what runs it.
        device: OpenCL device by index or part of its name, or provider of onnxruntime; unset: the best.
        normalise: give values in standard deviations from the sensor's mean.
        batch: windows in one run of the model; fewer are padded.
        patience_s: what has been strange for so long is learned as usual; 0: never.
    """

    model: str
    kind: Literal["autoencoder", "forecaster"] = "autoencoder"
    window: int | None = None
    engine: Literal["onnxruntime", "opencl"] = "onnxruntime"
    device: str | None = None
    normalise: bool = True
    batch: int = 32
    patience_s: float = 86_400.0

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`; the model is looked at where the fields are known."""
        faults = super().faults()
        if self.window is not None and not 1 <= self.window <= 4_096:
            faults["window"] = f"{self.window} is not in [1, 4096]"
        if not 1 <= self.batch <= 4_096:
            faults["batch"] = f"{self.batch} is not in [1, 4096]"
        if not 0 <= self.patience_s < math.inf:
            faults["patience_s"] = f"{self.patience_s} is not 0 or more seconds"
        return faults


@compiled
def _sd(variance: float, mean: float) -> float:
    return max(math.sqrt(max(variance, 0.0)), 1e-9 * abs(mean), 1e-100)


@compiled
def _push(cell: Any, values: FloatArray, i: int, first: int, t: float, warmup: int) -> None:
    """Take a reading into the ring, and learn its mean and variance."""
    gap = t - cell.ts
    if cell.n > 0 and gap > 0.0:
        cell.gap_s = (
            gap if cell.gap_s == 0.0 else cell.gap_s + 0.02 * (min(gap, GAPS * cell.gap_s) - cell.gap_s)
        )
    cell.ts = t
    w, q = cell.ring.shape
    cell.at = (cell.at + 1) % w
    for j in range(q):
        x = values[i, first + j]
        if x == x:
            cell.last[j] = x
            cell.seen[j] += cell.seen[j] < 1_000_000_000
            away = x - cell.mean[j]
            if cell.seen[j] > warmup:
                sd = _sd(cell.var[j], cell.mean[j])
                away = min(max(away, -LEARN_CLIP * sd), LEARN_CLIP * sd)
            weight = 1.0 / min(cell.seen[j], MEMORY)
            cell.mean[j] += weight * away
            cell.var[j] = (1.0 - weight) * (cell.var[j] + weight * away * away)
        cell.ring[cell.at, j] = cell.last[j]
    cell.filled += cell.filled < w
    cell.n += cell.n < 1_000_000_000


@compiled
def _copy(cell: Any, normalise: bool, window: NDArray[np.float32], scales: FloatArray) -> None:
    """Write the ring, oldest first, and mean and deviation by which it was normalised."""
    w, q = cell.ring.shape
    for j in range(q):
        mean, sd = scales[j, 0], scales[j, 1]
        for step in range(w):
            x = cell.ring[(cell.at + 1 + step) % w, j]
            if normalise:
                x = min(max((x - mean) / sd, -INPUT_CLIP), INPUT_CLIP)
            else:
                x = min(max(x, -LARGEST), LARGEST)
            window[step, j] = x


@compiled
def _gather(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    forecasts: bool,
    normalise: bool,
    windows: NDArray[np.float32],
    scales: FloatArray,
    places: NDArray[np.int64],
    raw: FloatArray,
) -> int:
    """Take readings in and write the windows that the model is to see; returns how many.

    Args:
        cells: structured [sensors, columns], changed.
        rows: int32 [n].
        values: float64 [n, fields].
        ts: float64 [n].
        warmup: readings before the first window.
        forecasts: the window is the one before the reading.
        normalise: see `OnnxConfig`.
        windows: float32 [n * columns, w, q], written.
        scales: float64 [n * columns, q, 2], written: mean and standard deviation before the reading.
        places: int64 [n * columns], written: reading * columns + column of each window.
        raw: float64 [n, columns]: NaN is written where there is no value.
    """
    count = 0
    columns = raw.shape[1]
    q = windows.shape[2]
    w = windows.shape[1]
    for i in range(rows.shape[0]):
        for c in range(columns):
            first = c if columns > 1 else 0
            some = False
            for j in range(q):
                some |= values[i, first + j] == values[i, first + j]
            if not some:
                raw[i, c] = math.nan
                continue
            cell = cells[rows[i], c]
            if cell.gap_s > 0.0 and ts[i] - cell.ts > GAPS * cell.gap_s:
                cell.filled = 0
            ready = cell.n >= warmup
            for j in range(q):
                scales[count, j, 0] = cell.mean[j]
                scales[count, j, 1] = _sd(cell.var[j], cell.mean[j])
            if forecasts:
                ready &= cell.filled >= w
                if ready:
                    _copy(cell, normalise, windows[count], scales[count])
                _push(cell, values, i, first, ts[i], warmup)
            else:
                _push(cell, values, i, first, ts[i], warmup)
                ready &= cell.filled >= w
                if ready:
                    _copy(cell, normalise, windows[count], scales[count])
            if ready:
                places[count] = i * columns + c
                count += 1
    return count


@compiled
def _compare(
    made: FloatArray,
    windows: NDArray[np.float32],
    values: FloatArray,
    scales: FloatArray,
    places: NDArray[np.int64],
    forecasts: bool,
    normalise: bool,
    why: FloatArray,
) -> None:
    """Write the errors of windows, with the worst step and field, as evidence."""
    columns = why.shape[1]
    q = made.shape[2]
    for m in range(made.shape[0]):
        i, c = places[m] // columns, places[m] % columns
        first = c if columns > 1 else 0
        total, terms, worst = 0.0, 0, -1.0
        for step in range(made.shape[1]):
            for j in range(q):
                mean, sd = scales[m, j, 0], scales[m, j, 1]
                found = made[m, step, j] * sd + mean if normalise else made[m, step, j]
                if forecasts:
                    x = values[i, first + j]
                    if x != x:
                        continue
                elif normalise:
                    x = windows[m, step, j] * sd + mean
                else:
                    x = float(windows[m, step, j])
                error = abs(x - found) / sd
                # a model that gives no number is as wrong as can be
                error = min(error, MOST) if error == error else MOST
                total += error * error
                terms += 1
                if error > worst:
                    worst = error
                    why[i, c, 1], why[i, c, 2] = made.shape[1] - 1 - step, j
                    why[i, c, 3], why[i, c, 4] = x, found
        why[i, c, 0] = math.sqrt(total / terms)


@compiled
def _calibrate(
    cells: Any,
    rows: RowArray,
    ts: FloatArray,
    places: NDArray[np.int64],
    threshold: float,
    patience_s: float,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    """Write the surprise of each window's error."""
    columns = raw.shape[1]
    for m in range(places.shape[0]):
        i, c = places[m] // columns, places[m] % columns
        cell = cells[rows[i], c]
        # a block is a window: what is strange once is in as many windows as it has readings
        turn(cell.past, ts[i], cell.ring.shape[0], 0.0, patience_s)
        raw[i, c] = rarity(cell.past.tail, why[i, c, 0])
        keep(cell.past, why[i, c, 0], raw[i, c] >= threshold, 1)
        why[i, c, 5] = raw[i, c]


class OnnxDetector(DirectDetector):
    """See the module.

    Raises:
        BadDetector: the model is missing, broken or of another shape, or there is no such device.
    """

    name: ClassVar[str] = "onnx"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = OnnxConfig
    evidence: ClassVar[tuple[str, ...]] = (
        "error",
        "ago",
        "field",
        "value",
        "made",
        "decades",
    )
    config: OnnxConfig

    def __init__(
        self,
        config: OnnxConfig,
        fields: tuple[str, ...],
        field_thresholds: dict[str, float] | None = None,
    ) -> None:
        self.model = WindowModel(config, len(fields))
        self.per_field = not self.model.together  # type: ignore[misc]
        # predictions tell which file scored them, and state of another file is dropped
        self.version = f"1+{self.model.sha256[:12]}"  # type: ignore[misc]
        self.content = self.model.sha256[:16]
        super().__init__(config, fields, field_thresholds)

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        w, q = self.model.window, self.model.fields
        return np.dtype(
            [
                ("n", "<i4"),
                ("filled", "<i4"),  # readings in the ring
                ("at", "<i4"),  # place of the newest one
                ("seen", "<i4", (q,)),
                ("ts", "<f8"),
                ("gap_s", "<f8"),
                ("mean", "<f8", (q,)),
                ("var", "<f8", (q,)),
                ("last", "<f8", (q,)),
                ("past", LAGGED),
                ("ring", "<f8", (w, q)),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config, model = self.config, self.model
        forecasts, normalise = config.kind == "forecaster", config.normalise
        threshold, patience_s = math.log10(config.once_in), float(config.patience_s)
        most = min(len(rows), BLOCK) * self.columns
        windows = np.empty((most, model.window, model.fields), np.float32)
        scales = np.empty((most, model.fields, 2))
        places = np.empty(most, np.int64)
        for begin in range(0, len(rows), BLOCK):
            part = slice(begin, begin + BLOCK)
            count = _gather(
                cells,
                rows[part],
                values[part],
                ts[part],
                config.warmup,
                forecasts,
                normalise,
                windows,
                scales,
                places,
                raw[part],
            )
            if count:
                seen = windows[:count]
                made = model.run(seen)
                shown = (values[part], scales, places[:count], forecasts, normalise)
                _compare(made, seen, *shown, why[part])
                _calibrate(
                    cells, rows[part], ts[part], places[:count], threshold, patience_s, raw[part], why[part]
                )

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        field = self.fields[int(evidence["field"]) if self.model.together else column]
        model = f"model {Path(self.config.model).name} ({self.model.sha256[:12]})"
        off = f"{evidence['error']:.3g} sd off, so strange once in {10 ** evidence['decades']:,.0f} readings"
        value, made = f"{evidence['value']:.6g}", f"{evidence['made']:.6g}"
        if self.config.kind == "forecaster":
            return f"{field} {value}, where {model} expected {made}: {off}"
        ago = int(evidence["ago"])
        when = "now" if ago == 0 else "one reading ago" if ago == 1 else f"{ago} readings ago"
        return (
            f"{model} can't rebuild the last {self.model.window} readings, most of all {field} {when}, "
            f"{value}, of which it made {made}: {off}"
        )
