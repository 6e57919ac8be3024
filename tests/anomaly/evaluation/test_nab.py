"""The scoring of NAB against a plain reading of its rules, row by row, and against numbers worked by hand."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.evaluation.nab import (
    PROFILES,
    NabFile,
    Profile,
    Window,
    best_threshold,
    countable,
    held_out_thresholds,
    load_corpus,
    normalise,
    probation,
    raw_scores,
    score_corpus,
    score_file,
    sigma,
    standard_error,
)
from anomaly.evaluation.windowed_gaussian import windowed_gaussian
from streams.errors import UsageError

STANDARD = PROFILES["standard"]


def a_file(n: int, windows: Sequence[tuple[int, int]], name: str = "some/file.csv") -> NabFile:
    return NabFile(
        name=name,
        category=name.partition("/")[0],
        timestamps=tuple(map(str, range(n))),
        ts=np.arange(float(n)),
        values=np.zeros(n),
        windows=tuple(Window(*window) for window in windows),
    )


def reference(n: int, windows: Sequence[tuple[int, int]], detections: np.ndarray, profile: Profile) -> float:
    """One row after the other, as the rules are told."""
    start = min(math.floor(0.15 * n), 750)
    found: dict[int, float] = {k: -profile.fn for k, (_, last) in enumerate(windows) if last >= start}
    outside = 0.0
    for i in range(start, n):
        if not detections[i]:
            continue
        inside = [k for k, (first, last) in enumerate(windows) if first <= i <= last]
        if inside:
            first, last = windows[inside[0]]
            y = -(last - i + 1) / (last - first + 1)
            worth = profile.tp * (2 / (1 + math.exp(5 * y)) - 1) / (2 / (1 + math.exp(-5)) - 1)
            found[inside[0]] = max(found[inside[0]], worth)
            continue
        before = [(first, last) for first, last in windows if last < i]
        y = (i - before[-1][1]) / max(before[-1][1] - before[-1][0], 1) if before else 3.0
        outside += profile.fp * (-1.0 if y >= 3.0 else 2 / (1 + math.exp(5 * y)) - 1)
    return outside + sum(found.values())


def at(n: int, *rows: int) -> np.ndarray:
    detections = np.zeros(n, bool)
    detections[list(rows)] = True
    return detections


def test_probation_is_15_percent_but_at_most_750_rows() -> None:
    assert probation(1000) == 150
    assert probation(1127) == 169
    assert probation(22_695) == 750


def test_sigmoid_is_the_one_of_the_paper() -> None:
    assert sigma(-1.0) == pytest.approx(0.98661, abs=1e-5)
    assert sigma(-0.5) == pytest.approx(0.84828, abs=1e-5)
    assert sigma(0.0) == 0
    assert sigma(1.0) == pytest.approx(-0.98661, abs=1e-5)


def test_values_worked_by_hand() -> None:
    window = [(400, 499)]
    assert score_file(1000, window, at(1000), STANDARD) == -1
    assert score_file(1000, window, at(1000, 400), STANDARD) == pytest.approx(1)
    # the middle: y = -0.5, 0.84828 / 0.98661
    assert score_file(1000, window, at(1000, 450), STANDARD) == pytest.approx(0.85979, abs=1e-5)
    # the last row: y = -0.01
    assert score_file(1000, window, at(1000, 499), STANDARD) == pytest.approx(0.02499479 / 0.98661, abs=1e-5)
    # later detections in a window change nothing
    assert score_file(1000, window, at(1000, 450, 460, 499), STANDARD) == pytest.approx(0.85979, abs=1e-5)
    # before any window in full; 99 rows behind, y = 1; 297 behind, y = 3, in full
    assert score_file(1000, window, at(1000, 200), STANDARD) == pytest.approx(-1 - 0.11)
    assert score_file(1000, window, at(1000, 598), STANDARD) == pytest.approx(-1 - 0.11 * 0.98661, abs=1e-5)
    assert score_file(1000, window, at(1000, 796), STANDARD) == pytest.approx(-1 - 0.11)
    # in probation nothing counts
    assert score_file(1000, window, at(1000, 0, 149), STANDARD) == -1
    assert score_file(1000, window, at(1000, 150), STANDARD) == pytest.approx(-1.11)


def test_profiles_weigh_as_published() -> None:
    window = [(400, 499)]
    assert score_file(1000, window, at(1000, 200), PROFILES["reward_low_FP"]) == pytest.approx(-1.22)
    assert score_file(1000, window, at(1000, 200), PROFILES["reward_low_FN"]) == pytest.approx(-2.11)


@pytest.mark.parametrize("name", PROFILES)
def test_silence_is_0_and_the_earliest_detections_alone_are_100(name: str) -> None:
    files = [a_file(1000, [(400, 499), (700, 720)]), a_file(600, []), a_file(5000, [(3000, 3100)])]
    constant = [np.full(len(file.values), 0.5) for file in files]
    fitted = best_threshold(files, constant, PROFILES[name])
    assert fitted.threshold == math.inf
    assert fitted.score == 0
    assert score_corpus(files, constant, 0.6, PROFILES[name]) == 0
    perfect = [np.zeros(len(file.values)) for file in files]
    for file, score in zip(files, perfect, strict=True):
        score[[window.first for window in file.windows]] = 1.0
    assert best_threshold(files, perfect, PROFILES[name]) == (1.0, pytest.approx(100))


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[NabFile], list[np.ndarray]]:
    files, scores = [], []
    for i in range(draw(st.integers(1, 4))):
        n = draw(st.integers(5, 60))
        cuts = sorted(draw(st.lists(st.integers(0, n - 1), max_size=4, unique=True)))
        windows = [(first, last) for first, last in zip(cuts[::2], cuts[1::2], strict=False)]
        files.append(a_file(n, windows, f"{'abc'[i % 3]}/{i}.csv"))
        levels = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, math.nan]), min_size=n, max_size=n)
        scores.append(np.array(draw(levels)))
    return files, scores


@settings(max_examples=150, deadline=None)
@given(corpora(), st.sampled_from(sorted(PROFILES)))
def test_sweep_and_scores_are_those_of_the_rules(
    corpus: tuple[list[NabFile], list[np.ndarray]], name: str
) -> None:
    files, scores = corpus
    profile = PROFILES[name]
    sums = {}
    for threshold in [math.inf, 0.9, 0.5, 0.3, 0.2, 0.1, 0.0]:
        raw = [
            reference(len(score), file.windows, score >= threshold, profile)
            for file, score in zip(files, scores, strict=True)
        ]
        assert raw_scores(files, scores, threshold, profile) == pytest.approx(raw, abs=1e-12)
        sums[threshold] = sum(raw)
    fitted = best_threshold(files, scores, profile)
    n_windows = sum(map(countable, files))
    best = normalise(max(sums.values()), n_windows, profile)
    assert fitted.score == pytest.approx(best, nan_ok=True, abs=1e-9)
    if n_windows:
        found = score_corpus(files, scores, fitted.threshold, profile)
        assert found == pytest.approx(fitted.score, abs=1e-9)


def test_held_out_threshold_never_sees_its_category() -> None:
    files = [a_file(1000, [(500, 600)], f"{c}/x.csv") for c in "abc"]
    quiet = np.random.default_rng(0).random((3, 1000)) * 0.5
    scores = list(quiet)
    for i, level in enumerate((0.7, 0.8, 0.9)):
        scores[i][500] = level
    thresholds = held_out_thresholds(files, scores, STANDARD)
    assert thresholds == {"a": 0.8, "b": 0.7, "c": 0.7}
    # a misses its window at the threshold of the others
    assert score_corpus(files, scores, thresholds, STANDARD) == pytest.approx(200 / 3)
    scores[0] = np.ones(1000)
    assert held_out_thresholds(files, scores, STANDARD)["a"] == thresholds["a"]


def test_standard_error_falls_with_more_files() -> None:
    files = [a_file(1000, [(500, 600)], f"c/{i}.csv") for i in range(40)]
    raw = np.where(np.arange(40) % 2, 1.0, -1.0)
    # a share of 50 files in 100 found: 100 sqrt(p (1 - p) / n)
    assert standard_error(files, raw, STANDARD) == pytest.approx(100 * math.sqrt(0.25 / 40), rel=0.1)
    assert standard_error(files[:10], raw[:10], STANDARD) > standard_error(files, raw, STANDARD)


def test_sweep_is_quick() -> None:
    files = [a_file(20_000, [(5000, 6000), (12_000, 12_800)], f"{i % 5}/{i}.csv") for i in range(30)]
    scores = [np.random.default_rng(i).random(20_000) for i in range(30)]
    started = time.process_time()
    best_threshold(files, scores, STANDARD)
    assert time.process_time() - started < 1.0


def test_corpus_is_read_with_its_windows(tmp_path: Path) -> None:
    (tmp_path / "sea").mkdir()
    rows = [f"2015-09-01 11:{minute:02}:00,{minute / 2}" for minute in range(30)]
    (tmp_path / "sea" / "tide.csv").write_text("\n".join(["timestamp,value", *rows, ""]))
    labels = {"sea/tide.csv": [["2015-09-01 11:05:00.000000", "2015-09-01 11:09:00.000000"]]}
    (tmp_path / "combined_windows.json").write_text(json.dumps(labels))
    [file] = load_corpus(tmp_path)
    assert (file.name, file.category, file.windows) == ("sea/tide.csv", "sea", (Window(5, 9),))
    assert file.timestamps[5] == "2015-09-01 11:05:00"
    assert file.ts[5] == 1441105500
    assert file.values[5] == 2.5


def test_corpus_without_windows_or_with_a_wrong_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no combined_windows\.json"):
        load_corpus(tmp_path)
    (tmp_path / "sea").mkdir()
    (tmp_path / "sea" / "tide.csv").write_text("timestamp,value\n2015-09-01 11:00:00,1\n")
    (tmp_path / "combined_windows.json").write_text("{}")
    with pytest.raises(UsageError, match=r"sea/tide\.csv is not in"):
        load_corpus(tmp_path)
    labels = {"sea/tide.csv": [["2015-09-01 11:00:00", "2015-09-01 11:05:00"]]}
    (tmp_path / "combined_windows.json").write_text(json.dumps(labels))
    with pytest.raises(UsageError, match="at no time of the file"):
        load_corpus(tmp_path)


def test_windowed_gaussian_scores_by_its_window() -> None:
    values = np.array([0.0, 2.0, 1.0, 1.0, 9.0, 1.0])
    scores = windowed_gaussian(values, window=2, step=2)
    # row 2 is the mean of rows 0 and 1; so is row 3, while the window waits; row 4 is against rows 2 and 3
    assert scores[:4] == pytest.approx([0, 1, 0.5, 0.5])
    assert scores[4] == pytest.approx(1)
    assert scores[5] == pytest.approx(0.5)
