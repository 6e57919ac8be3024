"""The node tests of ONNX itself on a device: what the tests hold the engine to, and what an owner runs.

    result = run_node_tests(device="580", progress=print)
    result.passed, result.failed

They come with the onnx package (onnx.backend.test): a small model, inputs and outputs for every operator and
most of its options. onnx_node_tests.txt names those that the engine passes by itself, with nothing left to
onnxruntime; on a device that is all right it passes all of them.
"""

from __future__ import annotations

import glob
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

import gpu_inference
from gpu_inference.session import EngineName

LIST: Final = Path(__file__).with_name("onnx_node_tests.txt")
#: Elements agree within a case's own tolerances, or these where they are wider.
RELATIVE: Final = 1e-3
ABSOLUTE: Final = 1e-7

_Array: TypeAlias = np.ndarray[Any, Any]


class Mismatch(AssertionError):
    """A node test whose result is not the expected one."""


@dataclass(frozen=True, slots=True)
class NodeTests:
    """What came of the node tests.

    Attributes:
        passed: how many.
        failed: the others that ran, by name, with the reason.
        not_run: names, where the time was over.
        seconds: that it took.
    """

    passed: int
    failed: dict[str, str]
    not_run: tuple[str, ...]
    seconds: float


@cache
def node_cases() -> dict[str, Any]:
    """Every node test of the installed onnx, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's and onnx's, while they make the cases
        return {case.name: case for case in load_model_tests(kind="node")}


def must_pass() -> list[str]:
    """Names of all that the engine passes."""
    return [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]


def device_tests(*, quick: bool = False) -> list[str]:
    """Those that say something about a device: of what must pass, without operators spelt out in others.

    Args:
        quick: the first of each operator only.
    """
    cases = node_cases()
    names = [name for name in must_pass() if name in cases and "_expanded" not in name]
    if not quick:
        return names
    first: dict[str, str] = {}
    for name in names:
        first.setdefault("+".join(node.op_type for node in _model(cases[name]).graph.node), name)
    return list(first.values())


def check_node_test(name: str, device: str | int | None = None, engine: EngineName = "opencl") -> None:
    """Runs one case.

    Args:
        name: of the case.
        device: as for `gpu_inference.load`.
        engine: likewise.

    Raises:
        Mismatch: a result is wrong; the message says how.
        AssertionError: likewise.
        EngineError: the engine can't run it.
    """
    case = node_cases()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = gpu_inference.load(_model(case).SerializeToString(), engine, device, fallback=False)
        try:
            sets = _data_sets(case)
            if not sets:
                raise Mismatch(f"{name} has no data: reinstall the onnx package")
            for inputs, wanted in sets:
                given = {info.name: array for info, array in zip(session.inputs, inputs, strict=False)}
                results = session.run(given)
                for info, want in zip(session.outputs, wanted, strict=True):
                    _compare(info.name, results[info.name], want, case)
        finally:
            session.close()


def run_node_tests(
    device: str | int | None = None,
    names: Sequence[str] | None = None,
    *,
    limit_s: float | None = None,
    progress: Callable[[NodeTests, str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> NodeTests:
    """Runs node tests one after another.

    Args:
        device: as for `gpu_inference.load`.
        names: which; None for `device_tests()`.
        limit_s: no test begins after so many seconds.
        progress: called before each test with what has come of the others, and its name.
        clock: seconds that only rise.
    """
    todo = device_tests() if names is None else list(names)
    began = clock()
    failed: dict[str, str] = {}
    done = 0

    def so_far() -> NodeTests:
        return NodeTests(done - len(failed), dict(failed), tuple(todo[done:]), clock() - began)

    for name in todo:
        if limit_s is not None and clock() - began >= limit_s:
            break
        if progress is not None:
            progress(so_far(), name)
        try:
            check_node_test(name, device)
        except Exception as error:  # whatever a driver does to one test, the others still count
            text = " ".join(str(error).split())[:400]
            failed[name] = f"{type(error).__name__}: {text}"
        done += 1
    return so_far()


def _compare(name: str, got: _Array, want: _Array, case: Any) -> None:
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        raise Mismatch(
            f"output {name!r} is {got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}"
        )
    np.testing.assert_allclose(got, want, rtol=max(case.rtol, RELATIVE), atol=max(case.atol, ABSOLUTE))


def _model(case: Any) -> Any:
    return case.model or onnx.load(os.path.join(case.model_dir, "model.onnx"))


def _array(item: Any) -> _Array:
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else np.asarray(item)


def _read(pattern: str) -> list[_Array]:
    paths = sorted(glob.glob(pattern), key=lambda path: int(path.rsplit("_", 1)[1].removesuffix(".pb")))
    return [numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]


def _data_sets(case: Any) -> list[tuple[list[_Array], list[_Array]]]:
    if case.data_sets:
        return [([_array(i) for i in ins], [_array(o) for o in outs]) for ins, outs in case.data_sets]
    folders = sorted(glob.glob(os.path.join(case.model_dir, "test_data_set_*")))
    return [(_read(f"{folder}/input_*.pb"), _read(f"{folder}/output_*.pb")) for folder in folders]
