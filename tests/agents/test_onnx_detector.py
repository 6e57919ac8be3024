from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

import gpu_inference
from agents.detect import DetectPartition, StreamDetector
from agents.onnx_detector import BLOCK, OnnxDetector
from anomaly import BadDetector, build_detector
from streams.config import FieldConfig, StreamConfig
from tests.onnx_models import autoencoder, basis, convolutional, forecaster, save

Array = NDArray[np.float64]
ENGINES = ("onnxruntime", "opencl")


def build(model: Path, fields: tuple[str, ...] = ("a",), **settings: Any) -> OnnxDetector:
    detector = build_detector({"type": "onnx", "model": str(model), **settings}, fields)
    assert isinstance(detector, OnnxDetector)
    return detector


def raw_of(detector: OnnxDetector, values: Array, ts: Array | None = None) -> tuple[Array, Array]:
    """Errors, -1 where there is none yet, and all evidence."""
    n = len(values)
    ts = np.arange(float(n)) if ts is None else ts
    raw, why = detector.raw(detector.init(1), np.zeros(n, np.int32), values, ts)
    return np.where(raw >= 0, why[..., 0], raw), why


def wave(n: int, fields: int = 1, seed: int = 0) -> Array:
    t = np.arange(n)[:, None]
    noise = np.random.default_rng(seed).normal(0, 0.05, (n, fields))
    return 20 + 3 * np.sin(2 * np.pi * t / 8 + np.arange(fields)) + noise


def usual(x: Array, n: int, warmup: int) -> tuple[float, float]:
    """Mean and standard deviation of the first n values as they are learned."""
    mean = var = 0.0
    for i, value in enumerate(x[:n], 1):
        away = value - mean
        if i > warmup:
            sd = max(np.sqrt(var), 1e-9 * abs(mean), 1e-100)
            away = np.clip(away, -6 * sd, 6 * sd)
        mean += away / i
        var = (1 - 1 / i) * (var + away * away / i)
    return mean, max(float(np.sqrt(var)), 1e-9 * abs(mean))


@pytest.fixture
def rebuilds(tmp_path: Path) -> Path:
    return autoencoder(tmp_path / "rebuilds.onnx")


@pytest.fixture
def foresees(tmp_path: Path) -> Path:
    return forecaster(tmp_path / "foresees.onnx")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_autoencoders_scores_are_those_of_the_definition(rebuilds: Path, engine: str) -> None:
    values = wave(400)
    values[300] += 2
    raw, why = raw_of(build(rebuilds, warmup=50, engine=engine), values)
    u = basis(16)
    for i in (50, 120, 305, 399):
        mean, sd = usual(values[:, 0], i, 50)
        window = (values[i - 15 : i + 1, 0] - mean) / sd
        made = u @ (u.T @ window)
        np.testing.assert_allclose(raw[i, 0], np.sqrt(np.mean((window - made) ** 2)), rtol=1e-4)
    assert (raw[:50] == -1).all()
    # 4 readings ago, in the only field, 2 above what the model makes of it
    ago, field, value, made_of_it = why[304, 0, 1:5]
    assert (ago, field) == (4, 0)
    assert value == pytest.approx(values[300, 0], rel=1e-5)
    assert 1 < value - made_of_it < 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forecasters_scores_are_those_of_the_definition(foresees: Path, engine: str) -> None:
    values = wave(300, 3)
    values[200, 1] += 5
    raw, why = raw_of(build(foresees, ("a", "b", "c"), kind="forecaster", warmup=40, engine=engine), values)
    model = gpu_inference.load(foresees, "onnxruntime")
    for i in (40, 100, 200, 205):
        scales = [usual(values[:, j], i, 40) for j in range(3)]
        mean, sd = (np.array(part) for part in zip(*scales, strict=True))
        window = ((values[i - 12 : i] - mean) / sd)[None].astype(np.float32)
        off = (values[i] - mean) / sd - model.run({"x": window})["y"][0]
        np.testing.assert_allclose(raw[i, 0], np.sqrt(np.mean(off**2)), rtol=1e-3)
    assert raw.shape == (300, 1)
    assert why[200, 0, 2] == 1
    assert why[200, 0, 3] == values[200, 1]
    assert why[200, 0, 4] == pytest.approx(values[200, 1] - 5, abs=0.5)


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_do_not_depend_on_what_comes_with_them(rebuilds: Path, engine: str) -> None:
    sensors, n = 70, BLOCK + 500
    rng = np.random.default_rng(1)
    rows = rng.integers(0, sensors, n).astype(np.int32)
    values, ts = rng.normal(70, 3, (n, 2)), np.arange(float(n))
    detector = build(rebuilds, ("a", "b"), engine=engine, warmup=5)
    assert detector.model.batch == 32
    whole = detector.score(detector.init(sensors), rows, values, ts)
    state, parts = detector.init(sensors), []
    for begin in range(0, n, 37):
        part = slice(begin, begin + 37)
        parts.append(detector.score(state, rows[part], values[part], ts[part]))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    mine = rows == 3
    alone = detector.score(detector.init(1), np.zeros(mine.sum(), np.int32), values[mine], ts[mine])
    np.testing.assert_array_equal(alone, whole[mine])


def test_a_model_whose_windows_change_one_another_is_run_one_by_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    free = save(tmp_path / "free.onnx", nodes, ["n", 8], ["n", 8])
    assert build(free).model.batch == 1
    fixed = save(tmp_path / "fixed.onnx", nodes, [4, 8], [4, 8])
    with pytest.raises(BadDetector, match="its 4 windows change one another's results"):
        build(fixed)


def test_a_model_of_a_fixed_batch_gets_that(tmp_path: Path) -> None:
    u = basis(16)
    nodes = [helper.make_node("MatMul", ["x", "p"], ["y"])]
    fixed = save(tmp_path / "fixed.onnx", nodes, [5, 16], [5, 16], p=u @ u.T)
    detector = build(fixed, warmup=50)
    assert detector.model.batch == 5
    values = wave(300)
    np.testing.assert_allclose(
        raw_of(detector, values)[0],
        raw_of(build(autoencoder(tmp_path / "free.onnx"), warmup=50), values)[0],
        rtol=1e-3,
    )


@pytest.mark.parametrize("fields", [1, 3])
def test_the_layout_is_found_by_the_shape(tmp_path: Path, fields: int) -> None:
    names = tuple("abc"[:fields])
    steps = convolutional(tmp_path / "steps.onnx", fields)
    detector = build(steps, names, window=20)
    assert (detector.model.window, detector.columns) == (20, 1)
    assert detector.model.layout.text == ("[n, 1, window]" if fields == 1 else "[n, fields, window]")
    # each field is smoothed: what is off is the reading in the middle of five
    values = wave(200, fields)
    values[150, fields - 1] += 30
    _, why = raw_of(detector, values)
    assert why[155, 0, 1:4].tolist() == [5, fields - 1, pytest.approx(values[150, fields - 1], rel=1e-2)]


def test_a_fault_is_found_and_what_is_usual_is_not(rebuilds: Path) -> None:
    values = wave(6000)
    for begin in (4000, 5000):
        values[begin : begin + 200] = 20 + 3 * np.sin(
            2 * np.pi * np.arange(200)[:, None] / 5
        )  # another rhythm
    detector = build(rebuilds)
    scores = detector.score(detector.init(1), np.zeros(6000, np.int32), values, np.arange(6000.0))[:, 0]
    assert (scores[:4000] >= 4).sum() <= 5
    for begin in (4000, 5000):
        assert (scores[begin + 20 : begin + 200] >= 4).all()
        assert (scores[begin + 300 : begin + 1000] < 4).all()


def test_a_forecaster_sees_a_spike_as_it_comes_and_not_long_after(foresees: Path) -> None:
    values = wave(4000, 3)
    values[3000, 2] = 1e9
    detector = build(foresees, ("a", "b", "c"), kind="forecaster")
    scores = detector.score(detector.init(1), np.zeros(4000, np.int32), values, np.arange(4000.0))[:, 0]
    assert scores[3000] >= 4
    assert (scores[3000 + 20 :] < 3).mean() > 0.99


def test_values_may_go_to_the_model_as_they_are(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    halves = save(tmp_path / "halves.onnx", nodes, ["n", 4], ["n", 4], k=np.array([0.5]))
    values = np.full((200, 1), 6.0) + np.random.default_rng(0).choice([-1.0, 1.0], (200, 1))
    raw, why = raw_of(build(halves, normalise=False, warmup=100), values)
    np.testing.assert_allclose(why[150, 0, 4], why[150, 0, 3] / 2)
    expected = np.sqrt(np.mean((values[147:151, 0] / 2) ** 2)) / usual(values[:, 0], 150, 100)[1]
    np.testing.assert_allclose(raw[150, 0], expected, rtol=1e-5)


def test_after_a_gap_the_window_begins_anew(rebuilds: Path) -> None:
    values, ts = wave(300), np.arange(300.0)
    ts[200:] += 1000
    raw, _ = raw_of(build(rebuilds, warmup=50), values, ts)
    assert np.flatnonzero(raw[60:, 0] == -1).tolist() == [*range(140, 155)]


def test_a_field_without_a_value_keeps_its_last_one(foresees: Path) -> None:
    values = wave(200, 3)
    values[150, 0], values[160] = np.nan, np.nan
    held = values.copy()
    held[150, 0] = values[149, 0]
    detector = build(foresees, ("a", "b", "c"), kind="forecaster", warmup=20)
    raw, _ = raw_of(detector, values)
    assert np.flatnonzero(np.isnan(raw[:, 0])).tolist() == [160]
    # the value that is missing isn't compared, those that come after see the window with the last one
    expected, _ = raw_of(detector, held)
    np.testing.assert_allclose(raw[151:156], expected[151:156], rtol=0.05)


def test_a_model_that_gives_no_number_is_as_wrong_as_can_be(tmp_path: Path) -> None:
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    breaks = save(tmp_path / "breaks.onnx", nodes, ["n", 4], ["n", 4])
    raw, _ = raw_of(build(breaks), wave(300))
    assert np.isfinite(raw).all()
    assert raw.max() > 1e5


def test_the_explanation_and_the_version_name_the_model(rebuilds: Path, foresees: Path) -> None:
    digest = hashlib.sha256(rebuilds.read_bytes()).hexdigest()[:12]
    detector = build(rebuilds)
    assert detector.version == f"1+{digest}"
    values = wave(400)
    values[390] += 4
    rows, ts = np.zeros(400, np.int32), np.arange(400.0)
    _, explain = detector.examine(detector.init(1), rows, values, ts)
    text = explain(392, 0)
    assert text.startswith(
        f"model rebuilds.onnx ({digest}) can't rebuild the last 16 readings, most of all a 2 readings ago"
    )
    assert " sd off, so strange once in " in text
    sees = build(foresees, ("a", "b", "c"), kind="forecaster")
    _, explain = sees.examine(sees.init(1), rows, np.repeat(values, 3, axis=1), ts)
    assert " expected " in explain(390, 0)


def test_state_of_another_file_of_the_same_name_is_dropped(tmp_path: Path) -> None:
    path = autoencoder(tmp_path / "model.onnx", window=16)
    stream = StreamConfig(
        name="s", topic="s", fields={"a": FieldConfig()}, detector={"type": "onnx", "model": str(path)}
    )
    share = DetectPartition(StreamDetector(stream), {})
    share.state.locate(["x", "y"])
    share.state.touch(np.array([0, 1], np.int32), 5)
    changelog = dict(share.snapshot())
    kept = DetectPartition(StreamDetector(stream), changelog)
    assert (len(kept.state), kept.state.dropped) == (2, 0)
    autoencoder(path, window=24)
    gone = DetectPartition(StreamDetector(stream), changelog)
    assert len(gone.state) == 0
    assert gone.state.dropped


def fault(model: Path, fields: tuple[str, ...] = ("a",), **settings: Any) -> tuple[str, str]:
    with pytest.raises(BadDetector) as caught:
        build(model, fields, **settings)
    (found,) = caught.value.faults
    return found.path, found.message


def test_what_is_wrong_with_a_model_is_told_when_the_configuration_is_read(
    tmp_path: Path, rebuilds: Path, foresees: Path
) -> None:
    path, message = fault(tmp_path / "none.onnx")
    assert path == "model"
    assert "none.onnx' can't be read (no such file" in message
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    assert "not an ONNX model" in fault(broken)[1]
    assert "it must be one of [n, window]" in fault(rebuilds, window=20)[1]
    assert "there are 2 fields" in fault(foresees, ("a", "b"))[1]
    assert "gives one value a field" in fault(rebuilds, kind="forecaster")[1]
    assert "gives as many values as it takes" in fault(foresees, ("a", "b", "c"))[1]
    assert fault(convolutional(tmp_path / "free.onnx", 1))[0] == "window"
    assert fault(rebuilds, device="no such provider")[0] == "device"
    assert fault(rebuilds, device="no such device", engine="opencl")[0] == "device"
    assert fault(rebuilds, patience_s=-1)[0] == "patience_s"
    assert fault(rebuilds, batch=0)[0] == "batch"
    assert fault(rebuilds, engine="magic")[0] == "engine"
    two = helper.make_node("Add", ["x", "x"], ["y"])
    assert "export it with float32" in fault(save(tmp_path / "one.onnx", [two], ["n"], ["n"]))[1]
