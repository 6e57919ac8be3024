"""The accuracy report says what NumPy says of the same outputs."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_inference import ModelError, standard_models
from gpu_inference.accuracy import OutputError, WeightAccuracy, compare_weights, output_error
from gpu_inference.opencl.session import OpenCLSession


def _model() -> bytes:
    net = standard_models.Network((1, 16))
    x = net.linear("x", 16, 12)
    return net.model(
        x, net.add("Cast", net.add("Greater", x, net.constant(np.float32(0))), to=7), types=(1, 7)
    )


def test_each_type_stands_beside_fp32() -> None:
    x = {"x": np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)}
    notes: list[tuple[int, int, str]] = []
    found = compare_weights(
        _model(),
        x,
        ("int4", "int8"),
        repeats=2,
        progress=lambda done, of, note: notes.append((done, of, note)),
    )
    assert [one.weights for one in found] == ["fp32", "int4", "int8"]
    assert notes == [(0, 3, "fp32"), (1, 3, "int4"), (2, 3, "int8"), (3, 3, "done")]
    results = {}
    for kind in ("fp32", "int4"):
        session = OpenCLSession(_model(), weights=kind)
        results[kind] = list(session.run(x).values())
        session.close()
    (want, signs), (got, found_signs) = results["fp32"], results["int4"]
    numbers, integers = found[1].outputs
    assert numbers.max_error == pytest.approx(np.abs(got - want).max() / np.abs(want).max(), rel=1e-5)
    assert numbers.mean_error == pytest.approx(np.abs(got - want).mean() / np.abs(want).mean(), rel=1e-5)
    assert numbers.agreement == (got.argmax(axis=1) == want.argmax(axis=1)).mean()
    assert integers == OutputError(integers.name, None, None, float((found_signs == signs).mean()))
    assert found[1].max_error == numbers.max_error
    assert found[1].agreement == min(numbers.agreement, integers.agreement or 0)


def test_fp32_is_not_off_from_itself() -> None:
    (one,) = compare_weights(_model(), {"x": np.ones((2, 16), np.float32)}, (), repeats=1)
    assert (one.ratio, one.max_error, one.mean_error, one.agreement) == (1.0, 0.0, 0.0, 1.0)
    assert one.time_ms > 0


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        (np.float32([[1, 5], [3, 0]]), np.float32([[2, 4], [1, 3]]), (0.75, 0.7, 0.5)),
        (np.float32([1, 5]), np.float32([2, 4]), (0.25, 1 / 3, None)),
        (np.ones((2, 3, 4, 4)), np.ones((2, 3, 4, 4)), (0.0, 0.0, None)),
        (np.ones((2, 3, 1, 1)), np.ones((2, 3, 1, 1)), (0.0, 0.0, 1.0)),
        (np.ones((2, 3)), np.ones((3, 3)), (np.inf, np.inf, None)),
        (np.float32([1, np.nan]), np.float32([1, 1]), (np.inf, np.inf, None)),
        (np.ones((0, 3)), np.ones((0, 3)), (0.0, 0.0, None)),
        (np.int64([[1, 2, 3, 4]]), np.int64([[1, 2, 3, 5]]), (None, None, 0.75)),
        (np.int64([[1], [2]]), np.int64([[1]]), (None, None, 0.0)),
        (np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64), (None, None, 1.0)),
    ],
)
def test_errors_by_hand(got: np.ndarray, want: np.ndarray, error: tuple[float | None, ...]) -> None:
    found = output_error("y", got, want)
    assert (found.max_error, found.mean_error, found.agreement) == pytest.approx(error)


def test_outputs_without_classes_or_floats_have_no_figure() -> None:
    one = WeightAccuracy(
        "int8", "fp32", 1, 1, 1.0, 1.0, (OutputError("y", 0.5, 0.1, None), OutputError("z", 0.2, 0.3, None))
    )
    assert (one.max_error, one.mean_error, one.agreement) == (0.5, 0.3, None)
    one = WeightAccuracy("int8", "fp32", 1, 1, 1.0, 1.0, (OutputError("i", None, None, 0.9),))
    assert (one.max_error, one.mean_error, one.agreement) == (None, None, 0.9)


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ModelError, match="no array for input 'x'"):
        compare_weights(_model(), {})
