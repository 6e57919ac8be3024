"""The ONNX node tests that our engine must keep passing, with nothing left to onnxruntime."""

from __future__ import annotations

import warnings

import pytest

from tests.gpu_inference import node_cases


@pytest.mark.parametrize("name", node_cases.listed())
def test_node(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's and onnx's, while they make the case
        node_cases.check(name)
