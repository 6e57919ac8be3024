"""SKAB, the Skoltech Anomaly Benchmark: outlier detection on a water loop with eight sensors.

Protocol: each file is scored on its own, online; its first 400 rows are the training. Every row counts as one
decision. Over all rows of all files

    F1 = 2 TP / (2 TP + FP + FN)      FAR = FP / (FP + TN)      MAR = FN / (FN + TP)

Rows of the training hold no anomaly and (with `train`) raise no alarm; counting them makes FAR look better:
the figures of the rows after the training are given beside.

Two thresholds: the detector's own, and one chosen for each file on the other files alone (nested), by F1.

Source: I. Katser, V. Kozitsin, "Skoltech Anomaly Benchmark (SKAB)" (Kaggle, 2020),
https://github.com/waico/SKAB.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.detector import FloatArray
from anomaly.evaluation.bootstrap import bootstrap
from anomaly.registry import build_detector
from streams.errors import UsageError

#: Rows of a file that are its training.
TRAIN = 400
#: Thresholds that the nested choice has.
CHOICES = 200

BoolArray = NDArray[np.bool_]
#: int64 [..., 4]: true positives, false positives, false negatives, true negatives.
Counts = NDArray[np.int64]


class Recording(NamedTuple):
    """One file: values [n, fields] and labels [n]."""

    name: str
    fields: tuple[str, ...]
    values: FloatArray
    anomaly: BoolArray


class Figures(NamedTuple):
    """F1, false-alarm and missed-alarm rate, and the standard errors of the first two over files."""

    f1: float
    far: float
    mar: float
    f1_error: float
    far_error: float


class FileFigures(NamedTuple):
    """Figures of one file after the training, with the detector's own threshold."""

    name: str
    f1: float
    far: float
    mar: float
    nested_threshold: float


class SkabResult(NamedTuple):
    """What `evaluate` found; "tested" is over the rows after the training."""

    detector: str
    threshold: float
    own: Figures
    own_tested: Figures
    nested: Figures
    nested_tested: Figures
    files: list[FileFigures]


def read(path: Path) -> list[Recording]:
    """Read the files of a folder (or one file), by name.

    Raises:
        UsageError: there is none, or one isn't SKAB's.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.csv"), key=lambda p: (len(p.name), str(p)))
    recordings = []
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.reader(stream, delimiter=";"))
        if not lines or lines[0][:1] != ["datetime"]:
            raise UsageError(f"{file} has no first column 'datetime' with ';' behind it: name SKAB's folder")
        if "anomaly" not in lines[0]:
            continue  # the anomaly-free recording has no labels
        end = lines[0].index("anomaly")
        try:
            numbers = np.array([[float(x) for x in line[1 : end + 1]] for line in lines[1:] if line])
        except ValueError as error:
            raise UsageError(f"{file}: {error}") from None
        if len(numbers) <= TRAIN:
            raise UsageError(
                f"{file} has {len(numbers)} rows: more than the {TRAIN} of the training are needed"
            )
        recordings.append(
            Recording(file.stem, tuple(lines[0][1:end]), numbers[:, :-1].copy(), numbers[:, -1] > 0)
        )
    if not recordings:
        raise UsageError(f"{path} holds no labelled recording of SKAB: name the folder with valve1/*.csv")
    return recordings


def count(anomaly: BoolArray, alarm: BoolArray) -> Counts:
    """Count decisions; see `Counts`."""
    pairs = ((anomaly, alarm), (~anomaly, alarm), (anomaly, ~alarm), (~anomaly, ~alarm))
    return np.array([np.count_nonzero(a & b) for a, b in pairs])


def f1(counts: Counts) -> float:
    """Return F1 of counts [files, 4]; 0 where there is nothing to find."""
    tp, fp, fn, _ = counts.reshape(-1, 4).sum(0)
    return float(2 * tp / max(2 * tp + fp + fn, 1))


def false_alarm_rate(counts: Counts) -> float:
    """Return FAR of counts [files, 4]."""
    _, fp, _, tn = counts.reshape(-1, 4).sum(0)
    return float(fp / max(fp + tn, 1))


def missed_alarm_rate(counts: Counts) -> float:
    """Return MAR of counts [files, 4]."""
    tp, _, fn, _ = counts.reshape(-1, 4).sum(0)
    return float(fn / max(fn + tp, 1))


def figures(counts: Counts) -> Figures:
    """Return the figures of counts [files, 4]."""
    return Figures(
        f1(counts),
        false_alarm_rate(counts),
        missed_alarm_rate(counts),
        bootstrap(lambda draw: f1(counts[draw]), len(counts)),
        bootstrap(lambda draw: false_alarm_rate(counts[draw]), len(counts)),
    )


def nested_thresholds(scores: list[FloatArray], labels: list[BoolArray]) -> FloatArray:
    """Return for each file the threshold with the best F1 on the *other* files, float64 [files]."""
    if len(scores) < 2:
        return np.full(len(scores), np.nan)
    pooled = np.concatenate(scores)
    choices = (
        np.unique(np.quantile(pooled[pooled > 0], np.linspace(0, 1, CHOICES))) if pooled.any() else [1.0]
    )
    table = np.array([[count(y, s >= t) for t in choices] for s, y in zip(scores, labels, strict=True)])
    rest = table.sum(0) - table
    return np.array([choices[int(np.argmax([f1(c) for c in one]))] for one in rest])


def evaluate(recordings: list[Recording], detector: dict[str, Any]) -> SkabResult:
    """Score every recording online with one detector, and judge its alarms.

    Args:
        recordings: from `read`.
        detector: its table of the configuration; `train` (else `warmup`) is set to the training.
    """
    scores, labels, alarms = [], [], []
    for recording in recordings:
        built = build_detector(detector, recording.fields)
        names = built.config_type.__struct_fields__
        key = "train" if "train" in names else "warmup"
        built = build_detector({key: TRAIN, **detector}, recording.fields)
        rows = np.zeros(len(recording.values), np.int32)
        found = built.score(built.init(1), rows, recording.values, np.arange(float(len(rows))))
        # one score a row: the largest over its threshold
        scores.append(np.nanmax(np.nan_to_num(found) / built.thresholds, axis=1))
        alarms.append(scores[-1] >= 1)
        labels.append(recording.anomaly)
    after = slice(TRAIN, None)
    chosen = nested_thresholds([s[after] for s in scores], [y[after] for y in labels])

    def counts(alarm: list[BoolArray], part: slice) -> Counts:
        return np.array([count(y[part], a[part]) for y, a in zip(labels, alarm, strict=True)])

    nested = [s >= t for s, t in zip(scores, chosen, strict=True)]
    everything = slice(None)
    own = counts(alarms, after)
    unit = float(built.thresholds[0])
    return SkabResult(
        built.name,
        unit,
        figures(counts(alarms, everything)),
        figures(own),
        figures(counts(nested, everything)),
        figures(counts(nested, after)),
        [
            FileFigures(r.name, f1(c), false_alarm_rate(c), missed_alarm_rate(c), float(t) * unit)
            for r, c, t in zip(recordings, own, chosen, strict=True)
        ],
    )
