"""RNN, GRU and LSTM: one product for all inputs, then a launch or two a time step."""

from __future__ import annotations

from typing import Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.gemm import GemmShape, plan_gemm
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.source import kernel_source
from gpu_inference.opencl.strided import fill, strided_copy

_GATES: Final = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULTS: Final = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}

# C text of an activation of v, with its default alpha and beta.
_ACTIVATIONS: Final[dict[str, tuple[str, float, float]]] = {
    "relu": ("fmax(v, 0.0f)", 0.0, 0.0),
    "tanh": ("tanh(v)", 0.0, 0.0),
    "sigmoid": ("native_recip(1.0f + exp(-(v)))", 0.0, 0.0),
    "affine": ("{a} * (v) + {b}", 1.0, 0.0),
    "leakyrelu": ("(v) >= 0.0f ? (v) : {a} * (v)", 0.01, 0.0),
    "thresholdedrelu": ("(v) > {a} ? (v) : 0.0f", 1.0, 0.0),
    "scaledtanh": ("{a} * tanh({b} * (v))", 1.0, 1.0),
    "hardsigmoid": ("fmin(fmax({a} * (v) + {b}, 0.0f), 1.0f)", 0.2, 0.5),
    "elu": ("(v) >= 0.0f ? (v) : {a} * expm1(v)", 1.0, 0.0),
    "softsign": ("(v) / (1.0f + fabs(v))", 0.0, 0.0),
    "softplus": ("log1p(exp(v))", 0.0, 0.0),
}


def activation_text(node: Node, directions: int) -> str:
    """Functions ACT0, ACT1 ... of a direction and a value, from the node's attributes.

    Raises:
        Unsupported: an activation that ONNX doesn't name.
    """
    defaults = _DEFAULTS[node.op]
    names = [str(name) for name in node.attributes.get("activations") or defaults * directions]
    alphas = [float(a) for a in node.attributes.get("activation_alpha") or []]
    betas = [float(b) for b in node.attributes.get("activation_beta") or []]
    texts = []
    for number, name in enumerate(names):
        if name.lower() not in _ACTIVATIONS:
            raise Unsupported(f"{node.op} with activation {name}")
        text, alpha, beta = _ACTIVATIONS[name.lower()]
        alpha = alphas[number] if number < len(alphas) else alpha
        beta = betas[number] if number < len(betas) else beta
        texts.append(text.replace("{a}", f"{alpha!r}f").replace("{b}", f"{beta!r}f"))
    lines = []
    for index in range(len(defaults)):
        last = texts[(directions - 1) * len(defaults) + index]
        body = f"return dir == 0 ? ({texts[index]}) : ({last});"
        lines.append(f"inline float ACT{index}(const int dir, const float v) {{ {body} }}\n")
    return "".join(lines)


def _zeros(builder: Builder, count: int) -> Buf:
    """Scratch memory of zeros."""
    y = builder.temporary(4 * count)
    builder.launch(fill(y, count, np.float32(0)))
    return y


def _state(builder: Builder, index: int, sizes: tuple[int, int, int], batch_first: bool) -> Buf:
    """An initial state, or zeros, as memory that the steps may overwrite: [directions, batch, hidden]."""
    directions, batch, hidden = sizes
    if not builder.has(index):
        return _zeros(builder, directions * batch * hidden)
    x = builder.buf(index)
    y = builder.temporary(4 * directions * batch * hidden)
    dense = (batch * hidden, hidden, 1)
    strides = (hidden, directions * hidden, 1) if batch_first else dense
    builder.launch(strided_copy(x, y, sizes, strides, dense, 4))
    return y


def _final(builder: Builder, output: int, state: Buf, sizes: tuple[int, int, int], batch_first: bool) -> None:
    """An output that is the last state."""
    if not builder.wants(output):
        return
    directions, batch, hidden = sizes
    shape = (batch, directions, hidden) if batch_first else sizes
    y = builder.output(output, shape, np.float32)
    dense = (batch * hidden, hidden, 1)
    strides = (hidden, directions * hidden, 1) if batch_first else dense
    builder.launch(strided_copy(state, y, sizes, dense, strides, 4))


@lowers("RNN", "GRU", "LSTM")
def lower_recurrent(node: Node, builder: Builder) -> None:
    """All directions in one launch a step (two for GRU where the reset comes before the product)."""
    if builder.dtype(0) != np.float32:
        raise Unsupported(f"{node.op} of {builder.dtype(0)}")
    batch_first = bool(builder.attr("layout", 0))
    times, batch = builder.shape(0)[:2][::-1] if batch_first else builder.shape(0)[:2]
    directions, hidden = builder.shape(2)[0], builder.shape(2)[2]
    gates, sizes = _GATES[node.op], (directions, batch, hidden)
    text = activation_text(node, directions)
    x, w, r = builder.buf(0), builder.buf(1), builder.buf(2)
    bias = builder.buf(3) if builder.has(3) else _zeros(builder, directions * 2 * gates * hidden)
    peepholes = builder.buf(7) if builder.has(7) else _zeros(builder, directions * 3 * hidden)
    lengths = builder.buf(4) if builder.has(4) else builder.constant(np.full(batch, times, np.int32))
    wide = gates * hidden
    rows = times * batch
    product = GemmShape(
        m=rows,
        n=wide,
        k=builder.shape(0)[2],
        batch=(directions,),
        a_strides=(0,),
        b_strides=(wide * builder.shape(0)[2],),
        trans_b=True,
    )
    plan = plan_gemm(product, Epilogue(), builder.device, builder.choices.gemm(product, Epilogue()))
    xw = builder.temporary(4 * directions * rows * wide)
    workspace = builder.temporary(plan.workspace_bytes) if plan.workspace_bytes else None
    for launch in plan.launches(x, w, None, None, xw, workspace):
        builder.launch(launch)

    states = [_state(builder, 5, sizes, batch_first), builder.temporary(4 * directions * batch * hidden)]
    cell = (
        _state(builder, 6, sizes, batch_first)
        if node.op == "LSTM"
        else _zeros(builder, directions * batch * hidden)
    )
    reset = builder.temporary(4 * directions * batch * hidden)
    row = directions * hidden
    if batch_first:
        y = builder.output(0, (batch, times, directions, hidden), np.float32)
        steps = (1, times, row, hidden, times * row)
    else:
        y = builder.output(0, (times, directions, batch, hidden), np.float32)
        steps = (batch, 1, batch * row, batch * hidden, hidden)
    if node.op == "GRU":
        cells = [2] if builder.attr("linear_before_reset", 0) else [3, 4]
    else:
        cells = [1 if node.op == "LSTM" else 0]
    reverse = int(builder.attr("direction", "forward") == "reverse")
    clip = np.float32(builder.attr("clip") or np.finfo(np.float32).max)
    source = text + kernel_source("recurrent.cl")
    for step in range(times):
        for kind in cells:
            numbers = [step, rows, hidden, batch, *steps, reverse]
            defines = (("CELL", kind), ("COUPLED", int(builder.attr("input_forget", 0))))
            buffers = (xw, r, bias, peepholes, lengths, states[0], states[1], cell, reset, y)
            builder.launch(
                Launch(
                    kernel=Kernel(None, "recurrent_step", defines, source),
                    global_size=(-(-hidden // 32) * 256, batch, directions),
                    local_size=(256, 1, 1),
                    args=(*buffers, *map(np.int32, numbers), clip),
                    flops=2.0 * directions * batch * hidden * wide,
                    bytes=4.0 * directions * wide * hidden,
                )
            )
        states.reverse()
    _final(builder, 1, states[0], sizes, batch_first)
    if node.op == "LSTM":
        _final(builder, 2, cell, sizes, batch_first)
