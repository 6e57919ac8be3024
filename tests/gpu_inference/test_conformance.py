"""The runner of the node tests: which ones, what it says of failures, how it is bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpu_inference
from gpu_inference import DeviceError, conformance
from gpu_inference.conformance import check_node_test, device_tests, must_pass, node_cases, run_node_tests

SOME = ["test_relu", "test_matmul_2d", "test_basic_conv_with_padding"]


class Wrong:
    """A session whose results are off."""

    def __init__(self, session: Any, change: Any) -> None:
        self._session, self._change = session, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        return {name: self._change(array) for name, array in self._session.run(inputs).items()}


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every session's results wrong by a function."""

    def spoil(change: Any) -> None:
        load = gpu_inference.load
        monkeypatch.setattr(gpu_inference, "load", lambda *a, **k: Wrong(load(*a, **k), change))

    return spoil


def test_a_device_is_tested_with_what_the_engine_passes_operators_spelt_out_left_out() -> None:
    names = device_tests()
    assert 900 < len(names) < len(must_pass())
    assert set(names) <= set(must_pass())
    assert not any("expanded" in name for name in names)
    assert set(must_pass()) <= set(node_cases())


def test_quick_has_one_test_of_every_operator() -> None:
    def operators(names: list[str]) -> list[str]:
        models = [conformance._model(node_cases()[name]) for name in names]
        return ["+".join(node.op_type for node in model.graph.node) for model in models]

    quick = operators(device_tests(quick=True))
    assert len(set(quick)) == len(quick)
    assert set(quick) == set(operators(device_tests()))
    assert len(quick) < 200


def test_what_passes_is_counted_and_progress_names_what_runs() -> None:
    seen: list[tuple[int, int, str]] = []
    names = [SOME[0], "test_det_2d", SOME[1]]
    result = run_node_tests(
        names=names,
        progress=lambda found, name: seen.append((found.passed, len(found.failed), name)),
    )
    assert (result.passed, list(result.failed), result.not_run) == (2, ["test_det_2d"], ())
    assert seen == [(0, 0, names[0]), (1, 0, names[1]), (1, 1, names[2])]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y: y * 1.01, "Not equal to tolerance"),
        (lambda y: y[:1], "instead of"),
        (lambda y: y.astype(np.float64), "float64"),
        (lambda y: y * np.nan, "nan location mismatch"),
    ],
)
def test_a_wrong_result_fails_with_the_reason(spoilt: Any, change: Any, reason: str) -> None:
    spoilt(change)
    result = run_node_tests(names=SOME[:2])
    assert result.passed == 0
    assert list(result.failed) == SOME[:2]
    assert all(reason in text for text in result.failed.values())


def test_what_the_engine_can_not_run_fails_and_the_others_still_run() -> None:
    result = run_node_tests(names=["test_det_2d", "test_relu"])
    assert result.passed == 1
    assert "Det node" in result.failed["test_det_2d"]


def test_a_device_that_is_not_there_fails_every_test() -> None:
    with pytest.raises(DeviceError, match="no such card"):
        check_node_test("test_relu", device="no such card")


def test_no_test_begins_when_the_time_is_over() -> None:
    now = iter([0.0, 1.0, 5.0, 30.0, 31.0])
    result = run_node_tests(names=SOME, limit_s=10.0, clock=lambda: next(now))
    assert result.passed == 2
    assert result.not_run == (SOME[2],)
    assert result.seconds == 31.0
