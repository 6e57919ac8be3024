"""Conv and ConvTranspose. 1-D and 2-D convolutions of constant weights run the planned NHWC kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.graph.passes.epilogues import RESIDUAL_INPUT
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.conv import ConvShape, Pitches, pack_bias, plan_conv
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.lowering.epilogues import epilogue_of, express, is_plain, residual_fits
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.strided import fill
from gpu_inference.opencl.value import Slice


@dataclass(frozen=True, slots=True)
class Window:
    """Where a filter goes over the spatial dimensions, one entry a dimension."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Elements that the dilated filter spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window_of(node: Node, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """Attributes of a convolution or pooling with their defaults, auto_pad resolved."""
    rank = len(spatial)
    attributes = node.attributes
    strides = tuple(int(s) for s in attributes.get("strides") or [1] * rank)
    dilations = tuple(int(d) for d in attributes.get("dilations") or [1] * rank)
    pads = [int(p) for p in attributes.get("pads") or [0] * (2 * rank)]
    before, after = tuple(pads[:rank]), tuple(pads[rank:])
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        low, high = [], []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            low.append(small if mode == "SAME_UPPER" else large)
            high.append(large if mode == "SAME_UPPER" else small)
        before, after = tuple(low), tuple(high)
    elif mode == "VALID":
        before = after = (0,) * rank
    return Window(kernel, strides, dilations, before, after)


@lowers("Conv")
def lower_conv(node: Node, builder: Builder) -> None:
    """A convolution with what passes have fused into it (see graph.passes.epilogues)."""
    x, w = builder.shape(0), builder.shape(1)
    rank = len(x) - 2
    window = window_of(node, x[2:], w[2:])
    group = int(builder.attr("group", 1))
    spatial = tuple(
        (d + b + a - e) // s + 1
        for d, b, a, e, s in zip(
            x[2:], window.before, window.after, window.extent, window.strides, strict=True
        )
    )
    result = (x[0], w[0], *spatial)
    dtype = builder.dtype(0)
    if 0 in result or 0 in x:
        y = builder.output(0, result, dtype)
        builder.launch(fill(y, math.prod(result), dtype.type(0)))
        return
    known = builder.maybe_known(1) is not None or builder.is_input(1)
    planned = rank in (1, 2) and known and dtype.name in ("float16", "float32", "float64")
    if not planned or not residual_fits(node, builder, result):
        _launch(builder, "conv_general", _GENERAL, window, result, group)
        return
    builder.known(1)
    if builder.has(2):
        builder.known(2)
    lift = (1,) * (2 - rank)
    zero = (0,) * (2 - rank)
    h, wide = (*lift, *x[2:])
    kh, kw = (*lift, *w[2:])
    sh, sw = (*lift, *window.strides)
    dh, dw = (*lift, *window.dilations)
    pt, pl = (*zero, *window.before)
    pb, pr = (*zero, *window.after)
    shape = ConvShape(
        n=x[0],
        h=h,
        w=wide,
        c=x[1],
        o=w[0],
        kh=kh,
        kw=kw,
        sh=sh,
        sw=sw,
        pt=pt,
        pl=pl,
        pb=pb,
        pr=pr,
        dh=dh,
        dw=dw,
        groups=group,
        nchw=rank == 2 and x[1] <= 4 and group == 1 and not builder.is_nhwc(0) and kh * kw > 1,
        weights=builder.weights,
        halves=dtype.name == "float16",
    )
    epilogue = epilogue_of(node, builder.has(2))
    plan = plan_conv(shape, epilogue, builder.device, builder.choices.conv(shape, epilogue))
    source, x_at = (builder.buf(0), Slice(0)) if shape.nchw else builder.channels_last(0)
    residual, r_at = None, Slice(0)
    if epilogue.residual != "none":
        residual, r_at = builder.channels_last(RESIDUAL_INPUT)
    weights = builder.packed(
        1,
        f"conv-{plan.packing}-{group}-{shape.weights}",
        lambda array: plan.pack(np.asarray(array, np.float32).reshape(*array.shape[:2], kh, kw)),
    )
    bias = (
        builder.packed(2, "bias", lambda b: pack_bias(np.asarray(b, np.float32))) if builder.has(2) else None
    )
    # a work-item reads just those elements of the residual that it writes
    over = builder.output_over(0, RESIDUAL_INPUT, dtype) if residual not in (None, source) else None
    y, y_at = (over, r_at) if over is not None else builder.output_channels_last(0, result, dtype)
    pitches = Pitches(x_at.pitch, x_at.offset, y_at.pitch, y_at.offset, r_at.pitch, r_at.offset)
    workspace = builder.temporary(plan.workspace_bytes) if plan.workspace_bytes else None
    for launch in plan.launches(source, weights, bias, residual, y, workspace, pitches):
        builder.launch(launch)


_PROLOGUE: Final = """
#if HALF
#define LOAD(p, i) vload_half(i, p)
#define STORE(v, p, i) vstore_half(v, i, p)
#else
#define LOAD(p, i) (p)[i]
#define STORE(v, p, i) (p)[i] = (v)
#endif
#define SIZES const int total, const int c, const int o, const int groups, \\
    const int d0, const int d1, const int d2, const int e0, const int e1, const int e2, \\
    const int k0, const int k1, const int k2, const int s0, const int s1, const int s2, \\
    const int l0, const int l1, const int l2, const int p0, const int p1, const int p2
#define DECODE \\
    const int i = get_global_id(0); \\
    if (i >= total) return; \\
    int r = i; \\
    const int y2 = r % e2; r /= e2; \\
    const int y1 = r % e1; r /= e1; \\
    const int y0 = r % e0; r /= e0; \\
    const int f = r % o, image = r / o, og = o / groups, cg = c / groups, g = f / og
"""

_GENERAL: Final = (
    _PROLOGUE
    + """
/* Convolution of up to three dimensions, plain layout: d input, e output, k filter, s stride, l dilation,
 * p pad. */
__kernel void conv_general(__global const T* restrict x, __global const T* restrict w,
                           __global const T* restrict bias, __global T* restrict y, const int has_bias,
                           SIZES) {
    DECODE;
    float sum = has_bias ? LOAD(bias, f) : 0.0f;
    for (int q = 0; q < cg; ++q)
        for (int a = 0; a < k0; ++a) {
            const int x0 = y0 * s0 - p0 + a * l0;
            if (x0 < 0 || x0 >= d0) continue;
            for (int b = 0; b < k1; ++b) {
                const int x1 = y1 * s1 - p1 + b * l1;
                if (x1 < 0 || x1 >= d1) continue;
                for (int t = 0; t < k2; ++t) {
                    const int x2 = y2 * s2 - p2 + t * l2;
                    if (x2 < 0 || x2 >= d2) continue;
                    sum += LOAD(x, (((image * c + g * cg + q) * d0 + x0) * d1 + x1) * d2 + x2)
                         * LOAD(w, (((f * cg + q) * k0 + a) * k1 + b) * k2 + t);
                }
            }
        }
    STORE(sum, y, i);
}
"""
)

_TRANSPOSED: Final = (
    _PROLOGUE
    + """
/* Transposed convolution, gathered: an output sums the inputs whose filters reach it. w is [c, og, k]. */
__kernel void conv_transposed(__global const T* restrict x, __global const T* restrict w,
                              __global const T* restrict bias, __global T* restrict y, const int has_bias,
                              SIZES) {
    DECODE;
    float sum = has_bias ? LOAD(bias, f) : 0.0f;
    for (int a = 0; a < k0; ++a) {
        const int z0 = y0 + p0 - a * l0;
        if (z0 < 0 || z0 % s0 || z0 / s0 >= d0) continue;
        for (int b = 0; b < k1; ++b) {
            const int z1 = y1 + p1 - b * l1;
            if (z1 < 0 || z1 % s1 || z1 / s1 >= d1) continue;
            for (int t = 0; t < k2; ++t) {
                const int z2 = y2 + p2 - t * l2;
                if (z2 < 0 || z2 % s2 || z2 / s2 >= d2) continue;
                for (int q = 0; q < cg; ++q)
                    sum += LOAD(x, (((image * c + g * cg + q) * d0 + z0 / s0) * d1 + z1 / s1) * d2
                                   + z2 / s2)
                         * LOAD(w, ((((g * cg + q) * og + f % og) * k0 + a) * k1 + b) * k2 + t);
            }
        }
    }
    STORE(sum, y, i);
}
"""
)


def _launch(
    builder: Builder, name: str, source: str, window: Window, result: tuple[int, ...], group: int
) -> None:
    x, dtype = builder.shape(0), builder.dtype(0)
    if dtype.kind != "f" or len(x) > 5:
        raise Unsupported(f"a convolution of {dtype} with {len(x) - 2} spatial dimensions")
    fill_up = 5 - len(x)
    ones, zeros = (1,) * fill_up, (0,) * fill_up
    numbers = [math.prod(result), x[1], result[1], group, *ones, *x[2:], *ones, *result[2:]]
    numbers += [*ones, *window.kernel, *ones, *window.strides, *ones, *window.dilations, *zeros]
    numbers += window.before
    a, w = builder.buf(0), _as_type(builder, 1, dtype)
    bias = _as_type(builder, 2, dtype) if builder.has(2) else w
    node = builder.node
    if is_plain(node):
        raw, y = None, builder.output(0, result, dtype)
    else:
        raw, y = builder.scratch(result, dtype)
    half = dtype.name == "float16"
    total = math.prod(result)
    builder.launch(
        Launch(
            kernel=Kernel(None, name, (("HALF", int(half)), ("T", "half" if half else "float")), source),
            global_size=(-(-total // 64) * 64,),
            local_size=(64,),
            args=(a, w, bias, y, np.int32(builder.has(2)), *map(np.int32, numbers)),
            flops=2.0 * total * x[1] // group * math.prod(window.kernel),
        )
    )
    if raw is not None:
        express(node, builder, raw, result, dtype)


def _as_type(builder: Builder, index: int, dtype: np.dtype[Any]) -> Buf:
    """An input as `dtype`: weights may be of another type than what goes through them."""
    if builder.dtype(index) == dtype:
        return builder.buf(index)
    return builder.packed(index, dtype.name, lambda array: array.astype(dtype))


@lowers("ConvTranspose")
def lower_conv_transpose(node: Node, builder: Builder) -> None:
    """A transposed convolution; output_shape and auto_pad decide the padding where they are given."""
    x, w = builder.shape(0), builder.shape(1)
    rank = len(x) - 2
    group = int(builder.attr("group", 1))
    strides = tuple(int(s) for s in builder.attr("strides") or [1] * rank)
    dilations = tuple(int(d) for d in builder.attr("dilations") or [1] * rank)
    extra = [int(p) for p in builder.attr("output_padding") or [0] * rank]
    pads = [int(p) for p in builder.attr("pads") or [0] * (2 * rank)]
    mode, wanted = builder.attr("auto_pad", "NOTSET"), builder.attr("output_shape")
    spatial = []
    for axis in range(rank):
        span = (w[2 + axis] - 1) * dilations[axis] + 1
        full = (x[2 + axis] - 1) * strides[axis] + span + extra[axis]
        if wanted is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
            size = int(wanted[-rank:][axis]) if wanted is not None else x[2 + axis] * strides[axis]
            total = max(full - size, 0)
            small = total // 2
            pads[axis] = small if mode == "SAME_UPPER" else total - small
            pads[rank + axis] = total - pads[axis]
            spatial.append(size)
        else:
            spatial.append(full - pads[axis] - pads[rank + axis])
    window = Window(w[2:], strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))
    _launch(builder, "conv_transposed", _TRANSPOSED, window, (x[0], w[1] * group, *spatial), group)
