"""Every kernel variant that the tuner may offer an RX 580 for ResNet-50 and MobileNetV2, compiled for it.

No RX 580 is needed: clang makes the real gfx803 code. What is checked is what that card can't forgive:
spills, quarter-rate v_fma_f32, more local memory or work-items than a group may have, too few waves to hide
latency.
"""

from __future__ import annotations

import pytest

from benchmarks.engine_kernels import conv_launches
from benchmarks.engine_networks import mobilenet_v2, resnet50
from gpu_inference.errors import KernelError
from gpu_inference.opencl import gfx803
from gpu_inference.opencl.conv import candidates, plan_conv
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.gemm import GemmShape, plan_gemm
from gpu_inference.opencl.gemm import candidates as gemm_candidates
from gpu_inference.opencl.launch import Buf, Kernel
from gpu_inference.opencl.traits import RX580

# The fully connected layers of both networks, and a product of runtime tensors.
PRODUCTS = (
    GemmShape(1, 1000, 2048, constant_b=True, trans_b=True),
    GemmShape(8, 1000, 1280, constant_b=True, trans_b=True),
    GemmShape(196, 196, 64, batch=(12,), a_strides=(12544,), b_strides=(12544,), trans_b=True),
)
HOT = {"conv_nhwc", "conv_uniform", "gemm"}


def offered() -> list[Kernel]:
    kernels: list[Kernel] = []
    for batch in (1, 8):
        for layer in resnet50(batch) + mobilenet_v2(batch):
            for choice in candidates(layer.shape, RX580):
                plan = plan_conv(layer.shape, layer.epilogue, RX580, choice)
                kernels += [launch.kernel for launch in conv_launches(plan)]
    for shape in PRODUCTS:
        for gemm_choice in gemm_candidates(shape, RX580):
            gemm_plan = plan_gemm(shape, Epilogue(bias=True), RX580, gemm_choice)
            launches = gemm_plan.launches(Buf("a"), Buf("b"), Buf("bias"), None, Buf("c"), Buf("ws"))
            kernels += [launch.kernel for launch in launches]
    return list(dict.fromkeys(kernels))


def variant(kernel: Kernel) -> str:
    return f"{kernel.name} " + " ".join(f"{name}={value}" for name, value in kernel.defines)


def test_everything_offered_to_an_rx_580_fits_it() -> None:
    if gfx803.toolchain() is None:
        pytest.skip(f"no clang for gfx803: {gfx803.APT_LINE}")
    broken = []
    kernels = offered()
    assert 40 < len(kernels) < 300
    for kernel in kernels:
        for report in gfx803.inspect(kernel):
            if report.name != kernel.name:
                continue
            rules = {
                "spills": report.spills == 0,
                "v_fma_f32": report.slow_fma == 0,
                "local memory": report.local_bytes <= 32768,
                "work-group": report.group <= 256,
                "a wave": report.waves >= 1,
                "3 waves or 90% mad": report.name not in HOT or report.waves >= 3 or report.mad_share >= 0.9,
            }
            failed = [rule for rule, holds in rules.items() if not holds]
            if failed:
                broken.append(f"{', '.join(failed)}: {report} [{variant(kernel)}]")
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
