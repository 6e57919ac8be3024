from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gpu_inference.errors import KernelError
from gpu_inference.opencl.conv import ConvShape
from gpu_inference.opencl.epilogue import Epilogue, relu
from gpu_inference.opencl.gemm import GemmShape
from gpu_inference.opencl.launch import Launch
from gpu_inference.opencl.timing import LaunchTimer
from gpu_inference.opencl.traits import RX580
from gpu_inference.opencl.tuner import Tuner, TuningCache, conv_problem, gemm_problem

SHAPE = ConvShape(1, 14, 14, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1)
PROBLEM = conv_problem(SHAPE, relu(), RX580)


def most_launches_is_best(launches: Sequence[Launch], sizes: Mapping[str, int]) -> float:
    """A device on which the candidate with the most work-items wins."""
    return 1e9 / sum(launch.global_size[0] * launch.global_size[1] for launch in launches)


def tuner(path: Path | None, driver: str = "1.0") -> Tuner:
    return Tuner(TuningCache(path), RX580, driver, most_launches_is_best)


def test_a_tuned_choice_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tuning.json"
    first = tuner(path)
    assert first.known(PROBLEM) is None
    assert first.tune([PROBLEM, PROBLEM]) == 1
    choice = first.known(PROBLEM)
    assert choice is not None
    assert tuner(path).known(PROBLEM) == choice
    assert tuner(path).tune([PROBLEM]) == 0
    assert [entry.name for entry in path.parent.iterdir()] == ["tuning.json"]


def test_the_fastest_candidate_wins(tmp_path: Path) -> None:
    subject = tuner(tmp_path / "t.json")
    subject.tune([PROBLEM])
    limit = 1.7 * PROBLEM.predicted[0][1]
    hopeful = [choice for choice, cost in PROBLEM.predicted[:40] if cost <= limit]
    assert len(hopeful) > 3
    assert subject.known(PROBLEM) == min(hopeful, key=lambda c: most_launches_is_best(*PROBLEM.launches(c)))


@pytest.mark.parametrize(
    "garbage",
    ["", "{", "[]", '{"format": 1}', '{"format": 1, "entries": {"k": 3}}', '{"format": 99, "entries": {}}'],
)
def test_a_corrupt_cache_costs_a_new_tuning_only(tmp_path: Path, garbage: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(garbage)
    subject = tuner(path)
    assert subject.known(PROBLEM) is None
    subject.tune([PROBLEM])
    assert tuner(path).known(PROBLEM) is not None


def test_bytes_that_are_no_text_cost_a_new_tuning_only(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert tuner(path).known(PROBLEM) is None


def test_an_unknown_label_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    tuner(path).tune([PROBLEM])
    text = json.loads(path.read_text())
    for entry in text["entries"].values():
        entry["choice"] = "tile 1x1x1/1x1"
    path.write_text(json.dumps(text))
    assert tuner(path).known(PROBLEM) is None


def test_another_driver_or_epilogue_is_tuned_apart(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    tuner(path).tune([PROBLEM])
    assert tuner(path, driver="2.0").known(PROBLEM) is None
    assert tuner(path).known(conv_problem(SHAPE, Epilogue(), RX580)) is None
    # bounds are arguments of the same kernel
    assert tuner(path).known(conv_problem(SHAPE, relu(6.0), RX580)) is not None


def test_two_processes_merge_their_choices(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    other = conv_problem(ConvShape(1, 7, 7, 64, 128), relu(), RX580)
    first, second = tuner(path), tuner(path)
    first.tune([PROBLEM])
    second.tune([other])
    assert tuner(path).known(PROBLEM) is not None
    assert tuner(path).known(other) is not None


def test_a_candidate_that_fails_is_passed_over() -> None:
    seen = []

    def fragile(launches: Sequence[Launch], sizes: Mapping[str, int]) -> float:
        seen.append(launches)
        if len(seen) == 1:
            raise KernelError("out of registers")
        return float(len(seen))

    subject = Tuner(TuningCache(None), RX580, "1", fragile)
    subject.tune([PROBLEM])
    assert subject.known(PROBLEM) == PROBLEM.predicted[1][0]


def test_progress_counts_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    problems = [PROBLEM, gemm_problem(GemmShape(8, 64, 64), Epilogue(), RX580)]
    tuner(None).tune(problems, progress=lambda done, of: calls.append((done, of)))
    assert calls == [(1, 2), (2, 2)]


def test_without_a_measure_tuning_is_refused() -> None:
    with pytest.raises(KernelError, match="can't measure"):
        Tuner(TuningCache(None), RX580, "1").tune([PROBLEM])


def test_real_timing_on_this_device(timer: LaunchTimer, tmp_path: Path) -> None:
    device = timer.traits
    problems = [
        conv_problem(ConvShape(1, 8, 8, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1), relu(residual="before"), device),
        gemm_problem(GemmShape(9, 24, 16, constant_b=True), Epilogue(bias=True), device),
        gemm_problem(
            GemmShape(3, 8, 4, batch=(2, 2), a_strides=(0, 12), b_strides=(64, 32)), Epilogue(), device
        ),
    ]
    subject = Tuner(TuningCache(tmp_path / "t.json"), device, "real", timer.measure)
    assert subject.tune(problems) == 3
    assert all(subject.known(problem) is not None for problem in problems)
    timer.release()
