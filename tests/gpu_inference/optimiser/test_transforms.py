"""Each transform against onnxruntime on the model that it came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import gpu_inference
from gpu_inference import ModelError, standard_models
from gpu_inference.graph.exporter import export_model
from gpu_inference.graph.importer import STORED_KEY, import_graph
from gpu_inference.opencl.session import OpenCLSession
from gpu_inference.optimiser import Judge, Samples, generated_samples, load_model, parse_recipe, to_bytes
from gpu_inference.optimiser.channels import prune_channels
from gpu_inference.optimiser.folding import fold
from gpu_inference.optimiser.low_rank import decompose, strongest
from gpu_inference.optimiser.magnitude import _scores, prune_globally, prune_layers
from gpu_inference.optimiser.storage import store_sparse
from tests.gpu_inference import networks as more
from tests.gpu_inference.optimiser import networks


def plain_run(model: ModelProto | bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """onnxruntime itself, without anything of ours."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def samples_of(model: bytes, batch: int = 8) -> Samples:
    return generated_samples(import_graph(onnx.load_model_from_string(model)).inputs, batch)


def largest_error(got: ModelProto, model: bytes, samples: Samples) -> float:
    errors = []
    for piece in samples.pieces:
        for have, want in zip(plain_run(got, piece), plain_run(model, piece), strict=True):
            assert have.dtype == want.dtype
            assert have.shape == want.shape
            errors.append(float(np.abs(have - want).max() / np.abs(want).max()))
    return max(errors)


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in found.items() if array.ndim >= 2}


NETWORKS: dict[str, Callable[[], bytes]] = {
    "chain": networks.chain,
    "resnet": lambda: standard_models.resnet((1, 1), width=16, size=32),
    "vit_block": more.vit_block,
    "lstm": more.lstm_autoencoder,
}
#: The largest error that each may have of the largest output, and the bounds of its ratio.
EXPECTED = {
    "fold": (1e-5, 0.9, 1.0),
    "fp16": (2e-3, 0.48, 0.6),
    "fp16-whole": (5e-3, 0.48, 0.6),
    "int8": (4e-2, 0.24, 0.4),
    "int8-dynamic": (8e-2, 0.24, 0.45),
    "int8-static": (0.12, 0.26, 0.6),
    "int4": (0.45, 0.12, 0.3),
}


@pytest.mark.parametrize("recipe", EXPECTED)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_within_the_stated_error_and_files_shrink(name: str, recipe: str) -> None:
    data = NETWORKS[name]()
    samples, model = samples_of(data), load_model(data)
    before = to_bytes(model)
    if (name, recipe) == ("lstm", "fp16-whole"):
        with pytest.raises(ModelError, match="recurrent layers"):
            parse_recipe(recipe).apply(model, Judge(model, samples))
        return
    result = parse_recipe(recipe).apply(model, Judge(model, samples))
    onnx.checker.check_model(result, full_check=True)
    assert to_bytes(model) == before
    error, least, most = EXPECTED[recipe]
    assert largest_error(result, data, samples) <= error
    if name != "lstm":  # small, and its weights are no operator's that is quantised
        assert least < len(to_bytes(result)) / len(before) <= most


def test_both_engines_run_the_results_and_ours_stores_weights_as_they_say() -> None:
    data = networks.tiny()
    model, samples = load_model(data), samples_of(data)
    sizes = {}
    for recipe in ("fold", "fp16", "int8", "int4", "prune-layers=0.9+sparse", "int8-static"):
        result = to_bytes(parse_recipe(recipe).apply(model, Judge(model, samples)))
        (want,) = plain_run(result, samples.pieces[0])
        ours, theirs = OpenCLSession(result), gpu_inference.load(result, "onnxruntime")
        for session in (ours, theirs):
            (got,) = session.run(samples.pieces[0]).values()
            # static int8 may fall to the other side where a value lies between two integers
            allowed = 0.03 if recipe == "int8-static" else 2e-3
            assert np.abs(got - want).max() <= allowed * np.abs(want).max()
        sizes[recipe] = ours.report.constant_bytes
        ours.close()
        theirs.close()
        if recipe == "int4":
            properties = onnx.load_model_from_string(result).metadata_props
            assert {entry.key: entry.value for entry in properties}[STORED_KEY] == "int4"
    assert sizes["fold"] > sizes["fp16"] > sizes["int8"] > sizes["int4"]


def test_weights_that_ask_for_a_type_are_loaded_with_another() -> None:
    data = networks.tiny()
    model, samples = load_model(data), samples_of(data)
    result = to_bytes(parse_recipe("int4").apply(model, Judge(model, samples)))
    sizes = []
    for kind in (None, "fp16"):
        session = OpenCLSession(result, weights=kind)  # type: ignore[arg-type]
        session.run(samples.pieces[0])
        sizes.append(session.report.constant_bytes)
        session.close()
    assert sizes[0] < sizes[1]


def test_folding_leaves_no_norm_and_no_constant_arithmetic() -> None:
    net = standard_models.Network((1, 3, 8, 8))
    x = net.conv("x", 3, 8, 3)
    scale = net.add("Mul", net.constant(np.float32(2)), net.constant(np.float32(1.5)))
    x = net.add("Mul", net.add("Identity", x), scale)
    net.add("Relu", x)  # nobody reads it
    data = net.model(net.add("Relu", net.add("Dropout", x)))
    result = fold(load_model(data))
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "Mul", "Relu"]
    assert largest_error(result, data, samples_of(data)) < 1e-5


def test_folding_twice_changes_nothing() -> None:
    once = fold(load_model(networks.chain()))
    assert to_bytes(fold(once)) == to_bytes(once)


def test_an_old_model_is_brought_to_the_opset_of_all() -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["a"], axes=[1]),
        helper.make_node("Squeeze", ["a"], ["b"], axes=[1]),
        helper.make_node("Clip", ["b"], ["c"], min=0.0, max=6.0),
        helper.make_node("Softmax", ["c"], ["y"], axis=1),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in "xy")
    graph = helper.make_graph(nodes, "old", [x], [y])
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=5)
    data = old.SerializeToString()
    model = load_model(data)
    assert [entry.version for entry in model.opset_import] == [21]
    result = export_model(import_graph(model), model)
    onnx.checker.check_model(result, full_check=True)
    assert result.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert largest_error(result, data, samples_of(data)) < 1e-6


def test_subgraphs_come_back_as_they_were() -> None:
    outer = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("t", "e")]
    branches = [
        helper.make_graph([helper.make_node(op, ["x"], [name])], name, [], [value])
        for op, name, value in (("Neg", "t", inner[0]), ("Abs", "e", inner[1]))
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["yes"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "branches", [outer], [result], [zero])
    data = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    assert largest_error(fold(load_model(data)), data, samples_of(data)) == 0
    with pytest.raises(ModelError, match="take fp16"):
        parse_recipe("fp16-whole").apply(load_model(data), Judge(load_model(data), samples_of(data)))


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_pruning_zeroes_the_smallest_and_nothing_else(sparsity: float) -> None:
    model = fold(load_model(networks.chain()))
    before = weights(model)
    everywhere = prune_globally(model, sparsity)
    zeros = sum(int((array == 0).sum()) for array in weights(everywhere).values())
    assert zeros == pytest.approx(sparsity * sum(array.size for array in before.values()), abs=len(before))
    for name, array in weights(everywhere).items():
        if (array == 0).any():
            assert np.abs(before[name][array == 0]).max() <= np.abs(array[array != 0]).min()
    for name, array in weights(prune_layers(model, sparsity)).items():
        gone = array == 0
        assert gone.sum() == int(sparsity * array.size)
        assert np.abs(before[name][gone]).max() <= np.abs(array[~gone]).min()
        np.testing.assert_array_equal(array[~gone], before[name][~gone])


def test_scores_are_those_of_the_paper() -> None:
    array = np.float32([[1, -3], [2, 0]])
    wanted = [[1 / (1 + 4 + 9), 9 / 9], [4 / (4 + 9), 0]]
    np.testing.assert_allclose(_scores(array), wanted, rtol=1e-6)


def test_layers_are_pruned_by_name() -> None:
    model = fold(load_model(networks.chain()))
    name, *others = weights(model)
    pruned = weights(prune_layers(model, {name: 0.5}))
    assert (pruned[name] == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert all((pruned[other] != 0).all() for other in others)


def test_sparse_files_hold_the_same_weights() -> None:
    data = networks.chain()
    dense = prune_layers(fold(load_model(data)), 0.9)
    result = store_sparse(dense)
    assert len(to_bytes(result)) < 0.5 * len(to_bytes(dense))
    (piece, *_) = samples_of(data).pieces
    np.testing.assert_array_equal(plain_run(result, piece)[0], plain_run(dense, piece)[0])


def test_removed_channels_that_were_zero_change_nothing() -> None:
    """The plain reference: the same network with those channels zeroed."""
    data = networks.chain()
    model = fold(load_model(data))
    graph = import_graph(model)
    for node in graph.nodes:
        if node.op != "Conv":
            continue
        # the first quarter of each convolution's channels gives zeros
        for name in node.inputs[1:]:
            array = graph.constants[name].copy()
            array[: len(array) // 4] = 0
            graph.constants[name] = array
    zeroed = export_model(graph, model)
    result = prune_channels(zeroed, 0.25)
    kept = [array.shape for array in weights(result).values()]
    assert sorted(kept) == sorted([(12, 3, 3, 3), (12, 1, 3, 3), (24, 12, 1, 1), (24, 24, 3, 3), (10, 24)])
    piece = samples_of(data).pieces[0]
    np.testing.assert_allclose(plain_run(result, piece)[0], plain_run(zeroed, piece)[0], rtol=1e-4, atol=1e-4)
    assert len(to_bytes(result)) < 0.7 * len(to_bytes(zeroed))


def test_channels_that_meet_a_sum_stay() -> None:
    model = fold(load_model(networks.residual()))
    result = prune_channels(model, 0.5)
    onnx.checker.check_model(result, full_check=True)
    assert sorted(array.shape for array in weights(result).values()) == [
        (12, 16, 3, 3),
        (16, 3, 3, 3),
        (16, 12, 3, 3),
    ]


@pytest.mark.parametrize("make", [more.detector, more.unet, more.squeezenet], ids=lambda make: make.__name__)
def test_networks_with_concatenations_stay_valid_without_channels(make: Callable[[], bytes]) -> None:
    data = make()
    result = prune_channels(fold(load_model(data)), 0.5)
    assert len(to_bytes(result)) < len(data)
    for have, want in zip(
        plain_run(result, samples_of(data, 1).pieces[0]),
        plain_run(data, samples_of(data, 1).pieces[0]),
        strict=True,
    ):
        assert have.shape[1:] == want.shape[1:]


def test_layers_of_low_rank_are_split_without_loss() -> None:
    data = networks.of_low_rank()
    model = load_model(data)
    result = decompose(model, 1.0)
    assert [node.op_type for node in result.graph.node].count("Conv") == 3 + 2 + 3
    assert [node.op_type for node in result.graph.node].count("Gemm") == 4
    assert [node.op_type for node in result.graph.node].count("MatMul") == 2
    assert len(to_bytes(result)) < 0.5 * len(to_bytes(model))
    assert largest_error(result, data, samples_of(data)) < 1e-4


def test_full_rank_is_left_alone() -> None:
    model = fold(load_model(networks.chain()))
    assert weights(decompose(model, 1.0)).keys() == weights(model).keys()


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_strongest_directions_are_those_of_svd(shape: tuple[int, int]) -> None:
    array = np.random.default_rng(1).standard_normal(shape)
    u, values, v = strongest(array, 0.8)
    wanted = np.linalg.svd(array)[1]
    rank = len(values)
    np.testing.assert_allclose(values, wanted[:rank])
    assert (wanted[:rank] ** 2).sum() >= 0.8 * (wanted**2).sum() > (wanted[: rank - 1] ** 2).sum()
    assert np.linalg.norm(array - u * values @ v) ** 2 == pytest.approx((wanted[rank:] ** 2).sum())
