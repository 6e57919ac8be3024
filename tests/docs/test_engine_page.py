"""The engine's page lists the operators that have kernels."""

from __future__ import annotations

import re
from pathlib import Path

import gpu_inference.opencl.lowering  # noqa: F401  (registers them)
from gpu_inference.opencl.lowering.registry import LOWERINGS

PAGE = (Path(__file__).parents[2] / "docs" / "engine.md").read_text()


def test_the_page_lists_exactly_the_operators_that_there_are() -> None:
    part = PAGE.split("<!-- operators: begin -->")[1].split("<!-- operators: end -->")[0]
    listed = re.findall(r"`(\w+)`", part.split("\n\n")[0])
    assert listed == sorted({op for domain, op in LOWERINGS if domain == ""})
