from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.detectors.laws import BadLaw, Law, evaluate, parse_law

FIELDS = ("level", "inflow", "outflow", "Volume flow")
CONSTANTS = {"area": 2.5, "g": 9.81}


def side(law: Law, part: int, values: dict[str, float], slopes: list[float] | None = None) -> float:
    """Run one side of a law on values by field."""
    code = np.array(law.code, np.int32).reshape(-1, 2)
    now = np.array([values[FIELDS[index]] for index in law.uses])
    return evaluate(
        code,
        *law.parts[part],
        np.array([*law.numbers, 0.0]),
        now,
        np.array(slopes or [0.0]),
        np.zeros(law.depth),
    )


def expressions() -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["level", "inflow", "outflow", "area", "g", "2", "0.5", "1e-3", "-3"])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
            inner.map(lambda e: f"-{e}"),
            st.tuples(st.sampled_from(["abs", "sin", "cos"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
            st.tuples(st.sampled_from(["min", "max"]), inner, inner, inner).map(
                lambda t: f"{t[0]}({t[1]}, {t[2]}, {t[3]})"
            ),
        ),
        max_leaves=12,
    )


@settings(max_examples=150, deadline=None)
@given(text=expressions())
def test_a_program_computes_what_python_computes(text: str) -> None:
    law = parse_law(f"level = {text}", FIELDS, CONSTANTS)
    values = {"level": 1.25, "inflow": 3.0, "outflow": -0.75}
    names: dict[str, Any] = {**values, **CONSTANTS, "sin": math.sin, "cos": math.cos}
    try:
        expected = float(eval(text, names))
    except ZeroDivisionError:
        return
    np.testing.assert_allclose(side(law, 1, values), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqrt(inflow)", 3.0),
        ("exp(level) + log(inflow)", math.exp(2) + math.log(9)),
        ("inflow ** 2 ** 0.5", 9**2**0.5),
        ("(-inflow) ** 2", 81.0),
        ("'Volume flow' * 2", 14.0),
        ("(level +\n inflow)", 11.0),
    ],
)
def test_functions_powers_and_quoted_names(text: str, expected: float) -> None:
    law = parse_law(f"level = {text}", FIELDS, CONSTANTS)
    found = side(law, 1, {"level": 2.0, "inflow": 9.0, "outflow": 0.0, "Volume flow": 7.0})
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("text", ["sqrt(level)", "log(level)", "level ** 0.5", "1 / (level - level)"])
def test_what_has_no_value_is_not_a_number_or_infinite(text: str) -> None:
    assert not math.isfinite(
        side(parse_law(f"inflow = {text}", FIELDS, {}), 1, {"level": -1.0, "inflow": 0.0})
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d(level)/dt", 5.0),
        ("area * d(level)/dt", 12.5),
        ("-d(level)/dt", -5.0),
        ("-area * d(level)/dt / 2", -6.25),
        ("inflow * (d(level) / dt + 1)", 18.0),
        ("d(area * level)/dt", 5.0),
    ],
)
def test_derivatives_are_taken_from_the_slopes(text: str, expected: float) -> None:
    law = parse_law(f"{text} = 0", FIELDS, CONSTANTS)
    assert law.slopes == 1
    values = {"level": 2.0, "inflow": 3.0}
    assert side(law, 0, values, [5.0]) == expected
    assert side(law, 2, values) == (5.0 if "area * level" in text else 2.0)


def faults(text: str) -> list[str]:
    with pytest.raises(BadLaw) as caught:
        parse_law(text, FIELDS, CONSTANTS)
    return caught.value.faults


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("level = inflw", 9, "did you mean 'inflow'"),
        ("level = 2 * x", 13, "fields level, inflow, outflow, Volume flow, constants area, g"),
        ("level = inflow +", 17, "no formula"),
        ("level = tan(inflow)", 9, "'tan' is no function: use sqrt"),
        ("level = sqrt(inflow, 2)", 9, "takes one value, not 2"),
        ("level = max(inflow)", 9, "two or more values, not 1"),
        ("level = inflow if outflow else 1", 9, "can't hold this"),
        ("level = inflow.real", 9, "can't hold this"),
        ("level = __import__('os').system('ls')", 9, "can't hold this"),
        ("level = [inflow]", 9, "can't hold this"),
        ("level = inflow % 2", 9, "can't hold this"),
        ("level = 1j", 9, "can't hold this"),
        ("level = True", 9, "no numbers"),
        ("level = 1e999", 9, "beyond"),
        ("d(level) = inflow", 1, "d(...)/dt"),
        ("d(d(level)/dt)/dt = inflow", 3, "can't hold another"),
        ("d(level, 2)/dt = inflow", 1, "one expression"),
        ("(d(level)/dt) ** 2 = inflow", 1, "only be added"),
        ("d(level)/dt * d(inflow)/dt = 1", 1, "only be added"),
        ("1 / (d(level)/dt) = inflow", 1, "only be added"),
        ("abs(d(level)/dt) = inflow", 5, "can't take a derivative"),
        ("höhe = level", 1, "unknown"),
        ("level + 2 * höhe + größe = 1", 13, "unknown"),
    ],
)
def test_a_fault_is_told_with_its_place(text: str, place: int, what: str) -> None:
    first = faults(text)[0]
    assert what in first
    found = re.match(r"at character (\d+) of", first)
    assert found is not None
    assert int(found[1]) == place


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("level", "0 equals signs"),
        ("level == inflow", "2 equals signs"),
        ("level =", "nothing after"),
        ("= level", "nothing before"),
        ("1 = 2", "holds no field"),
        ("level = " + "+" * 2000, "characters"),
        ("level = " + "-" * 900 + "1", "nested too deeply"),
        ("level = " + "(" * 400 + "1" + ")" * 400, "at character"),
        ("level = inflow\0", "at character"),
    ],
)
def test_what_is_no_law_is_refused(text: str, what: str) -> None:
    assert what in faults(text)[0]


def test_every_fault_is_told_at_once() -> None:
    assert len(faults("levl + tan(inflow) = x * d(levl)/dt")) == 4
