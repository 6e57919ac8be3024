"""The scoring of the Numenta Anomaly Benchmark (NAB), written from its paper.

Each file has windows in which an anomaly lies. Of the detections in a window the earliest counts, the more
the earlier it is; each detection outside is a false positive, the worse the farther behind a window it is; a
window without detection is missed. With y the place relative to a window (-1 where it begins, 0 just behind
its end, 1 one width later) the paper's

    sigma(y) = 2 / (1 + e^(5 y)) - 1

gives

    a window detected at y        + tp sigma(y) / sigma(-1)
    a window that is missed       - fn
    a detection outside, at y     + fp sigma(y), which is negative; - fp from y = 3 on or before any window

The first 15% of a file, at most 750 rows, are for the detector to learn: nothing there counts. One threshold
serves all files. The sum over files is put on a scale on which a detector that says nothing gets 0 and one
that finds each window at its first row, and nothing else, gets 100.

Details that the paper leaves open are as in the published scores: both ends of a window belong to it, the
width by which the place inside is divided counts both, the width by which the place behind is divided counts
one less.

Source: A. Lavin, S. Ahmad, "Evaluating real-time anomaly detection algorithms: the Numenta anomaly
benchmark" (ICMLA 2015, arXiv:1510.03336).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.bootstrap import bootstrap
from streams.errors import UsageError

if TYPE_CHECKING:
    from anomaly.detector import FloatArray

PROBATION_SHARE = 0.15
PROBATION_MOST = 750
#: From so many widths behind a window a false positive counts in full.
FAR = 3.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a detection, a false positive and a missed window are worth."""

    tp: float = 1.0
    fp: float = 0.11
    fn: float = 1.0


PROFILES: dict[str, Profile] = {
    "standard": Profile(),
    "reward_low_FP": Profile(fp=0.22),
    "reward_low_FN": Profile(fn=2.0),
}


class Window(NamedTuple):
    """First and last row of an anomaly, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class NabFile:
    """One file of the benchmark.

    Attributes:
        name: "realTraffic/speed_6005.csv".
        category: "realTraffic".
        timestamps: as they stand in the file.
        ts: float64 [n], seconds since 1970, the file's clock taken as UTC.
        values: float64 [n].
        windows: in order, apart from each other.
    """

    name: str
    category: str
    timestamps: tuple[str, ...]
    ts: FloatArray
    values: FloatArray
    windows: tuple[Window, ...]


class Fitted(NamedTuple):
    """A threshold and the score, 0 (says nothing) to 100 (perfect), that it gives."""

    threshold: float
    score: float


def sigma(y: FloatArray | float) -> FloatArray:
    """Return the paper's sigmoid, from 1 (far before) to -1 (far behind)."""
    return 2.0 / (1.0 + np.exp(5.0 * np.asarray(y, np.float64))) - 1.0


def probation(n: int) -> int:
    """Return how many rows at the start of a file of n count nothing."""
    return min(int(PROBATION_SHARE * n), PROBATION_MOST)


def weights(n: int, windows: Sequence[Window], profile: Profile) -> tuple[FloatArray, NDArray[np.intp]]:
    """Say what a detection at each row is worth.

    Returns:
        float64 [n], positive in windows, negative outside, 0 in probation; and intp [n], the window of each
        row, -1 outside of all, -2 in probation.
    """
    place = np.full(n, np.inf)
    worth = np.full(n, -profile.fp)
    window_of = np.full(n, -1, np.intp)
    for first, last in windows:
        behind = np.arange(n - last - 1) + 1.0
        place[last + 1 :] = behind / max(last - first, 1)
    near = place < FAR
    worth[near] = profile.fp * sigma(place[near])
    for k, (first, last) in enumerate(windows):
        width = last - first + 1
        inside = np.arange(first - last - 1, 0) / width
        worth[first : last + 1] = profile.tp * sigma(inside) / sigma(-1.0)
        window_of[first : last + 1] = k
    worth[: probation(n)] = 0.0
    window_of[: probation(n)] = -2
    return worth, window_of


def score_file(n: int, windows: Sequence[Window], detections: NDArray[np.bool_], profile: Profile) -> float:
    """Return the score of one file, not normalised.

    Args:
        n: rows of the file.
        windows: its windows; one that lies in probation altogether doesn't count.
        detections: bool [n].
        profile: what is worth what.
    """
    worth, window_of = weights(n, windows, profile)
    total = float(worth[detections & (window_of == -1)].sum())
    for k in np.unique(window_of[window_of >= 0]):
        hits = np.flatnonzero(detections & (window_of == k))
        total += float(worth[hits[0]]) if len(hits) else -profile.fn
    return total


def countable(file: NabFile) -> int:
    """Return how many windows of a file are not in probation altogether."""
    return sum(window.last >= probation(len(file.values)) for window in file.windows)


def normalise(raw: float, n_windows: int, profile: Profile) -> float:
    """Put a summed score on the scale from 0 (says nothing) to 100 (perfect); NaN without windows."""
    if not n_windows:
        return float("nan")
    nothing, perfect = -profile.fn * n_windows, profile.tp * n_windows
    return 100.0 * (raw - nothing) / (perfect - nothing)


def raw_scores(
    files: Sequence[NabFile],
    scores: Sequence[FloatArray],
    threshold: float | Mapping[str, float],
    profile: Profile,
) -> FloatArray:
    """Return float64 [files], the score of each file, not normalised.

    Args:
        files: the corpus.
        scores: float64 [n] of each file; NaN is no detection.
        threshold: a row whose score is at or above it is a detection; one for all, or one a category.
        profile: what is worth what.
    """
    raw = np.empty(len(files))
    for i, (file, score) in enumerate(zip(files, scores, strict=True)):
        at = threshold[file.category] if isinstance(threshold, Mapping) else threshold
        raw[i] = score_file(len(score), file.windows, score >= at, profile)
    return raw


def score_corpus(
    files: Sequence[NabFile],
    scores: Sequence[FloatArray],
    threshold: float | Mapping[str, float],
    profile: Profile,
) -> float:
    """Return the score of a corpus, 0 (says nothing) to 100 (perfect); for the arguments see `raw_scores`."""
    raw = float(raw_scores(files, scores, threshold, profile).sum())
    return normalise(raw, sum(map(countable, files)), profile)


def best_threshold(files: Sequence[NabFile], scores: Sequence[FloatArray], profile: Profile) -> Fitted:
    """Find the threshold with the highest score: every score that occurs is tried, and "no detection".

    A step down the sorted scores changes the sum at a row outside of windows by its worth, and at a row of a
    window only if it comes before the rows that were above the threshold already. These rows are those that
    are above all before them, so one sort of all steps gives the sum at each threshold.

    Returns:
        The highest of the best thresholds; infinity where nothing beats saying nothing.
    """
    levels: list[FloatArray] = []
    steps: list[FloatArray] = []
    n_windows = 0
    for file, score in zip(files, scores, strict=True):
        worth, window_of = weights(len(score), file.windows, profile)
        outside = (window_of == -1) & ~np.isnan(score)
        levels.append(score[outside])
        steps.append(worth[outside])
        for k in np.unique(window_of[window_of >= 0]):
            n_windows += 1
            rows = np.flatnonzero((window_of == k) & ~np.isnan(score))
            highest = np.maximum.accumulate(score[rows])
            rising = np.flatnonzero(np.diff(highest, prepend=-np.inf) > 0)
            level, gain = highest[rising], worth[rows][rising]
            levels.append(level)
            # from the highest down: found at all, then each time found earlier
            steps.append(gain - np.append(gain[1:], -profile.fn)[: len(gain)])
    level = np.concatenate(levels) if levels else np.empty(0)
    step = np.concatenate(steps) if steps else np.empty(0)
    order = np.argsort(-level)
    level, total = level[order], np.cumsum(step[order])
    # all rows of one score are above the threshold together
    ends = np.flatnonzero(np.append(np.diff(level) != 0, True)[: len(level)])
    nothing = -profile.fn * n_windows
    level = np.append(np.inf, level[ends])
    total = np.append(0.0, total[ends]) + nothing
    best = int(np.argmax(total))
    return Fitted(float(level[best]), normalise(float(total[best]), n_windows, profile))


def held_out_thresholds(
    files: Sequence[NabFile], scores: Sequence[FloatArray], profile: Profile
) -> dict[str, float]:
    """Return for each category the threshold that is best on all the others."""
    thresholds = {}
    for category in dict.fromkeys(file.category for file in files):
        others = [i for i, file in enumerate(files) if file.category != category]
        fitted = best_threshold([files[i] for i in others], [scores[i] for i in others], profile)
        thresholds[category] = fitted.threshold
    return thresholds


def standard_error(
    files: Sequence[NabFile], raw: FloatArray, profile: Profile, rounds: int = 2000, seed: int = 0
) -> float:
    """Return the standard error of a corpus score over draws of its files; thresholds stay as they are.

    Args:
        files: the corpus.
        raw: float64 [files], as `raw_scores` gives them.
        profile: as there.
        rounds: draws.
        seed: of the draws.
    """
    windows = np.array([countable(file) for file in files])

    def statistic(draw: NDArray[np.intp]) -> float:
        return normalise(float(raw[draw].sum()), int(windows[draw].sum()), profile)

    return bootstrap(statistic, len(files), rounds, seed)


def load_corpus(path: Path) -> list[NabFile]:
    """Read a corpus: folders of `timestamp,value` files, one a category, and `combined_windows.json`.

    The windows are read from the folder itself, or from `labels` beside it as in NAB's repository.

    Raises:
        UsageError: there are no windows or no files, or a window's ends are not among the time stamps.
    """
    places = [path / "combined_windows.json", path.parent / "labels" / "combined_windows.json"]
    labels = next((place for place in places if place.is_file()), None)
    if labels is None:
        raise UsageError(
            f"no combined_windows.json in {path}: name the folder of NAB whose folders are its categories"
        )
    windows_of: dict[str, list[list[str]]] = json.loads(labels.read_text())
    files = []
    for csv in sorted(path.glob("*/*.csv")):
        name = f"{csv.parent.name}/{csv.name}"
        if name not in windows_of:
            raise UsageError(f"{name} is not in {labels}: give its windows, or [] if it has no anomaly")
        files.append(_load_file(csv, name, windows_of[name]))
    if not files:
        raise UsageError(f"no CSV files in the folders of {path}")
    return files


def _load_file(csv: Path, name: str, labels: list[list[str]]) -> NabFile:
    _, *lines = csv.read_text().splitlines()
    stamps, _, numbers = zip(*(line.partition(",") for line in lines if line), strict=True)
    ts = np.array(stamps, "datetime64[us]")
    windows = []
    for first, last in labels:
        ends = np.array([first, last], "datetime64[us]")
        # a time may stand twice in a file, where clocks were set back: the first of them counts
        found = [np.flatnonzero(ts == end) for end in ends]
        if not all(map(len, found)):
            raise UsageError(
                f"{name}: the window from {first} to {last} begins or ends at no time of the file"
            )
        windows.append(Window(int(found[0][0]), int(found[1][0])))
    return NabFile(
        name=name,
        category=name.partition("/")[0],
        timestamps=tuple(stamps),
        ts=ts.astype(np.int64) / 1e6,
        values=np.array(numbers, np.float64),
        windows=tuple(windows),
    )
