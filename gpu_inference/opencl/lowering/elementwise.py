"""Elementwise operators: each becomes an expression, which later kernels may take in."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import helper

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.expression import C_TYPES, Apply, Expr, Scalar, expr_dtype
from gpu_inference.opencl.lowering.normalization import lower_training_batch_norm
from gpu_inference.opencl.lowering.registry import Unsupported, lowers

BOOL: Final = np.dtype(bool)
FLOAT: Final = np.dtype(np.float32)

# Functions of one float; {0} is the element, {1} and {2} the attributes below.
_UNARY: Final = {
    "Exp": "exp({0})",
    "Log": "log({0})",
    "Sqrt": "sqrt({0})",
    "Reciprocal": "1.0f / {0}",
    "Floor": "floor({0})",
    "Ceil": "ceil({0})",
    "Round": "rint({0})",
    "Erf": "erf({0})",
    "Sin": "sin({0})",
    "Cos": "cos({0})",
    "Tan": "tan({0})",
    "Asin": "asin({0})",
    "Acos": "acos({0})",
    "Atan": "atan({0})",
    "Sinh": "sinh({0})",
    "Cosh": "cosh({0})",
    "Tanh": "tanh({0})",
    "Asinh": "asinh({0})",
    "Acosh": "acosh({0})",
    "Atanh": "atanh({0})",
    "Sigmoid": "native_recip(1.0f + exp(-{0}))",
    "Softplus": "fmax({0}, 0.0f) + log1p(exp(-fabs({0})))",
    "Softsign": "{0} / (1.0f + fabs({0}))",
    "HardSwish": "{0} * fmin(fmax({0} * (1.0f / 6.0f) + 0.5f, 0.0f), 1.0f)",
    "Mish": "{0} * tanh(fmax({0}, 0.0f) + log1p(exp(-fabs({0}))))",
}

# With attributes: template, and each attribute's name and default.
_PARAMETRIC: Final[dict[str, tuple[str, tuple[tuple[str, float], ...]]]] = {
    "LeakyRelu": ("{0} >= 0.0f ? {0} : {0} * {1}", (("alpha", 0.01),)),
    "Elu": ("{0} >= 0.0f ? {0} : {1} * expm1({0})", (("alpha", 1.0),)),
    "Celu": ("fmax({0}, 0.0f) + fmin(0.0f, {1} * expm1({0} / {1}))", (("alpha", 1.0),)),
    "Selu": (
        "{2} * ({0} > 0.0f ? {0} : {1} * expm1({0}))",
        (("alpha", 1.6732632423543772), ("gamma", 1.0507009873554805)),
    ),
    "ThresholdedRelu": ("{0} > {1} ? {0} : 0.0f", (("alpha", 1.0),)),
    "HardSigmoid": ("fmin(fmax({0} * {1} + {2}, 0.0f), 1.0f)", (("alpha", 0.2), ("beta", 0.5))),
    "Swish": ("{0} / (1.0f + exp(-({1} * {0})))", (("alpha", 1.0),)),
    "Shrink": (
        "{0} < -{2} ? {0} + {1} : ({0} > {2} ? {0} - {1} : 0.0f)",
        (("bias", 0.0), ("lambd", 0.5)),
    ),
}


def _unary(node: Node, builder: Builder, template: str, dtype: np.dtype[Any], *more: Expr) -> None:
    shape = builder.shape(0)
    builder.lazy(0, Apply(template, (builder.expr(0, shape), *more), dtype), shape)


def _require_float(node: Node, builder: Builder) -> None:
    if builder.dtype(0).kind != "f":
        raise Unsupported(f"{node.op} of {builder.dtype(0)}")


@lowers(*_UNARY)
def lower_unary(node: Node, builder: Builder) -> None:
    """A function of one float."""
    _require_float(node, builder)
    _unary(node, builder, _UNARY[node.op], builder.dtype(0))


@lowers(*_PARAMETRIC)
def lower_parametric(node: Node, builder: Builder) -> None:
    """A function of one float with constant parameters."""
    _require_float(node, builder)
    template, attributes = _PARAMETRIC[node.op]
    numbers = [Scalar(float(builder.attr(name, default)), FLOAT) for name, default in attributes]
    _unary(node, builder, template, builder.dtype(0), *numbers)


@lowers("Relu", "Abs", "Neg", "Sign", "Not", "BitwiseNot", "IsNaN", "IsInf")
def lower_simple(node: Node, builder: Builder) -> None:
    """Functions that mean the same for integers."""
    dtype = builder.dtype(0)
    kind = dtype.kind
    if node.op == "IsInf":
        tests = []
        if builder.attr("detect_positive", 1):
            tests.append("{0} == INFINITY")
        if builder.attr("detect_negative", 1):
            tests.append("{0} == -INFINITY")
        _unary(node, builder, " || ".join(tests) or "0", BOOL)
        return
    templates = {
        "Relu": "{0} > 0 ? {0} : 0" if kind != "f" else "fmax({0}, 0.0f)",
        "Abs": {"f": "fabs({0})", "u": "{0}"}.get(kind, "{0} < 0 ? -{0} : {0}"),
        "Neg": "-{0}",
        "Sign": "({0} > 0) - ({0} < 0)",
        "Not": "!{0}",
        "BitwiseNot": "~{0}",
        "IsNaN": "isnan({0})",
    }
    result = BOOL if node.op == "IsNaN" else dtype
    _unary(node, builder, templates[node.op], result)


@lowers("Gelu")
def lower_gelu(node: Node, builder: Builder) -> None:
    """0.5 x (1 + erf(x / sqrt 2)), or its tanh approximation."""
    _require_float(node, builder)
    if builder.attr("approximate", "none") == "tanh":
        template = "0.5f * {0} * (1.0f + tanh(0.7978845608f * ({0} + 0.044715f * {0} * {0} * {0})))"
    else:
        template = "0.5f * {0} * (1.0f + erf({0} * 0.70710678f))"
    _unary(node, builder, template, builder.dtype(0))


def _broadcast(builder: Builder, count: int) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*(builder.shape(i) for i in range(count))))


def _binary_templates(dtype: np.dtype[Any]) -> dict[str, str]:
    ctype, floating = C_TYPES[dtype.name], dtype.kind == "f"
    return {
        "Add": "{0} + {1}",
        "Sub": "{0} - {1}",
        "Mul": "{0} * {1}",
        "Div": "{0} / {1}",
        "PRelu": "{0} >= 0 ? {0} : {0} * {1}",
        "Max": "fmax({0}, {1})" if floating else "max({0}, {1})",
        "Min": "fmin({0}, {1})" if floating else "min({0}, {1})",
        "And": "{0} && {1}",
        "Or": "{0} || {1}",
        "Xor": "!{0} != !{1}",
        "BitwiseAnd": "{0} & {1}",
        "BitwiseOr": "{0} | {1}",
        "BitwiseXor": "{0} ^ {1}",
        "Mod": f"pymod_{ctype}({{0}}, {{1}})",
        "Equal": "{0} == {1}",
        "Less": "{0} < {1}",
        "LessOrEqual": "{0} <= {1}",
        "Greater": "{0} > {1}",
        "GreaterOrEqual": "{0} >= {1}",
    }


_COMPARISONS: Final = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")


@lowers(
    *("Add", "Sub", "Mul", "Div", "PRelu", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    *_COMPARISONS,
)
def lower_binary(node: Node, builder: Builder) -> None:
    """Two operands of the same type, broadcast."""
    # PRelu's slope broadcasts to x, never the other way
    shape = builder.shape(0) if node.op == "PRelu" else _broadcast(builder, 2)
    dtype = BOOL if node.op in _COMPARISONS else builder.dtype(0)
    template = _binary_templates(builder.dtype(0))[node.op]
    builder.lazy(0, Apply(template, (builder.expr(0, shape), builder.expr(1, shape)), dtype), shape)


@lowers("Mod")
def lower_mod(node: Node, builder: Builder) -> None:
    """Remainder with the sign of the divisor, or of the dividend with fmod=1."""
    shape, dtype = _broadcast(builder, 2), builder.dtype(0)
    if dtype.kind == "f":
        template = "fmod({0}, {1})"
        if not builder.attr("fmod", 0):
            template = "{0} - {1} * floor({0} / {1})"
    else:
        template = "{0} % {1}" if builder.attr("fmod", 0) else _binary_templates(dtype)["Mod"]
    builder.lazy(0, Apply(template, (builder.expr(0, shape), builder.expr(1, shape)), dtype), shape)


@lowers("Pow")
def lower_pow(node: Node, builder: Builder) -> None:
    """X to the y, in the type of x."""
    shape, dtype, exponent = _broadcast(builder, 2), builder.dtype(0), builder.dtype(1)
    known = builder.maybe_known(1)
    x, y = builder.expr(0, shape), builder.expr(1, shape)
    if dtype.kind == "f" and known is not None and known.size == 1 and float(known.reshape(-1)[0]) == 2.0:
        builder.lazy(0, Apply("{0} * {0}", (x,), dtype), shape)
        return
    if dtype.kind == "f":
        template = "pow({0}, (float){1})"
        if exponent.kind == "f":
            template = "pow({0}, {1})"
    elif exponent.kind == "f":
        template = "rint(pow((float){0}, {1}))"
    else:
        ctype = C_TYPES[dtype.name]
        template = f"ipow_{ctype}({{0}}, ({ctype}){{1}})"
    builder.lazy(0, Apply(template, (x, y), dtype), shape)


@lowers("BitShift")
def lower_shift(node: Node, builder: Builder) -> None:
    """Shifts unsigned integers."""
    shape, dtype = _broadcast(builder, 2), builder.dtype(0)
    template = "{0} << {1}" if builder.attr("direction") == "LEFT" else "{0} >> {1}"
    builder.lazy(0, Apply(template, (builder.expr(0, shape), builder.expr(1, shape)), dtype), shape)


@lowers("Sum", "Max", "Min", "Mean")
def lower_variadic(node: Node, builder: Builder) -> None:
    """Any number of operands, folded from the left."""
    count = len(node.inputs)
    shape, dtype = _broadcast(builder, count), builder.dtype(0)
    template = _binary_templates(dtype)[{"Sum": "Add", "Mean": "Add"}.get(node.op, node.op)]
    result = builder.expr(0, shape)
    for index in range(1, count):
        result = Apply(template, (result, builder.expr(index, shape)), dtype)
    if node.op == "Mean":
        result = Apply("{0} * {1}", (result, Scalar(1.0 / count, FLOAT)), dtype)
    if not isinstance(result, Apply):
        result = Apply("{0}", (result,), dtype)
    builder.lazy(0, result, shape)


@lowers("Clip")
def lower_clip(node: Node, builder: Builder) -> None:
    """min(max(x, low), high); either bound may be left out."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    low, high = ("fmax", "fmin") if dtype.kind == "f" else ("max", "min")
    result = builder.expr(0, shape)
    if builder.has(1):
        result = Apply(f"{low}({{0}}, {{1}})", (result, builder.expr(1, shape)), dtype)
    if builder.has(2):
        result = Apply(f"{high}({{0}}, {{1}})", (result, builder.expr(2, shape)), dtype)
    if not isinstance(result, Apply):
        builder.alias(0, 0, shape)
        return
    builder.lazy(0, result, shape)


@lowers("Where")
def lower_where(node: Node, builder: Builder) -> None:
    """A choice between two tensors, all three broadcast."""
    shape, dtype = _broadcast(builder, 3), builder.dtype(1)
    args = tuple(builder.expr(i, shape) for i in range(3))
    builder.lazy(0, Apply("{0} ? {1} : {2}", args, dtype), shape)


def cast_template(source: np.dtype[Any], target: np.dtype[Any]) -> str:
    """C text that converts {0} as ONNX does: truncation to integers, anything but 0 is true."""
    if target.kind == "b":
        return "{0} != 0"
    if source.kind == "f" and target.kind in "iu":
        # through long: a float beyond the target's range wraps, as NumPy does, and is never undefined in C
        return "(long){0}" if target.itemsize < 8 else f"({C_TYPES[target.name]}){{0}}"
    return "{0}"


@lowers("Cast", "CastLike")
def lower_cast(node: Node, builder: Builder) -> None:
    """Another element type."""
    source = builder.dtype(0)
    if node.op == "CastLike":
        target = builder.dtype(1)
    else:
        target = np.dtype(helper.tensor_dtype_to_np_dtype(builder.attr("to")))
    if target.name not in C_TYPES or source.name not in C_TYPES:
        raise Unsupported(f"Cast from {source} to {target}")
    shape = builder.shape(0)
    if source == target:
        builder.alias(0, 0, shape)
        return
    expr: Expr = Apply(cast_template(source, target), (builder.expr(0, shape),), target)
    if target.name == "float16" and expr_dtype(expr).kind == "f":
        # the value rounds to half when stored; nothing may read the unrounded one
        builder.lazy(0, expr, shape)
        builder.place(builder.result(0))
        return
    builder.lazy(0, expr, shape)


@lowers("BatchNormalization")
def lower_batch_norm(node: Node, builder: Builder) -> None:
    """(x - mean) * scale / sqrt(variance + epsilon) + bias, one of each a channel (inference form)."""
    if builder.attr("training_mode", 0) or len([o for o in node.outputs if o]) > 1:
        lower_training_batch_norm(node, builder)
        return
    shape, dtype = builder.shape(0), builder.dtype(0)
    known = [builder.maybe_known(i) for i in range(1, 5)]
    channels = (shape[1], *(1 for _ in shape[2:])) if len(shape) > 1 else shape
    x = builder.expr(0, shape)
    epsilon = float(builder.attr("epsilon", 1e-5))
    if all(array is not None for array in known):
        scale, bias, mean, variance = (np.asarray(array, np.float32) for array in known)
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        args = (
            x,
            builder.leaf(factor.reshape(channels)),
            builder.leaf((bias - mean * factor).reshape(channels)),
        )
        builder.lazy(0, Apply("{0} * {1} + {2}", args, dtype), shape)
        return
    views = tuple(builder.view(i, channels) for i in range(1, 5))
    template = "({0} - {3}) * {1} / sqrt({4} + {5}) + {2}"
    builder.lazy(0, Apply(template, (x, *views, Scalar(epsilon, FLOAT)), dtype), shape)
