"""Kernels generated from elementwise expressions, with broadcasting.

One work-item makes four neighbouring floats, or one element of other types. Dimensions that all tensors walk
through alike are merged; sizes and strides are arguments, so that one program serves every shape of the same
broadcasting pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gpu_inference.opencl.expression import C_TYPES, STORAGE_TYPES, Apply, Expr, Leaf, Scalar
from gpu_inference.opencl.launch import Argument, Buf, Kernel, Launch
from gpu_inference.opencl.value import Slice, Value

GROUP: Final = 64

# What templates may call. Integer power by squaring; Python's sign for the remainder.
_FUNCTIONS: Final = """
#define DEFINE_INTEGER(T) \\
static inline T ipow_##T(T x, T n) { T r = 1; if (n < 0) return x == 1 ? 1 : 0; \\
  while (n) { if (n & 1) r *= x; x *= x; n >>= 1; } return r; } \\
static inline T pymod_##T(T a, T b) { T r = a % b; return (r != 0 && ((r < 0) != (b < 0))) ? r + b : r; }
DEFINE_INTEGER(char) DEFINE_INTEGER(short) DEFINE_INTEGER(int) DEFINE_INTEGER(long)
#define DEFINE_UNSIGNED(T) \\
static inline T ipow_##T(T x, T n) { T r = 1; while (n) { if (n & 1) r *= x; x *= x; n >>= 1; } return r; } \\
static inline T pymod_##T(T a, T b) { return a % b; }
DEFINE_UNSIGNED(uchar) DEFINE_UNSIGNED(ushort) DEFINE_UNSIGNED(uint) DEFINE_UNSIGNED(ulong)
"""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that an expression reads.

    Attributes:
        buffer: where it lies.
        strides: elements from one index to the next in each dimension of the loop; 0 broadcasts.
        offset: elements before the first.
    """

    buffer: Buf
    strides: tuple[int, ...]
    offset: int = 0


def merge_dimensions(
    shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Fewer dimensions that every operand walks through in the same order.

    Args:
        shape: of the loop.
        strides: one sequence an operand.

    Returns:
        The merged shape and strides; at least one dimension.
    """
    dims: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if dims and all(m[-1] == s[axis] * size for m, s in zip(merged, strides, strict=True)):
            dims[-1] *= size
            for m, s in zip(merged, strides, strict=True):
                m[-1] = s[axis]
        else:
            dims.append(size)
            for m, s in zip(merged, strides, strict=True):
                m.append(s[axis])
    if not dims:
        return [1], [[0] for _ in strides]
    return dims, merged


def elementwise(
    expr: Expr,
    shape: Sequence[int],
    operands: dict[Value, Operand],
    out: Buf,
    dtype: np.dtype[Any],
    sliced: Slice | None = None,
) -> Launch:
    """The launch that computes `expr` over a dense output, or one that is channels of a wider NHWC tensor.

    Args:
        expr: the expression.
        shape: of the loop, outermost first; the output is dense in this order.
        operands: where each tensor of the expression lies.
        out: the result.
        dtype: its type.
        sliced: where the result lies in the wider tensor; the loop's last dimension is the channels then.
    """
    values = list(operands)
    dims, strides = merge_dimensions(shape, [operands[v].strides for v in values] + [_dense(shape)])
    strides.pop()
    return _Writer(values, dims, strides, (shape[-1], sliced) if sliced else None).launch(
        expr, operands, out, dtype
    )


def _dense(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


class _Writer:
    """The text of one kernel and its arguments."""

    def __init__(
        self,
        values: list[Value],
        dims: list[int],
        strides: list[list[int]],
        target: tuple[int, Slice] | None = None,
    ) -> None:
        self._values, self._dims, self._strides, self._target = values, dims, strides, target
        self._lines: list[str] = []
        self._scalars: list[Argument] = []
        self._scalar_parameters: list[str] = []
        self._seen: dict[int, str] = {}

    def launch(self, expr: Expr, operands: dict[Value, Operand], out: Buf, dtype: np.dtype[Any]) -> Launch:
        count = math.prod(self._dims)
        dense = _dense(self._dims)
        general = [
            number
            for number, s in enumerate(self._strides)
            if operands[self._values[number]].offset
            or (any(s) and [x for x, d in zip(s, self._dims, strict=True) if d > 1] != dense)
        ]
        names = {value: f"v{number}" for number, value in enumerate(self._values)}
        result = f"({C_TYPES[dtype.name]})({self._emit(expr, names)})"
        offsets = {n: o for n in general if (o := operands[self._values[n]].offset)}
        wide = self._by_four(operands, dtype, general)
        items = count // 4 if wide else count
        parameters, arguments = self._parameters(operands, out, dtype, general, items)
        head = ["__kernel void elementwise(", ",\n    ".join(parameters) + ") {"]
        head.append("    const int i = get_global_id(0);\n    if (i >= n) return;")
        head.append(f"    const int e = {'4 * i' if wide else 'i'};")
        head += self._decode(general, offsets)
        text = [_FUNCTIONS] if self._needs_functions(expr) else []
        text += (
            self._wide(head, result, general, dtype) if wide else self._narrow(head, result, general, dtype)
        )
        text.append("}\n")
        moved = sum(min(v.size, count) * v.dtype.itemsize for v in self._values) + count * dtype.itemsize
        return Launch(
            kernel=Kernel(None, "elementwise", (), "\n".join(text)),
            global_size=(-(-items // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=arguments,
            bytes=float(moved),
        )

    def _by_four(self, operands: dict[Value, Operand], dtype: np.dtype[Any], general: list[int]) -> bool:
        """Whether four neighbouring elements are neighbours, or the same one, in every tensor."""
        floats = ("float16", "float32", "float64")
        if math.prod(self._dims) % 4 or any(t.name not in floats for t in (dtype, *self._dtypes())):
            return False
        if general and self._dims[-1] % 4:
            return False
        if self._target and any(
            x % 4 for x in (self._target[0], self._target[1].pitch, self._target[1].offset)
        ):
            return False
        for number in general:
            *outer, last = self._strides[number]
            steps = [*outer, operands[self._values[number]].offset]
            if last not in (0, 1) or (last == 1 and any(step % 4 for step in steps)):
                return False
        return True

    def _dtypes(self) -> list[np.dtype[Any]]:
        return [value.dtype for value in self._values]

    def _place(self) -> str:
        return "(e / yc) * yp + e % yc + yo" if self._target else "e"

    def _narrow(self, head: list[str], result: str, general: list[int], dtype: np.dtype[Any]) -> list[str]:
        """One element a work-item."""
        text = list(head)
        for number, value in enumerate(self._values):
            index = f"x{number}" if number in general else "e" if any(self._strides[number]) else "0"
            ctype = C_TYPES[value.dtype.name]
            read = (
                f"vload_half({index}, a{number})" if value.dtype.name == "float16" else f"a{number}[{index}]"
            )
            text.append(f"    const {ctype} v{number} = {read};")
        text += [f"    {line}" for line in self._lines]
        at = self._place()
        write = f"vstore_half({result}, {at}, y)" if dtype.name == "float16" else f"y[{at}] = {result}"
        return [*text, f"    {write};"]

    def _wide(self, head: list[str], result: str, general: list[int], dtype: np.dtype[Any]) -> list[str]:
        """Four neighbouring floats a work-item: memory in 16 bytes (8 for halves), arithmetic one by one."""
        count = len(self._values)
        inputs = [f"const float v{number}" for number in range(count)] + self._scalar_parameters
        text = [f"static inline float element({', '.join(inputs) or 'void'}) {{"]
        text += [f"    {line}" for line in self._lines]
        text += [f"    return {result};\n}}", *head]
        for number in range(count):
            index = f"x{number}" if number in general else "e" if any(self._strides[number]) else "0"
            half = self._values[number].dtype.name == "float16"
            if self._strides[number][-1] and any(self._strides[number]):
                at = f"a{number} + {index}"
                read = f"vloada_half4(0, {at})" if half else f"*(__global const float4*)({at})"
            else:
                read = f"(float4)({f'vload_half({index}, a{number})' if half else f'a{number}[{index}]'})"
            text.append(f"    const float4 w{number} = {read};")
        scalars = [parameter.split()[-1] for parameter in self._scalar_parameters]
        calls = [
            "element(" + ", ".join([f"w{number}.{part}" for number in range(count)] + scalars) + ")"
            for part in "xyzw"
        ]
        four, at = f"(float4)({', '.join(calls)})", f"y + {self._place()}"
        if dtype.name == "float16":
            return [*text, f"    vstorea_half4({four}, 0, {at});"]
        return [*text, f"    *(__global float4*)({at}) = {four};"]

    def _emit(self, expr: Expr, names: dict[Value, str]) -> str:
        if id(expr) in self._seen:
            return self._seen[id(expr)]
        match expr:
            case Leaf(value):
                return names[value]
            case Scalar(number, dtype):
                name = self._scalar(number, dtype)
            case Apply(template, args, dtype):
                text = template.format(*[self._emit(arg, names) for arg in args])
                name = f"t{len(self._lines)}"
                ctype = C_TYPES[dtype.name]
                self._lines.append(f"const {ctype} {name} = ({ctype})({text});")
        self._seen[id(expr)] = name
        return name

    def _scalar(self, number: float, dtype: np.dtype[Any]) -> str:
        if dtype.kind == "f":
            name = f"s{len(self._scalars)}"
            self._scalars.append(np.float32(number))
            self._scalar_parameters.append(f"const float {name}")
            return name
        if dtype.kind in "ib" and -(2**31) <= int(number) < 2**31:
            name = f"s{len(self._scalars)}"
            self._scalars.append(np.int32(int(number)))
            self._scalar_parameters.append(f"const int {name}")
            return f"(({C_TYPES[dtype.name]}){name})"
        suffix = "UL" if dtype.kind == "u" else "L"
        return f"(({C_TYPES[dtype.name]}){int(number)}{suffix})"

    def _parameters(
        self,
        operands: dict[Value, Operand],
        out: Buf,
        dtype: np.dtype[Any],
        general: list[int],
        count: int,
    ) -> tuple[list[str], tuple[Argument, ...]]:
        parameters, arguments = [], list[Argument]()
        for number, value in enumerate(self._values):
            ctype = STORAGE_TYPES.get(value.dtype.name, C_TYPES[value.dtype.name])
            parameters.append(f"__global const {ctype}* restrict a{number}")
            arguments.append(operands[value].buffer)
        ctype = STORAGE_TYPES.get(dtype.name, C_TYPES[dtype.name])
        parameters.append(f"__global {ctype}* y")
        arguments.append(out)
        parameters.append("const int n")
        arguments.append(np.int32(count))
        if general:
            for axis in range(1, len(self._dims)):
                parameters.append(f"const int d{axis}")
                arguments.append(np.int32(self._dims[axis]))
            for number in general:
                for axis in range(len(self._dims)):
                    parameters.append(f"const int p{number}_{axis}")
                    arguments.append(np.int32(self._strides[number][axis]))
                if offset := operands[self._values[number]].offset:
                    parameters.append(f"const int f{number}")
                    arguments.append(np.int32(offset))
        if self._target:
            channels, at = self._target
            parameters += ["const int yc", "const int yp", "const int yo"]
            arguments += [np.int32(channels), np.int32(at.pitch), np.int32(at.offset)]
        return parameters + self._scalar_parameters, tuple(arguments + self._scalars)

    def _decode(self, general: list[int], offsets: dict[int, int]) -> list[str]:
        if not general:
            return []
        lines = ["    int r = e;"]
        inner = range(len(self._dims) - 1, 0, -1)
        lines += [f"    const int k{axis} = r % d{axis}; r /= d{axis};" for axis in inner]
        lines.append("    const int k0 = r;")
        for number in general:
            terms = " + ".join(f"k{axis} * p{number}_{axis}" for axis in range(len(self._dims)))
            first = f" + f{number}" if number in offsets else ""
            lines += [f"    const int x{number} = {terms}{first};"]
        return lines

    def _needs_functions(self, expr: Expr) -> bool:
        match expr:
            case Apply(template, args, _):
                return "ipow_" in template or "pymod_" in template or any(map(self._needs_functions, args))
        return False
