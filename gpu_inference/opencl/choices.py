"""Which kernel variant a plan takes: the tuner's, where it has measured the shape, else the cost model's."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.gemm import GemmChoice, GemmShape
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.tuner import Problem, Tuner, conv_problem, gemm_problem


def default_cache_path() -> Path:
    """Where tuned choices are kept for this user: $POLARSTREAM_CACHE, or the system's cache folder."""
    if folder := os.environ.get("POLARSTREAM_CACHE"):
        return Path(folder) / "tuning.json"
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "polarstream" / "tuning.json"


class Choices:
    """Asks the tuner, and remembers what was asked, so that it can be tuned.

    Args:
        device: what the launches will run on.
        tuner: of the device; None takes the cost model's choices.
    """

    def __init__(self, device: DeviceTraits, tuner: Tuner | None = None) -> None:
        self._device, self._tuner = device, tuner
        self.problems: dict[str, Problem[Any]] = {}
        self._conv: dict[tuple[ConvShape, Epilogue], Problem[ConvChoice]] = {}
        self._gemm: dict[tuple[GemmShape, Epilogue], Problem[GemmChoice]] = {}

    def conv(self, shape: ConvShape, epilogue: Epilogue) -> ConvChoice | None:
        """The measured choice for a convolution, None where there is none."""
        if self._tuner is None:
            return None
        problem = self._conv.get((shape, epilogue))
        if problem is None:
            problem = self._conv[shape, epilogue] = conv_problem(shape, epilogue, self._device)
            self.problems[problem.key] = problem
        return self._tuner.known(problem)

    def gemm(self, shape: GemmShape, epilogue: Epilogue) -> GemmChoice | None:
        """The measured choice for a product, None where there is none."""
        if self._tuner is None:
            return None
        problem = self._gemm.get((shape, epilogue))
        if problem is None:
            problem = self._gemm[shape, epilogue] = gemm_problem(shape, epilogue, self._device)
            self.problems[problem.key] = problem
        return self._tuner.known(problem)
