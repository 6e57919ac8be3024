"""NAB with a detector of ours: its corpus through the backtest, scored in three ways and three profiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from anomaly.evaluation import nab
from anomaly.evaluation.windowed_gaussian import windowed_gaussian
from polarstream.backtest import Backtest
from polarstream.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anomaly.detector import FloatArray

#: Ratio of a score to the threshold that the detector ships with.
SHIPPED: Final = 1.0

#: Standard profile on all 58 files of version 1.1, threshold fitted on them, as the scoreboard of NAB's
#: repository has them; ARTime as its authors published it.
PUBLISHED: Final[dict[str, float]] = {
    "ARTime": 74.9,
    "Numenta HTM (scoreboard of 2020; 70.1 before)": 70.5,
    "CAD OSE": 69.9,
    "earthgecko Skyline": 58.2,
    "KNN CAD": 58.0,
    "relative entropy": 54.6,
    "random cut forest": 51.7,
    "Twitter ADVec": 47.1,
    "windowed Gaussian": 39.6,
    "Etsy Skyline": 35.7,
    "Bayesian changepoint": 17.7,
    "EXPoSE": 16.4,
    "random": 11.0,
    "null": 0.0,
}


@dataclass(frozen=True, slots=True)
class Result:
    """A score on the scale of NAB, with its standard error over draws of the files."""

    score: float
    error: float
    #: One for all files, or one a category.
    threshold: float | dict[str, float]


@dataclass(frozen=True, slots=True)
class ProfileResults:
    """One profile: with the shipped threshold, with one fitted on these files, with held-out ones."""

    shipped: Result
    fitted: Result
    held_out: Result


@dataclass(frozen=True, slots=True)
class Part:
    """A file or a category, in the standard profile with the shipped threshold."""

    name: str
    rows: int
    windows: int
    found: int
    false_positives: int
    #: What it takes from the score of the whole, in points; 0 is perfect.
    points_lost: float
    #: The same with the held-out thresholds.
    points_lost_held_out: float


@dataclass(frozen=True, slots=True)
class NabReport:
    """All figures; `reference` is NAB's windowed Gaussian on the same files."""

    detector: str
    files: int
    rows: int
    windows: int
    profiles: dict[str, ProfileResults]
    reference: dict[str, ProfileResults]
    by_category: list[Part]
    by_file: list[Part]


def evaluate_nab(
    files: Sequence[nab.NabFile],
    detector: dict[str, Any],
    progress: Callable[[int, int, str], None] | None = None,
) -> NabReport:
    """Score a corpus.

    Args:
        files: as `nab.load_corpus` gives them.
        detector: the `detector` table of a stream's configuration.
        progress: told how many files of how many are done, and the next one's name.
    """
    backtest = Backtest(detector)
    scores, gaussian = [], []
    for done, file in enumerate(files):
        if progress is not None:
            progress(done, len(files), file.name)
        scores.append(backtest.run(as_recording(file)).ratio)
        gaussian.append(windowed_gaussian(file.values))
    held_out = nab.held_out_thresholds(files, scores, nab.PROFILES["standard"])
    by_file = _parts(files, scores, held_out)
    return NabReport(
        detector=str(detector["type"]),
        files=len(files),
        rows=sum(len(file.values) for file in files),
        windows=sum(map(nab.countable, files)),
        profiles={name: judge_profile(files, scores, profile) for name, profile in nab.PROFILES.items()},
        reference={name: judge_profile(files, gaussian, profile) for name, profile in nab.PROFILES.items()},
        by_category=_by_category(by_file),
        by_file=by_file,
    )


def as_recording(file: nab.NabFile) -> Recording:
    """Return a file as what the backtest takes."""
    rows = np.arange(len(file.values))
    return Recording(file.name, ("value",), list(file.timestamps), rows, file.ts, file.values[:, None])


def judge_profile(
    files: Sequence[nab.NabFile], scores: Sequence[FloatArray], profile: nab.Profile
) -> ProfileResults:
    """Score all files of a profile in the three ways."""

    def result(threshold: float | dict[str, float]) -> Result:
        raw = nab.raw_scores(files, scores, threshold, profile)
        score = nab.normalise(float(raw.sum()), sum(map(nab.countable, files)), profile)
        return Result(score, nab.standard_error(files, raw, profile), threshold)

    return ProfileResults(
        shipped=result(SHIPPED),
        fitted=result(nab.best_threshold(files, scores, profile).threshold),
        held_out=result(nab.held_out_thresholds(files, scores, profile)),
    )


def _parts(
    files: Sequence[nab.NabFile], scores: Sequence[FloatArray], held_out: Mapping[str, float]
) -> list[Part]:
    profile = nab.PROFILES["standard"]
    shipped = nab.raw_scores(files, scores, SHIPPED, profile)
    held = nab.raw_scores(files, scores, held_out, profile)
    all_windows = sum(map(nab.countable, files))
    # the scale from all missed to perfect spans tp + fn a window
    points = 100.0 / (max(all_windows, 1) * (profile.tp + profile.fn))
    parts = []
    for i, file in enumerate(files):
        hits = scores[i] >= SHIPPED
        _, window_of = nab.weights(len(hits), file.windows, profile)
        windows = nab.countable(file)
        perfect = profile.tp * windows
        parts.append(
            Part(
                name=file.name,
                rows=len(hits),
                windows=windows,
                found=len(np.unique(window_of[hits & (window_of >= 0)])),
                false_positives=int((hits & (window_of == -1)).sum()),
                points_lost=float((perfect - shipped[i]) * points),
                points_lost_held_out=float((perfect - held[i]) * points),
            )
        )
    return parts


def _by_category(parts: Sequence[Part]) -> list[Part]:
    grouped: dict[str, list[Part]] = {}
    for part in parts:
        grouped.setdefault(part.name.partition("/")[0], []).append(part)
    return [
        Part(
            name=name,
            rows=sum(p.rows for p in some),
            windows=sum(p.windows for p in some),
            found=sum(p.found for p in some),
            false_positives=sum(p.false_positives for p in some),
            points_lost=sum(p.points_lost for p in some),
            points_lost_held_out=sum(p.points_lost_held_out for p in some),
        )
        for name, some in grouped.items()
    ]
