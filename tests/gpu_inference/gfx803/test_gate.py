"""Every kernel variant that the tuner may offer an RX 580, and every kernel of the models, compiled for it.

No RX 580 is needed: clang makes the real gfx803 code. What is checked is what that card can't forgive:
spills, quarter-rate v_fma_f32, more local memory or work-items than a group may have, too few waves to hide
latency.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.engine_kernels import conv_launches
from benchmarks.engine_networks import mobilenet_v2, resnet50
from gpu_inference import standard_models
from gpu_inference.errors import KernelError
from gpu_inference.graph.importer import import_graph, read_model
from gpu_inference.graph.passes.pipeline import optimise
from gpu_inference.opencl import gfx803
from gpu_inference.opencl.choices import Choices
from gpu_inference.opencl.conv import ConvShape, candidates, plan_conv
from gpu_inference.opencl.epilogue import Epilogue, relu
from gpu_inference.opencl.gemm import GemmShape, plan_gemm
from gpu_inference.opencl.gemm import candidates as gemm_candidates
from gpu_inference.opencl.launch import Buf, Kernel
from gpu_inference.opencl.plan import Planner
from gpu_inference.opencl.traits import RX580
from gpu_inference.opencl.tuner import Tuner, TuningCache
from gpu_inference.opencl.weights import WEIGHT_TYPES, WeightType
from tests.gpu_inference.gfx803.rules import broken_rules, report_of
from tests.gpu_inference.test_networks import NETWORKS
from tests.gpu_inference.test_real_models import LIGHT_MODELS

# The fully connected layers of both networks, and a product of runtime tensors.
PRODUCTS = (
    GemmShape(1, 1000, 2048, constant_b=True, trans_b=True),
    GemmShape(8, 1000, 1280, constant_b=True, trans_b=True),
    GemmShape(196, 196, 64, batch=(12,), a_strides=(12544,), b_strides=(12544,), trans_b=True),
)

# Groups too narrow for the tiled kernel, as in ShuffleNet.
NARROW_GROUPS = ConvShape(1, 28, 28, 60, 60, groups=15)

_BUFFERS = (Buf("x"), Buf("w"), Buf("bias"), None, Buf("y"), Buf("ws"))


def offered() -> list[Kernel]:
    kernels: list[Kernel] = []
    for batch in (1, 8, 32):
        for layer in resnet50(batch) + mobilenet_v2(batch):
            for choice in candidates(layer.shape, RX580):
                plan = plan_conv(layer.shape, layer.epilogue, RX580, choice)
                kernels += [launch.kernel for launch in conv_launches(plan)]
    for shape in PRODUCTS:
        for gemm_choice in gemm_candidates(shape, RX580):
            gemm_plan = plan_gemm(shape, Epilogue(bias=True), RX580, gemm_choice)
            launches = gemm_plan.launches(Buf("a"), Buf("b"), Buf("bias"), None, Buf("c"), Buf("ws"))
            kernels += [launch.kernel for launch in launches]
    return list(dict.fromkeys(kernels + offered_to_models()))


def offered_to_models() -> list[Kernel]:
    """What the tuner is offered for the ONNX models themselves: the passes decide what is fused into what."""
    kernels: list[Kernel] = []
    resnet = standard_models.resnet((3, 4, 6, 3), bottleneck=True, size=224)
    for model in (resnet, standard_models.mobilenet_v2(size=224)):
        graph = optimise(import_graph(read_model(model)))
        for batch in (1, 8):
            choices = Choices(RX580, Tuner(TuningCache(None), RX580, "none"))
            Planner(graph, RX580, choices=choices).start({"x": ((batch, 3, 224, 224), np.dtype("f4"))}, {})
            for problem in choices.problems.values():
                for choice, _ in problem.predicted:
                    kernels += [launch.kernel for launch in problem.launches(choice)[0]]
    return kernels


def require_compiler() -> None:
    if gfx803.toolchain() is None:
        pytest.skip(f"no clang for gfx803: {gfx803.APT_LINE}")


def test_everything_offered_to_an_rx_580_fits_it() -> None:
    require_compiler()
    kernels = offered()
    assert 40 < len(kernels) < 300
    broken = [text for kernel in kernels if (text := broken_rules(kernel))]
    assert not broken, "\n".join(broken)


# ACT of epilogue.clh. None and clip are what the networks above have; silu, tanh and elu are the longest.
ACTIVATIONS = range(2, 9)
LONGEST = (4, 7, 8)


def with_activations() -> list[Kernel]:
    """Every kernel that has an epilogue, with bias, residual and each activation.

    Kernels that differ in how they read, and not in what they do at their end, get the longest ones only.
    """
    found = []
    for kernel in offered():
        defines = dict(kernel.defines)
        if "ACT" not in defines or defines.get("SPLIT") or defines.get("BATCH"):
            continue
        alike = defines.get("POINTWISE") or defines.get("NCHW") or kernel.name.startswith("gem")
        for activation in LONGEST if alike else ACTIVATIONS:
            more = {"ACT": activation, "BIAS": 1, "RES": 1 if activation % 2 else 2}
            found.append(replace(kernel, defines=tuple(sorted((defines | more).items()))))
    return list(dict.fromkeys(found))


def test_every_fused_activation_fits_too() -> None:
    require_compiler()
    kernels = with_activations()
    assert {dict(kernel.defines)["ACT"] for kernel in kernels} == set(ACTIVATIONS)
    broken = [text for kernel in kernels if (text := broken_rules(kernel))]
    assert not broken, "\n".join(broken)


def with_stored_weights() -> list[Kernel]:
    """Every kernel that reads weights and may be offered, in each storage type, with a long epilogue.

    Those with halves for weights come with halves around them too: other types differ in one of the loads.
    Uniform weights, which are offered as floats only, come with halves around them.
    """
    found = []
    types: list[tuple[WeightType, bool]] = [(kind, False) for kind in WEIGHT_TYPES[1:]]
    for weights, halves in [*types, ("fp16", True), ("fp32", True)]:
        kernels: list[Kernel] = []
        for batch in (1, 8, 32):
            layers = resnet50(batch) + mobilenet_v2(batch)
            for shape in dict.fromkeys([NARROW_GROUPS, *(layer.shape for layer in layers)]):
                stored = replace(shape, weights=weights, halves=halves)
                for choice in candidates(stored, RX580):
                    kernels += [k.kernel for k in conv_launches(plan_conv(stored, relu(), RX580, choice))]
        for product in PRODUCTS[:2]:
            stored_product = replace(product, weights=weights, halves=halves)
            for gemm_choice in gemm_candidates(stored_product, RX580):
                plan = plan_gemm(stored_product, Epilogue(bias=True), RX580, gemm_choice)
                launches = plan.launches(Buf("a"), Buf("b"), Buf("bias"), None, Buf("c"), Buf("ws"))
                kernels += [launch.kernel for launch in launches]
        for kernel in dict.fromkeys(kernels):
            if weights == "fp32" and kernel.name != "conv_uniform":
                continue
            defines = dict(kernel.defines)
            if "WEIGHTS" in defines or halves:
                if not defines.get("SPLIT") and not defines.get("BATCH"):
                    defines |= {"ACT": 4, "BIAS": 1, "RES": 1}
                found.append(replace(kernel, defines=tuple(sorted(defines.items()))))
    return list(dict.fromkeys(found))


def test_everything_offered_fits_with_stored_weights_too() -> None:
    require_compiler()
    kernels = with_stored_weights()
    files = {kernel.file for kernel in kernels}
    reading = {"conv_nhwc.cl", "conv_direct.cl", "depthwise.cl", "gemm.cl", "gemv.cl"}
    assert files == reading | {"conv_uniform.cl", "winograd.cl", "splitk.cl"}
    assert {dict(k.defines)["WEIGHTS"] for k in kernels if k.file in reading} == {1, 2, 3}
    broken = [text for kernel in kernels if (text := broken_rules(kernel))]
    assert not broken, "\n".join(broken)


def planned(
    model: bytes, batches: tuple[int, ...], shape: tuple[int, ...], halves: bool = False
) -> list[Kernel]:
    """The kernels of a model's plans for an RX 580, up to its first step on the host."""
    graph = optimise(import_graph(read_model(model)), half_activations=halves)
    planner = Planner(graph, RX580)
    kernels = []
    for batch in batches:
        segment = planner.start({graph.inputs[0].name: ((batch, *shape), np.dtype(np.float32))}, {})
        kernels += [launch.kernel for launch in segment.launches]
    return kernels


def of_the_models() -> list[Kernel]:
    """Everything that the models of the whole-network tests launch: also what the tuner has no choice in."""
    kernels = []
    for make, shape in NETWORKS.values():
        kernels += planned(make(), (1, 8, 32), shape)
    for name in ("unet", "detector"):
        make, shape = NETWORKS[name]
        kernels += planned(make(), (1, 8), shape, halves=True)
    for name in ("densenet121", "inception_v1", "shufflenet", "squeezenet"):
        model = (LIGHT_MODELS / f"light_{name}.onnx").read_bytes()
        kernels += planned(model, (1,), (3, 224, 224))
    return list(dict.fromkeys(kernels))


def test_all_kernels_of_the_models_fit() -> None:
    require_compiler()
    kernels = of_the_models()
    files = {kernel.file or kernel.name for kernel in kernels}
    assert {"elementwise", "pool.cl", "softmax.cl", "normalize.cl", "reduce.cl", "recurrent_step"} <= files
    broken = [text for kernel in kernels if (text := broken_rules(kernel))]
    assert not broken, "\n".join(broken)


@pytest.mark.skipif(gfx803.toolchain() is None, reason=f"no clang for gfx803: {gfx803.APT_LINE}")
@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y[get_global_id(0)] = fma(y[0], y[1], y[2]);", "slow_fma"),
        (
            "float t[400]; for (int i = 0; i < 400; ++i) t[i] = y[i * 7]; "
            "y[get_global_id(0)] = t[(int)y[0]] + t[(int)y[1]];",
            "spills",
        ),
        (
            "__local float t[9000]; t[get_local_id(0)] = y[0]; barrier(CLK_LOCAL_MEM_FENCE); "
            "y[get_global_id(0)] = t[(int)y[1]];",
            "local_bytes",
        ),
    ],
)
def test_the_gate_sees_what_it_must_refuse(body: str, found: str) -> None:
    source = f"__kernel void bad(__global float *y) {{ {body} }}"
    (report,) = gfx803.inspect(Kernel(None, "bad", source=source))
    assert {"slow_fma": report.slow_fma, "spills": report.spills, "local_bytes": report.local_bytes - 32768}[
        found
    ] > 0


@pytest.mark.skipif(gfx803.toolchain() is None, reason=f"no clang for gfx803: {gfx803.APT_LINE}")
def test_broken_rules_are_named() -> None:
    slow = "__kernel void bad(__global float *y) { y[get_global_id(0)] = fma(y[0], y[1], y[2]); }"
    assert broken_rules(Kernel(None, "bad", source=slow)).startswith("v_fma_f32: bad: ")
    local = (
        "__local float t[9000]; t[get_local_id(0)] = y[0]; barrier(CLK_LOCAL_MEM_FENCE); y[0] = t[(int)y[1]];"
    )
    source = f"__kernel void bad(__global float *y) {{ {local} }}"
    assert "local memory" in broken_rules(Kernel(None, "bad", source=source))
    good = "__kernel void good(__global float *y) { y[get_global_id(0)] = mad(y[0], y[1], y[2]); }"
    assert broken_rules(Kernel(None, "good", source=good)) == ""


@pytest.mark.skipif(gfx803.toolchain() is None, reason=f"no clang for gfx803: {gfx803.APT_LINE}")
def test_uniform_weights_come_by_scalar_loads() -> None:
    shape = ConvShape(8, 28, 28, 128, 512)
    choices = [choice for choice in candidates(shape, RX580) if choice.algorithm == "uniform"]
    kernels = [plan_conv(shape, relu(), RX580, choice).launches(*_BUFFERS)[0].kernel for choice in choices]
    assert len(kernels) == 3
    for kernel, choice in zip(kernels, choices, strict=True):
        weights = gfx803.assembly(kernel).count("s_load_dwordx8")
        assert weights >= 16 * choice.vector // 8  # 16 channels of the block in a step of the loop
        assert report_of(kernel).local_bytes == 0
        assert report_of(kernel).mad_share >= 0.97


@pytest.mark.skipif(gfx803.toolchain() is None, reason=f"no clang for gfx803: {gfx803.APT_LINE}")
def test_a_kernel_that_does_not_compile_is_reported_with_the_log() -> None:
    with pytest.raises(KernelError, match="undeclared"):
        gfx803.inspect(Kernel(None, "bad", source="__kernel void bad() { nothing(); undeclared_name; }"))


def test_occupancy_follows_the_cards_tables() -> None:
    def waves(vgprs: int, local_bytes: int = 0, group: int = 64) -> float:
        return gfx803.IsaReport("k", vgprs, 16, local_bytes, 0, group, 0, 0, 0, 0, 0, 0).waves

    # AMD GCN: at most 24 registers for 10 waves, 32 for 8, 64 for 4, 84 for 3, 128 for 2
    assert [waves(v) for v in (24, 32, 64, 84, 128, 129)] == [10, 8, 4, 3, 2, 1]
    # 32 KB a group of four waves: two groups a unit, two waves a SIMD
    assert waves(24, local_bytes=32768, group=256) == 2
