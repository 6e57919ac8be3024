from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_inference.opencl.conv import ConvChoice, ConvShape, Pitches, pack_bias, plan_conv
from gpu_inference.opencl.epilogue import Epilogue, reference
from gpu_inference.opencl.launch import Buf
from gpu_inference.opencl.oracle import convolution, to_nhwc4
from gpu_inference.opencl.timing import LaunchTimer
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.weights import dequantised


@pytest.fixture(scope="session")
def timer() -> LaunchTimer:
    """One OpenCL device for all kernel tests: a GPU where there is one, else PoCL."""
    cl: Any = pytest.importorskip("pyopencl", reason="no pyopencl: pip install pyopencl")
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        platforms = []
    devices = [device for platform in platforms for device in platform.get_devices()]
    if not devices:
        pytest.skip("no OpenCL device: apt-get install pocl-opencl-icd")
    devices.sort(key=lambda device: not device.type & cl.device_type.GPU)
    return LaunchTimer(cl.Context([devices[0]]))


CheckConv = Callable[..., None]


@pytest.fixture
def check_conv(timer: LaunchTimer) -> CheckConv:
    """Runs a convolution and compares it with NumPy; what the kernel doesn't write stays NaN and fails."""

    def check(
        shape: ConvShape,
        choice: ConvChoice | None,
        *,
        epilogue: Epilogue | None = None,
        device: DeviceTraits | None = None,
        pitches: Pitches | None = None,
        tolerance: float = 2e-6,
        over_residual: bool = False,
    ) -> None:
        epilogue = epilogue or Epilogue(bias=True)
        at = pitches or Pitches()
        rng = np.random.default_rng(7)
        stored: Any = np.float16 if shape.halves else np.float32
        x = rng.standard_normal((shape.n, shape.c, shape.h, shape.w), np.float32).astype(stored)
        w = rng.standard_normal((shape.o, shape.cg, shape.kh, shape.kw), np.float32)
        bias = rng.standard_normal(shape.o, np.float32)
        residual = rng.standard_normal((shape.n, shape.oh, shape.ow, shape.o), np.float32).astype(stored)
        scale = np.float32(1 / np.sqrt(shape.cg * shape.kh * shape.kw))
        seen = dequantised(w * scale, shape.weights)
        want = reference(convolution(x, seen, shape), epilogue, bias, residual)

        plan = plan_conv(shape, epilogue, device or timer.traits, choice)
        target = "res" if over_residual else "y"
        y_pitch = at.y or shape.o4
        buffers = {
            "x": timer.upload(x if shape.nchw else _widen(to_nhwc4(x), at.x, at.x_offset)),
            "w": timer.upload(plan.pack(w * scale)),
            "bias": timer.upload(pack_bias(bias)),
            "res": timer.upload(
                _widen(to_nhwc4(residual.transpose(0, 3, 1, 2)), at.residual, at.residual_offset)
            ),
            "y": timer.empty(shape.m * y_pitch * np.dtype(stored).itemsize),
            "ws": timer.empty(plan.workspace_bytes),
        }
        launches = plan.launches(
            Buf("x"),
            Buf("w"),
            Buf("bias") if epilogue.bias else None,
            Buf("res") if epilogue.residual != "none" else None,
            Buf(target),
            Buf("ws") if plan.workspace_bytes else None,
            pitches,
        )
        timer.run(launches, buffers)
        got = timer.download(buffers[target], (shape.n, shape.oh, shape.ow, y_pitch), stored)
        written = got[..., at.y_offset : at.y_offset + shape.o4]
        assert np.isfinite(written).all(), "a padding channel was left unwritten"
        outside = np.delete(got, np.s_[at.y_offset : at.y_offset + shape.o4], axis=-1)
        assert np.isnan(outside).all(), "wrote outside its channels"
        error = np.abs(written[..., : shape.o] - want).max()
        tolerance = max(tolerance, 6e-4 if shape.halves else 0.0)  # half of the last place of a half
        assert error <= tolerance * max(1.0, float(np.abs(want).max())), f"{plan.choice.label}: {error:.2e}"

    return check


def _widen(tensor: NDArray[Any], pitch: int, offset: int) -> NDArray[Any]:
    """The tensor as a slice of channels of a wider one, which is NaN elsewhere."""
    if not pitch:
        return tensor
    out = np.full((*tensor.shape[:-1], pitch), np.nan, tensor.dtype)
    out[..., offset : offset + tensor.shape[-1]] = tensor
    return out
