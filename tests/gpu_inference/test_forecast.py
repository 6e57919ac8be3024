"""Forecasts for a card that isn't there: complete, priced by the cost model, of gated kernels only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from benchmarks import engine_networks
from gpu_inference import standard_models
from gpu_inference.opencl.conv import default_choice
from gpu_inference.opencl.cost_model import conv_cost_us, rates_of
from gpu_inference.opencl.forecast import Forecast, forecast_model, inputs_of
from gpu_inference.opencl.traits import RX580
from tests.gpu_inference import networks
from tests.gpu_inference.gfx803.test_gate import offered
from tests.gpu_inference.test_session import FLOAT, model_of, node

CONVOLUTIONS = {"conv_nhwc.cl", "depthwise.cl", "winograd.cl", "splitk.cl", "conv_direct.cl"}


def forecast(model: bytes, batch: int, **values: np.ndarray[Any, Any]) -> Forecast:
    inputs = {
        info.name: np.zeros([batch if size is None else size for size in info.shape or ()], info.dtype)
        for info in inputs_of(model)
    }
    (found,) = forecast_model(model, [inputs | values], RX580)
    return found


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("network", ["resnet50", "mobilenet_v2"])
def test_convolutions_cost_what_the_cost_model_says_of_the_networks_layers(network: str, batch: int) -> None:
    if network == "resnet50":
        model = standard_models.resnet((3, 4, 6, 3), bottleneck=True, size=224)
        layers = engine_networks.resnet50(batch)
    else:
        model, layers = standard_models.mobilenet_v2(size=224), engine_networks.mobilenet_v2(batch)
    found = forecast(model, batch)
    wanted = sum(conv_cost_us(layer.shape, default_choice(layer.shape, RX580), RX580) for layer in layers)
    got = sum(row.time_us for row in found.rows if row.kernel.file in CONVOLUTIONS)
    assert got == pytest.approx(wanted, rel=1e-9)
    assert all(row.time_us > 0 for row in found.rows)
    assert all(row.modelled for row in found.rows if row.kernel.file in CONVOLUTIONS)
    assert found.total_us >= got
    assert 0 < sum(row.flops for row in found.rows) / found.total_us / 1e3 < RX580.peak_gflops


def test_only_kernels_that_passed_the_gate_are_forecast() -> None:
    gated = set(offered())
    model = standard_models.resnet((3, 4, 6, 3), bottleneck=True, size=224)
    chosen = {row.kernel for row in forecast(model, 1).rows if row.choice}
    assert len(chosen) > 10
    assert chosen <= gated


def test_an_elementwise_kernel_costs_its_bytes_and_its_launch_and_says_so() -> None:
    model = model_of([node("Exp", "x", "y")], {"y": FLOAT}, {})
    found = forecast(model, 1, x=np.zeros((1000, 256), np.float32))
    (row,) = found.rows
    assert row.time_us == pytest.approx(2 * 4 * 256000 / 256e9 * 1e6 + rates_of(RX580).launch_us)
    assert not row.modelled
    assert found.least_us == found.total_us


def test_a_forecast_ends_where_only_a_run_can_tell() -> None:
    found = forecast(networks.detector(), 2)
    assert found.stops_at.startswith("NonMaxSuppression node")
    assert found.nodes_left == 1
    assert found.launches > 5
    assert not found.memory.complete


def test_an_operator_without_a_kernel_ends_it_with_the_reason() -> None:
    nodes = [node("Relu", "x", "a"), node("Det", "a", "d"), node("Neg", "d", "y")]
    found = forecast(model_of(nodes, {"y": FLOAT}, {}), 3)
    assert found.stops_at == "Det node 'd' (opset 18)"
    assert list(found.fallback) == [found.stops_at]
    assert found.nodes_left == 2


def test_inputs_that_shapes_depend_on_are_named() -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Exp", ["r"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("s", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    found = forecast(model.SerializeToString(), 3, s=np.int64([2, 6]))
    assert found.guessed == ("s",)
    assert found.launches == 1


def test_a_product_and_a_recurrent_layer_are_priced_too() -> None:
    found = forecast(networks.lstm_autoencoder(), 1)
    assert {row.kernel.file for row in found.rows if row.modelled} == {"gemm.cl"}
    steps = next(row for row in found.rows if row.kernel.name == "recurrent_step")
    assert steps.launches == 36
    assert steps.time_us >= 36 * rates_of(RX580).launch_us
