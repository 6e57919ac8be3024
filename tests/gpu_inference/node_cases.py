"""The node tests of onnx.backend.test: which ones our engine must pass, and how one is run.

`python -m tests.gpu_inference.node_cases` runs all of them and rewrites onnx_node_tests.txt from what passes.
"""

from __future__ import annotations

import glob
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

import gpu_inference

LIST = Path(__file__).with_name("onnx_node_tests.txt")


@cache
def cases() -> dict[str, Any]:
    """Every node test of the installed onnx, by name."""
    return {case.name: case for case in load_model_tests(kind="node")}


def listed() -> list[str]:
    """Names that must pass."""
    return [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]


def _array(item: Any) -> np.ndarray:
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else np.asarray(item)


def _read(pattern: str) -> list[np.ndarray]:
    paths = sorted(glob.glob(pattern), key=lambda path: int(path.rsplit("_", 1)[1].removesuffix(".pb")))
    return [numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]


def _data_sets(case: Any) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    if case.data_sets:
        return [([_array(i) for i in ins], [_array(o) for o in outs]) for ins, outs in case.data_sets]
    folders = sorted(glob.glob(os.path.join(case.model_dir, "test_data_set_*")))
    return [(_read(f"{folder}/input_*.pb"), _read(f"{folder}/output_*.pb")) for folder in folders]


def check(name: str, engine: Any = "opencl") -> None:
    """Runs one case; elements agree within the case's tolerance, or 1e-3 relative where that is more."""
    case = cases()[name]
    model = case.model or onnx.load(os.path.join(case.model_dir, "model.onnx"))
    session = gpu_inference.load(model.SerializeToString(), engine=engine, fallback=False)
    try:
        sets = _data_sets(case)
        assert sets
        for inputs, wanted in sets:
            given = {info.name: array for info, array in zip(session.inputs, inputs, strict=False)}
            results = session.run(given)
            for info, want in zip(session.outputs, wanted, strict=True):
                got = results[info.name]
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                np.testing.assert_allclose(got, want, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-7))
    finally:
        session.close()


def main() -> None:
    """Rewrites the list: keeps comments, adds what passes, and says what no longer does."""
    before, passing = set(listed()), []
    for name in sorted(cases()):
        try:
            check(name)
        except Exception as error:
            if name in before:
                print(f"{name} fails now: {str(error)[:200]}")
        else:
            passing.append(name)
    LIST.write_text(
        "# node tests of onnx.backend.test that the engine passes; see node_cases.py\n"
        + "\n".join(passing)
        + "\n"
    )
    print(f"{len(passing)} of {len(cases())} pass, {len(before)} did before")


if __name__ == "__main__":
    sys.exit(main())
