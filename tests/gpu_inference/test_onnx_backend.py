"""The ONNX node tests that our engine must keep passing, with nothing left to onnxruntime."""

from __future__ import annotations

import pytest

from gpu_inference import conformance


@pytest.mark.parametrize("name", conformance.must_pass())
def test_node(name: str) -> None:
    conformance.check_node_test(name)
