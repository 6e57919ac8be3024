"""What is reported of a model says what NumPy says of the same outputs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gpu_inference import standard_models
from gpu_inference.errors import ModelError, RecipeError
from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.ir import TensorInfo
from gpu_inference.optimiser import (
    Judge,
    generated_samples,
    given_samples,
    load_model,
    parse_recipe,
    target_of,
    to_bytes,
)
from gpu_inference.optimiser.evolution import evolve_sparsity
from gpu_inference.optimiser.formats import read_any
from gpu_inference.optimiser.search import Budget, compare, parse_budget, search
from tests.gpu_inference.optimiser import networks
from tests.gpu_inference.optimiser.test_transforms import plain_run, weights

X = TensorInfo("x", np.dtype(np.float32), (None, 3))


def frames(rows: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3, 16, 16)).astype(np.float32)


def inputs_of(data: bytes) -> list[TensorInfo]:
    return import_graph(onnx.load_model_from_string(data)).inputs


def test_data_is_cut_into_runs_and_nothing_is_lost() -> None:
    array = np.arange(30, dtype=np.float64).reshape(10, 3)
    samples = given_samples([X], {"x": array, "labels": np.arange(10)}, 4)
    assert [len(piece["x"]) for piece in samples.pieces] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([piece["x"] for piece in samples.pieces]), array)
    assert samples.pieces[0]["x"].dtype == np.float32
    assert samples.labels is not None
    assert samples.count == len(samples.labels) == 10


def test_a_fixed_batch_takes_whole_runs_only() -> None:
    fixed = TensorInfo("x", np.dtype(np.float32), (4, 3))
    samples = given_samples([fixed], {"frames": np.ones((10, 3)), "y": np.arange(10)}, 8)
    assert [len(piece["x"]) for piece in samples.pieces] == [4, 4]
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.labels, np.arange(8))


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "no array 'x', only nothing"),
        ({"x": np.ones((2, 4))}, r"shape \[2, 4\], the model takes float32 \[any, 3\]"),
        ({"x": np.ones((2, 3), complex)}, "is complex128"),
        ({"x": np.ones((0, 3))}, "0 rows"),
        ({"x": np.ones((2, 3)), "labels": np.ones(2)}, "labels are float64"),
        ({"x": np.ones((2, 3)), "labels": np.ones(3, int)}, "for each of 2 rows"),
    ],
)
def test_data_that_does_not_fit_is_refused(arrays: dict[str, np.ndarray], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        given_samples([X], arrays, 8)


def test_the_report_is_what_numpy_says() -> None:
    data, x = networks.chain(), frames(40)
    (outputs,) = plain_run(data, {"x": x})
    right = outputs.argmax(axis=1)
    labels = np.where(np.arange(40) % 4 == 0, (right + 1) % 10, right)
    samples = given_samples(inputs_of(data), {"x": x, "labels": labels}, 16)
    model = load_model(data)
    judge = Judge(model, samples, [target_of("cpu")], repeats=2)
    original = judge.measure(model, "original")
    assert (original.ratio, original.max_error, original.agreement, original.accuracy) == (1, 0, 1, 0.75)
    assert original.kept == 1
    result = parse_recipe("prune=0.4").apply(model, judge)
    found = judge.measure(result, "prune=0.4")
    (got,) = plain_run(result, {"x": x})
    assert found.max_error == pytest.approx(np.abs(got - outputs).max() / np.abs(outputs).max(), rel=1e-4)
    assert found.mean_error == pytest.approx(np.abs(got - outputs).mean() / np.abs(outputs).mean(), rel=1e-4)
    assert found.agreement == (got.argmax(axis=1) == right).mean()
    assert found.accuracy == (got.argmax(axis=1) == labels).mean()
    assert found.kept == min(1, found.accuracy / 0.75) == judge.kept(result)
    assert found.size_bytes == len(to_bytes(result))
    floats = [numpy_helper.to_array(t) for t in result.graph.initializer if t.data_type == 1]
    assert found.parameters == sum(array.size for array in floats)
    assert found.nonzero == sum(np.count_nonzero(array) for array in floats) < 0.7 * found.parameters
    assert found.packed_bytes < original.packed_bytes
    assert found.seconds["cpu"] is not None
    assert found.seconds["cpu"] > 0


def test_without_classes_the_mean_error_is_what_is_lost() -> None:
    net = standard_models.Network((1, 3, 16, 16))
    data = net.model(net.conv("x", 3, 16, 3))
    model = load_model(data)
    judge = Judge(model, generated_samples(inputs_of(data), 2))
    found = judge.measure(parse_recipe("int4").apply(model, judge), "int4")
    assert found.agreement is found.accuracy is None
    assert found.mean_error is not None
    assert found.kept == 1 - found.mean_error


def test_labels_that_are_all_wrong_are_refused() -> None:
    data, x = networks.chain(), frames(8)
    (outputs,) = plain_run(data, {"x": x})
    samples = given_samples(inputs_of(data), {"x": x, "labels": (outputs.argmax(axis=1) + 1) % 10}, 8)
    with pytest.raises(RecipeError, match="gets no label right"):
        Judge(load_model(data), samples)


def test_a_device_that_fails_is_told_and_the_others_are_timed() -> None:
    data = networks.tiny()
    targets = [target_of("onnxruntime:NoSuchProvider"), target_of("cpu")]
    judge = Judge(load_model(data), generated_samples(inputs_of(data), 2), targets, repeats=1)
    found = judge.measure(judge.original, "original")
    assert found.seconds["onnxruntime:NoSuchProvider"] is None
    assert "no provider 'NoSuchProvider'" in found.failures["onnxruntime:NoSuchProvider"]
    assert found.seconds["cpu"]
    with pytest.raises(RecipeError, match="no device 'tpu'"):
        target_of("tpu")


def test_recipes_are_brought_into_order() -> None:
    recipe = parse_recipe("int8 + low-rank=0.9+channels")
    assert [step.name for step in recipe.steps] == ["fold", "channels", "low-rank", "int8"]
    assert str(recipe) == "channels=0.25+low-rank=0.9+int8"
    assert parse_recipe(str(recipe)) == recipe
    assert str(parse_recipe("fold")) == "fold"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shrink", "no transform 'shrink': take fold"),
        ("int8=3", "int8 takes no number"),
        ("prune=1.5", "prune=1.5 is out of range"),
        ("prune=nan", "out of range"),
        ("prune=much", "no number after '='"),
        ("int8+int4", "int8 and int4 exclude each other"),
        ("", "no transform ''"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        parse_recipe(text)


def test_evolution_spares_the_layer_that_matters() -> None:
    model = load_model(networks.tiny())
    names = [tensor.name for tensor in model.graph.initializer if len(tensor.dims) >= 2]
    sensitive, idle = names[1], names[0]

    def zeros(model: onnx.ModelProto) -> dict[str, float]:
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        return {name: float((arrays[name] == 0).mean()) for name in names}

    notes: list[tuple[int, int, str]] = []
    result = evolve_sparsity(
        model,
        lambda candidate: 1 - zeros(candidate)[sensitive],
        0.9,
        seed=4,
        progress=lambda done, of, note: notes.append((done, of, note)),
    )
    assert zeros(result)[sensitive] <= 0.1
    assert zeros(result)[idle] > 0.7
    assert notes[-1][0] == notes[-1][1] == len(notes)
    again = evolve_sparsity(model, lambda candidate: 1 - zeros(candidate)[sensitive], 0.9, seed=4)
    assert to_bytes(again) == to_bytes(result)


def test_evolution_that_finds_nothing_gives_the_model_back() -> None:
    model = load_model(networks.tiny())
    assert evolve_sparsity(model, lambda _: 0.0, 0.9, population=3, generations=1) is model


def test_evolution_under_a_floor_holds_on_the_data() -> None:
    data = networks.chain()
    model = load_model(data)
    judge = Judge(model, given_samples(inputs_of(data), {"x": frames(32)}, 32))
    found = judge.measure(parse_recipe("evolve=0.9").apply(model, judge), "evolve=0.9")
    assert found.kept >= 0.9
    assert found.nonzero < 0.95 * found.parameters


def test_the_search_finds_the_best_within_its_budget() -> None:
    data = networks.chain()
    judge = Judge(load_model(data), given_samples(inputs_of(data), {"x": frames(64)}, 64))
    notes: list[tuple[int, int, str]] = []
    budget = Budget(size=0.4, floor=0.8)
    found = search(judge, budget, 14, 1, lambda done, of, note: notes.append((done, of, note)))
    assert notes[0] == (0, 14, "fold")
    assert notes[-1] == (14, 14, "done")
    assert len(found.trials) + len(found.failed) == 14
    assert found.best is not None
    within = [one for one in found.trials if one.ratio <= 0.4 and one.kept >= 0.8]
    assert found.best in within
    assert found.best.kept == max(one.kept for one in within)
    # the front by its definition
    for one in (found.original, *found.trials):
        beaten = any(
            other.ratio <= one.ratio
            and other.kept >= one.kept
            and (other.ratio, other.kept) != (one.ratio, one.kept)
            for other in (found.original, *found.trials)
        )
        on_front = (one.ratio, one.kept) in {(other.ratio, other.kept) for other in found.front}
        assert on_front == (not beaten)
    assert [one.ratio for one in found.front] == sorted(one.ratio for one in found.front)
    again = search(judge, budget, 14, 1)
    assert [one.recipe for one in again.trials] == [one.recipe for one in found.trials]


def test_a_budget_that_nothing_meets_says_what_is_nearest() -> None:
    data = networks.tiny()
    judge = Judge(load_model(data), given_samples(inputs_of(data), {"x": frames(8)[:, :, :8, :8]}, 8))
    found = search(judge, Budget(size=0.001, floor=0.5), 4)
    assert found.best is None
    assert found.nearest is not None
    assert found.nearest.ratio == min(one.ratio for one in found.trials if one.kept >= 0.5)
    with pytest.raises(RecipeError, match="needs a device"):
        search(judge, Budget(time=0.5), 4)


def test_a_comparison_goes_on_after_what_can_not_be_done() -> None:
    from tests.gpu_inference.networks import lstm_autoencoder

    data = lstm_autoencoder()
    judge = Judge(load_model(data), generated_samples(inputs_of(data), 1, pieces=1))
    found = compare(judge)
    assert "recurrent layers" in found.failed["fp16-whole"]
    assert {one.recipe for one in found.trials} >= {"fold", "fp16", "int8"}
    with pytest.raises(ModelError, match="recurrent layers"):
        compare(judge, [parse_recipe("fp16-whole")])


@pytest.mark.parametrize("text", ["speed=1", "size", "size=0", "size=nan", "time=-1", ""])
def test_budgets_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="write size="):
        parse_budget([text], 0.9)
    with pytest.raises(RecipeError, match="a floor of 2"):
        parse_budget(["size=1"], 2)
    assert (
        parse_budget(["size=0.5,time=2"], 0.9)
        == parse_budget(["size=0.5", "time=2"], 0.9)
        == Budget(0.5, 2, 0.9)
    )


def test_other_formats_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    for name, complaint in (
        ("a.pt", "torch is not installed: pip install torch"),
        ("a.pt2", "torch is not installed"),
        ("a.tflite", "pip install tf2onnx"),
        ("a.joblib", "pip install skl2onnx"),
    ):
        with pytest.raises(ModelError, match=complaint):
            read_any(tmp_path / name)
    assert read_any(tmp_path / "a.onnx") == tmp_path / "a.onnx"


def test_a_torchscript_goes_through_its_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for PyTorch: what is asked of it, and that its file is what comes back."""
    exported = networks.tiny()
    path = tmp_path / "a.pt"

    class Module:
        def eval(self) -> Module:
            return self

    def load(name: str, map_location: str) -> Module:
        assert (name, map_location) == (str(path), "cpu")
        return Module()

    def export(module: object, inputs: tuple[np.ndarray, ...], target: str, **options: object) -> None:
        assert isinstance(module, Module)
        assert [example.shape for example in inputs] == [(1, 3, 8, 8)]
        assert options["dynamic_axes"] == {"x0": {0: "n"}}
        Path(target).write_bytes(exported)

    torch = SimpleNamespace(
        zeros=np.zeros, jit=SimpleNamespace(load=load), onnx=SimpleNamespace(export=export)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    assert read_any(path, [(1, 3, 8, 8)]) == exported
    with pytest.raises(RecipeError, match="give each with --shape"):
        read_any(path)


def channel_moments(model: onnx.ModelProto, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of a tensor's channels, by onnxruntime and NumPy alone."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    array = plain_run(shown, {"x": x})[-1]
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    return array.mean(axis=axes), array.std(axis=axes)


@pytest.mark.parametrize("recipe", ["prune=0.3", "int4", "low-rank=0.7", "fp16"])
def test_repair_gives_channels_their_moments_back(recipe: str) -> None:
    data, x = networks.chain(), frames(32)
    model = load_model(data)
    judge = Judge(model, given_samples(inputs_of(data), {"x": x}, 16))
    before = parse_recipe("fold").apply(model, judge)
    broken, repaired = (parse_recipe(r).apply(model, judge) for r in (recipe, f"{recipe}+repair"))
    layers = [node.output[0] for node in before.graph.node if node.op_type in ("Conv", "Gemm")]
    for name in layers:
        mean, spread = channel_moments(before, name, x)
        found_mean, found_spread = channel_moments(repaired, name, x)
        np.testing.assert_allclose(found_mean, mean, atol=0.01 * spread.max())
        np.testing.assert_allclose(found_spread, spread, rtol=0.02)
    worse, better = judge.measure(broken, recipe), judge.measure(repaired, recipe)
    assert worse.mean_error is not None
    assert better.mean_error is not None
    if recipe != "fp16":
        assert better.mean_error < worse.mean_error
    # zeros stay zeros, integers integers; only scales and biases are other ones
    assert better.size_bytes < 1.15 * worse.size_bytes
    kinds = [{t.data_type for t in one.graph.initializer} for one in (broken, repaired)]
    assert kinds[0] == kinds[1]
    if recipe == "prune=0.3":
        zeros = [sum(int((w == 0).sum()) for w in weights(one).values()) for one in (broken, repaired)]
        assert zeros[0] == zeros[1]


def test_repair_leaves_pruned_channels_and_repairs_what_reads_them() -> None:
    data, x = networks.residual(), frames(16)[:, :, :12, :12]
    model = load_model(data)
    judge = Judge(model, given_samples(inputs_of(data), {"x": x}, 16))
    errors = [
        judge.measure(parse_recipe(r).apply(model, judge), r).mean_error
        for r in ("channels=0.5", "channels=0.5+repair")
    ]
    assert errors[1] is not None
    assert errors[0] is not None
    assert errors[1] < 0.8 * errors[0]


def test_steps_learn_from_the_calibration_and_are_judged_on_the_data() -> None:
    data = networks.chain()
    model, infos = load_model(data), inputs_of(data)
    learned, judged = (given_samples(infos, {"x": frames(32, seed)}, 16) for seed in (3, 4))
    apart, alone = Judge(model, judged, calibration=learned), Judge(model, learned)
    for recipe in ("int4+repair", "int8-static", "evolve=0.9"):
        results = [parse_recipe(recipe).apply(model, judge) for judge in (apart, alone)]
        assert to_bytes(results[0]) == to_bytes(results[1])
        found = apart.measure(results[0], recipe)
        assert found.mean_error == Judge(model, judged).measure(results[0], recipe).mean_error
        assert found.mean_error != alone.measure(results[0], recipe).mean_error
