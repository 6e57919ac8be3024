from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anomaly.evaluation import nab
from polarstream.nab_report import SHIPPED, evaluate_nab
from tests.e2e.cli import Cli


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files of noise; two have a spike in their window, one has it nowhere near."""
    chance = np.random.default_rng(2)
    windows = {}
    for k, (name, spike) in enumerate({"sea/a": 1000, "sea/b": 1010, "land/c": 600}.items()):
        values = chance.normal(10 + k, 1, 1500)
        values[spike] += 40
        path = tmp_path / "nab" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        days = [f"2020-01-{1 + i // 96:02} {i // 4 % 24:02}:{i % 4 * 15:02}:00" for i in range(1500)]
        path.write_text(
            "timestamp,value\n" + "".join(f"{d},{v}\n" for d, v in zip(days, values, strict=True))
        )
        windows[f"{name}.csv"] = [[days[1000], days[1050]]]
    (tmp_path / "nab" / "combined_windows.json").write_text(json.dumps(windows))
    return tmp_path / "nab"


def test_figures_add_up(corpus: Path) -> None:
    files = nab.load_corpus(corpus)
    report = evaluate_nab(files, {"type": "ewz", "threshold": 15})
    standard = report.profiles["standard"]
    assert (report.files, report.rows, report.windows) == (3, 4500, 3)
    assert standard.shipped.threshold == SHIPPED
    assert sum(part.points_lost for part in report.by_file) == pytest.approx(100 - standard.shipped.score)
    assert sum(part.points_lost for part in report.by_category) == pytest.approx(100 - standard.shipped.score)
    held = sum(part.points_lost_held_out for part in report.by_file)
    assert held == pytest.approx(100 - standard.held_out.score)
    assert standard.fitted.score >= max(standard.shipped.score, standard.held_out.score)
    assert [(part.name, part.found, part.false_positives) for part in report.by_file] == [
        ("land/c.csv", 0, 1),
        ("sea/a.csv", 1, 0),
        ("sea/b.csv", 1, 0),
    ]
    # two of three windows, one at its first row, one a fifth in, and one false row before any window
    y = -(1050 - 1010 + 1) / 51
    late = float(nab.sigma(y) / nab.sigma(-1.0))
    assert standard.shipped.score == pytest.approx(100 * (3 + 1 + late - 1 - 0.11) / 6)


def test_command_prints_the_table_and_json(corpus: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    text = cli.ok("eval", "nab", "nab", "--detector", "ewz")
    assert "3 files, 4,500 rows, 3 windows: ewz" in text
    assert "windowed Gaussian" in text
    assert "CAD OSE" in text
    assert "sea/a.csv" in text
    found = cli.json("eval", "nab", "nab", "--detector", "ewz")
    assert set(found["profiles"]) == {"standard", "reward_low_FP", "reward_low_FN"}
    assert "no combined_windows.json" in cli.fails(2, "eval", "nab", "nab/sea", "--detector", "ewz")
