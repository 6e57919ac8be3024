from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.evaluation import skab
from polarstream.cli.main import main
from streams.errors import UsageError


def write(folder: Path, files: int = 3) -> None:
    folder.mkdir()
    for k in range(files):
        rng = np.random.default_rng(k)
        values = rng.normal(size=(700, 2))
        values[500:600, 1] -= 3
        lines = ["datetime;Pressure;Flow;anomaly;changepoint"]
        for i, (a, b) in enumerate(values):
            lines.append(f"2020-03-09 10:00:{i % 60:02};{a};{b};{float(500 <= i < 600)};0.0")
        (folder / f"{k}.csv").write_text("\n".join(lines) + "\n")


def test_rates_are_those_of_the_definitions() -> None:
    truth = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    alarm = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    counts = skab.count(truth, alarm)
    assert counts.tolist() == [2, 1, 1, 4]
    assert skab.f1(counts) == pytest.approx(2 / 3)
    assert skab.false_alarm_rate(counts) == pytest.approx(1 / 5)
    assert skab.missed_alarm_rate(counts) == pytest.approx(1 / 3)


def test_the_threshold_of_a_file_does_not_know_that_file() -> None:
    rng = np.random.default_rng(0)
    labels = [np.arange(100) >= 60 for _ in range(3)]
    scores = [rng.random(100) + 2 * y for y in labels]
    before = skab.nested_thresholds(scores, labels)
    other = [~labels[0], *labels[1:]]  # other labels of file 0, the same scores
    after = skab.nested_thresholds(scores, other)
    assert after[0] == before[0]
    assert (after[1:] != before[1:]).any()


def test_a_plain_fault_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "valve")
    found = skab.evaluate(skab.read(tmp_path / "valve"), {"type": "pca"})
    assert found.own.f1 > 0.85
    assert found.own_tested.far < 0.2
    assert found.own.far < found.own_tested.far  # training rows thin it out
    assert main(["eval", "skab", str(tmp_path / "valve")]) == 0
    assert f"{found.own.f1:.3f}" in capsys.readouterr().out


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no labelled recording"):
        skab.read(tmp_path)
    (tmp_path / "a.csv").write_text("timestamp,value\n1,2\n")
    with pytest.raises(UsageError, match=r"no first column 'datetime'"):
        skab.read(tmp_path)
