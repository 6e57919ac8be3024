"""Laws that users state, from text to a program that a compiled loop runs; nothing is ever `eval`ed.

A law is an equation of a stream's fields and of constants, `d(level)/dt = (inflow - outflow) / area`. It may
hold numbers, `+ - * / **`, brackets, the functions of `FUNCTIONS`, and `d(...)/dt`, the derivative in time,
which may be added and multiplied by what holds no derivative. A field whose name is no plain word is quoted:
`'Volume flow' = 2`.

Python's parser reads each side, everything that is not in the list above is refused with its place, and what
is left becomes a postfix program: a stack of numbers, one operation after the other.
"""

from __future__ import annotations

import ast
import difflib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from anomaly.compiled import compiled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from anomaly.detector import FloatArray

#: A longer text is no law.
LONGEST: Final = 1_000
#: Expressions inside of expressions.
DEEPEST: Final = 100

#: Operations; the first three have an argument: a number, which field, which derivative.
NUMBER, FIELD, SLOPE, NEGATE, ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER = range(9)
SQRT, ABS, EXP, LOG, SIN, COS, MIN, MAX = range(9, 17)

FUNCTIONS: Final = {
    "sqrt": SQRT,
    "abs": ABS,
    "exp": EXP,
    "log": LOG,
    "sin": SIN,
    "cos": COS,
    "min": MIN,
    "max": MAX,
}
_BINARY: Final[dict[type[ast.operator], int]] = {
    ast.Add: ADD,
    ast.Sub: SUBTRACT,
    ast.Mult: MULTIPLY,
    ast.Div: DIVIDE,
    ast.Pow: POWER,
}


class BadLaw(Exception):
    """A text is no law; `faults` says all that is wrong with it, each with its place."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))


@dataclass(slots=True)
class Law:
    """A law as a program.

    Attributes:
        left: its left side, as text; `right` likewise.
        uses: which of the stream's fields it needs; a program counts within these.
        code: int32 [steps, 2], operations and their arguments.
        numbers: float64, what NUMBER picks from.
        parts: int32 [parts, 2], begin and end in `code`: left and right side, then what is derived.
        depth: places on the stack.
    """

    left: str
    right: str
    uses: list[int] = field(default_factory=list)
    code: list[tuple[int, int]] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    depth: int = 1

    @property
    def slopes(self) -> int:
        """How many derivatives it has."""
        return len(self.parts) - 2


def parse_law(text: str, fields: Sequence[str], constants: Mapping[str, float]) -> Law:
    """Read a law.

    Args:
        text: the law.
        fields: names that mean a field.
        constants: names that mean a number.

    Raises:
        BadLaw: with all that is wrong with it.
    """
    if len(text) > LONGEST:
        raise BadLaw([f"has {len(text)} characters, {LONGEST} are the most: make it two laws"])
    if text.count("=") != 1:
        raise BadLaw([f"has {text.count('=')} equals signs, not one: write it as 'this = that'"])
    left, _, right = text.partition("=")
    reader = _Reader(Law(left.strip(), right.strip()), text, fields, constants)
    inner: list[list[tuple[int, int]]] = []
    sides = [reader.side(left, 0, inner), reader.side(right, len(left) + 1, inner)]
    law = reader.law
    if not reader.faults and not law.uses:
        reader.faults.append("holds no field: a law is about what is measured")
    if reader.faults:
        raise BadLaw(reader.faults)
    for part in (*sides, *inner):
        law.parts.append((len(law.code), len(law.code) + len(part)))
        law.code += part
        law.depth = max(law.depth, _depth(part))
    return law


class _Reader:
    """Turns the sides of one law into code, and collects faults."""

    def __init__(self, law: Law, text: str, fields: Sequence[str], constants: Mapping[str, float]) -> None:
        self.law, self.text = law, text
        self.fields, self.constants = list(fields), dict(constants)
        self.faults: list[str] = []
        self._source, self._shift = "", 0
        self._inner: list[list[tuple[int, int]]] = []
        self._deep = 0

    def side(self, source: str, start: int, inner: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
        """Return the code of one side, which begins at character `start` of the law."""
        stripped = source.strip()
        # in brackets, so that Python's parser takes any layout
        self._source, self._inner = f"({stripped}\n)", inner
        self._shift = start + len(source) - len(source.lstrip()) - 1
        if not stripped:
            self.faults.append(f"has nothing {'before' if start == 0 else 'after'} the equals sign")
            return []
        code: list[tuple[int, int]] = []
        try:
            self._deep = 0
            self._expression(ast.parse(self._source, mode="eval").body, code, inside=False)
        except SyntaxError as error:
            place = self._character(error.lineno or 1, (error.offset or 1) - 1)
            self._fault(place, f"this is no formula ({error.msg})")
        except ValueError as error:
            self._fault(self._shift + 1, f"this is no formula ({error})")
        except (RecursionError, MemoryError):
            self._fault(self._shift + 1, "this side is nested too deeply: make it two laws")
        return code

    def _character(self, line: int, column: int) -> int:
        """Return the place in the law of a place in the source, both from 0."""
        before = "".join(self._source.splitlines(keepends=True)[: line - 1])
        return min(max(self._shift + len(before) + column, 0), len(self.text.rstrip()))

    def _place(self, node: ast.AST) -> int:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        # Python counts bytes
        text = self._source.splitlines()[line - 1].encode()[:column].decode(errors="replace")
        return self._character(line, len(text))

    def _fault(self, place: int, what: str) -> None:
        self.faults.append(f"at character {place + 1} of '{self.text}': {what}")

    def _refuse(self, node: ast.AST, what: str) -> None:
        self._fault(self._place(node), what)

    def _expression(self, node: ast.expr, code: list[tuple[int, int]], *, inside: bool) -> bool:
        """Append the code of an expression; returns whether it holds a derivative.

        Args:
            node: the expression.
            code: appended to.
            inside: it is inside of d(...).
        """
        self._deep += 1
        if self._deep > DEEPEST:
            raise RecursionError
        try:
            return self._match(node, code, inside=inside)
        finally:
            self._deep -= 1

    def _match(self, node: ast.expr, code: list[tuple[int, int]], *, inside: bool) -> bool:
        match node:
            case ast.Constant(value=str() as name):
                self._name(node, name, code)
            case ast.Constant(value=bool()):
                self._refuse(node, "true and false are no numbers")
            case ast.Constant(value=int() | float() as value):
                self._number(node, value, code)
            case ast.Name(id=name):
                self._name(node, name, code)
            case ast.BinOp(
                left=ast.Call(func=ast.Name(id="d")) as call, op=ast.Div(), right=ast.Name(id="dt")
            ):
                return self._derivative(call, code, inside=inside)
            case ast.BinOp(op=ast.Div(), right=ast.Name(id="dt")) if (slope := _drawn_in(node)) is not None:
                return self._expression(slope, code, inside=inside)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self._binary(node, left, op, right, code, inside=inside)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                slope_inside = self._expression(operand, code, inside=inside)
                if isinstance(sign, ast.USub):
                    code.append((NEGATE, 0))
                return slope_inside
            case ast.Call(func=ast.Name(id="d")):
                self._refuse(node, "write a derivative as d(...)/dt")
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                self._function(node, name, args, code, inside=inside)
            case _:
                self._refuse(node, f"a law can't hold this: use fields, constants, + - * / **, {_known()}")
        return False

    def _binary(
        self,
        node: ast.expr,
        left: ast.expr,
        op: ast.operator,
        right: ast.expr,
        code: list[tuple[int, int]],
        *,
        inside: bool,
    ) -> bool:
        first = self._expression(left, code, inside=inside)
        second = self._expression(right, code, inside=inside)
        code.append((_BINARY[type(op)], 0))
        match op:
            case ast.Add() | ast.Sub():
                linear = True
            case ast.Mult():
                linear = not (first and second)
            case ast.Div():
                linear = not second
            case _:
                linear = not (first or second)
        if not linear:
            self._refuse(node, "a derivative may only be added, and multiplied by what holds none")
        return first or second

    def _derivative(self, call: ast.Call, code: list[tuple[int, int]], *, inside: bool) -> bool:
        if inside:
            self._refuse(call, "a derivative can't hold another: measure the inner one, or make it two laws")
            return True
        if len(call.args) != 1 or call.keywords:
            self._refuse(call, f"d takes one expression, not {len(call.args) + len(call.keywords)}")
            return True
        inner: list[tuple[int, int]] = []
        self._expression(call.args[0], inner, inside=True)
        code.append((SLOPE, len(self._inner)))
        self._inner.append(inner)
        return True

    def _function(
        self, node: ast.expr, name: str, args: list[ast.expr], code: list[tuple[int, int]], *, inside: bool
    ) -> None:
        operation = FUNCTIONS.get(name)
        if operation is None:
            self._refuse(node, f"'{name}' is no function: use {_known()}")
            return
        folded = operation in (MIN, MAX)
        if (len(args) < 2) if folded else (len(args) != 1):
            wanted = "two or more values" if folded else "one value"
            self._refuse(node, f"{name} takes {wanted}, not {len(args)}")
            return
        for i, argument in enumerate(args):
            if self._expression(argument, code, inside=inside):
                self._refuse(argument, f"{name} can't take a derivative: it may only be added and multiplied")
            if i or not folded:
                code.append((operation, 0))

    def _number(self, node: ast.expr, value: float, code: list[tuple[int, int]]) -> None:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= 1e150:
            self._refuse(node, "the number is beyond 1e150")
        code.append((NUMBER, len(self.law.numbers)))
        self.law.numbers.append(number)

    def _name(self, node: ast.expr, name: str, code: list[tuple[int, int]]) -> None:
        if name in self.fields:
            index = self.fields.index(name)
            if index not in self.law.uses:
                self.law.uses.append(index)
            code.append((FIELD, self.law.uses.index(index)))
        elif name in self.constants:
            self._number(node, self.constants[name], code)
        else:
            known = [*self.fields, *self.constants]
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            constants = f"constants {', '.join(self.constants)}" if self.constants else "no constants"
            self._refuse(
                node, f"'{name}' is unknown: {hint}there are the fields {', '.join(self.fields)}, {constants}"
            )


def _drawn_in(node: ast.BinOp) -> ast.expr | None:
    """Return `a * (d(x)/dt)` for `a * d(x)/dt`, which Python reads as `(a * d(x)) / dt`; else None."""
    match node.left:
        case ast.Call(func=ast.Name(id="d")):
            return node
        case ast.UnaryOp(op=sign, operand=operand):
            inner = _drawn_in(ast.copy_location(ast.BinOp(operand, node.op, node.right), operand))
            return None if inner is None else ast.copy_location(ast.UnaryOp(sign, inner), node)
        case ast.BinOp(left=factor, op=ast.Mult() | ast.Div() as op, right=right):
            inner = _drawn_in(ast.copy_location(ast.BinOp(right, node.op, node.right), right))
            return None if inner is None else ast.copy_location(ast.BinOp(factor, op, inner), node)
    return None


def _known() -> str:
    return f"{', '.join(FUNCTIONS)} and d(...)/dt"


def _depth(code: Sequence[tuple[int, int]]) -> int:
    """Return how many places on the stack a program takes."""
    used = most = 0
    for operation, _ in code:
        if operation <= SLOPE:
            used += 1
        elif ADD <= operation <= POWER or operation in (MIN, MAX):
            used -= 1
        most = max(most, used)
    return most


@compiled
def evaluate(
    code: NDArray[np.int32],
    begin: int,
    end: int,
    numbers: FloatArray,
    values: Any,
    slopes: FloatArray,
    stack: FloatArray,
) -> float:
    """Run a part of a program.

    Args:
        code: int32 [steps, 2].
        begin: the first step of the part.
        end: after the last one.
        numbers: float64, what NUMBER picks from.
        values: float64, of the fields that the law uses.
        slopes: float64, of its derivatives.
        stack: float64 [depth], written over.
    """
    top = -1
    for step in range(begin, end):
        operation, argument = code[step, 0], code[step, 1]
        if operation == NUMBER:
            top += 1
            stack[top] = numbers[argument]
        elif operation == FIELD:
            top += 1
            stack[top] = values[argument]
        elif operation == SLOPE:
            top += 1
            stack[top] = slopes[argument]
        elif operation == NEGATE:
            stack[top] = -stack[top]
        elif operation == SQRT:
            stack[top] = math.sqrt(stack[top])
        elif operation == ABS:
            stack[top] = abs(stack[top])
        elif operation == EXP:
            stack[top] = math.exp(stack[top])
        elif operation == LOG:
            stack[top] = math.log(stack[top])
        elif operation == SIN:
            stack[top] = math.sin(stack[top])
        elif operation == COS:
            stack[top] = math.cos(stack[top])
        else:
            top -= 1
            a, b = stack[top], stack[top + 1]
            if operation == ADD:
                stack[top] = a + b
            elif operation == SUBTRACT:
                stack[top] = a - b
            elif operation == MULTIPLY:
                stack[top] = a * b
            elif operation == DIVIDE:
                stack[top] = a / b
            elif operation == POWER:
                stack[top] = a**b
            elif operation == MIN:
                # not min(): a NaN stays one
                stack[top] = a if a < b or a != a else b
            else:
                stack[top] = a if a > b or a != a else b
    return float(stack[top])
