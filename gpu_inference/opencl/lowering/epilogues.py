"""What passes fused into a node: as a kernel's epilogue, or as an expression where its kernel has none."""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.graph.passes.epilogues import RESIDUAL_INPUT
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.epilogue import ActivationKind, Epilogue, ResidualKind
from gpu_inference.opencl.expression import Apply, Expr, Scalar
from gpu_inference.opencl.value import Shape

FLOAT: Final = np.dtype(np.float32)

# {0} the element, {1} and {2} the parameters; the same functions as kernels/epilogue.clh.
_TEMPLATES: Final[dict[str, str]] = {
    "clip": "fmin(fmax({0}, {1}), {2})",
    "leaky_relu": "{0} >= 0.0f ? {0} : {0} * {1}",
    "sigmoid": "native_recip(1.0f + exp(-{0}))",
    "silu": "{0} / (1.0f + exp(-{0}))",
    "hardswish": "{0} * fmin(fmax({0} * (1.0f / 6.0f) + 0.5f, 0.0f), 1.0f)",
    "hard_sigmoid": "fmin(fmax({0} * {1} + {2}, 0.0f), 1.0f)",
    "tanh": "tanh({0})",
    "elu": "{0} >= 0.0f ? {0} : {1} * expm1({0})",
}


def epilogue_of(node: Node, bias: bool) -> Epilogue:
    """The node's epilogue as kernels take it."""
    kind, p0, p1 = node.attributes.get("activation", ("none", 0.0, 0.0))
    residual = cast(ResidualKind, node.attributes.get("residual", "none"))
    return Epilogue(bias, residual, cast(ActivationKind, kind), p0, p1)


def residual_fits(node: Node, builder: Builder, shape: Shape) -> bool:
    """Whether the kernel can add the residual: it has the result's shape, or there is none."""
    return "residual" not in node.attributes or builder.shape(RESIDUAL_INPUT) == shape


def express(node: Node, builder: Builder, raw: Expr, shape: Shape, dtype: np.dtype[Any]) -> None:
    """Output 0 is `raw` of `shape` with the node's residual and activation, as an expression."""
    kind, p0, p1 = node.attributes.get("activation", ("none", 0.0, 0.0))
    residual = node.attributes.get("residual", "none")
    wide: Shape = shape
    if residual != "none":
        wide = tuple(np.broadcast_shapes(shape, builder.shape(RESIDUAL_INPUT)))
    result = raw
    if residual == "before":
        result = Apply("{0} + {1}", (result, builder.expr(RESIDUAL_INPUT, wide)), dtype)
    if kind != "none":
        if dtype.kind != "f":  # fmax of an int and a float is ambiguous in OpenCL C
            result = Apply("{0}", (result,), FLOAT)
        result = Apply(_TEMPLATES[kind], (result, Scalar(p0, FLOAT), Scalar(p1, FLOAT)), dtype)
    if residual == "after":
        result = Apply("{0} + {1}", (result, builder.expr(RESIDUAL_INPUT, wide)), dtype)
    if not isinstance(result, Apply):
        result = Apply("{0}", (result,), dtype)
    builder.lazy(0, result, wide)


def is_plain(node: Node) -> bool:
    """Whether nothing was fused into the node."""
    return "activation" not in node.attributes and "residual" not in node.attributes
