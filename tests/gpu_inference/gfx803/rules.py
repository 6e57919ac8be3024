"""What an RX 580 can't forgive, checked on the code that its compiler makes."""

from __future__ import annotations

from functools import cache

from gpu_inference.opencl import gfx803
from gpu_inference.opencl.launch import Kernel

# Where the time of a network goes: they must keep the card busy.
HOT = {"conv_nhwc", "conv_uniform", "gemm"}
# Library functions with a v_fma_f32 or two, in kernels that wait for memory and not for arithmetic.
LIBRARY_FMA = ("erf(", "expm1(", "pow(")
MAX_LIBRARY_FMA = 4  # an element


@cache
def report_of(kernel: Kernel) -> gfx803.IsaReport:
    """The kernel's own report; each distinct kernel is compiled once a test session."""
    (found,) = (report for report in gfx803.inspect(kernel) if report.name == kernel.name)
    return found


def broken_rules(kernel: Kernel) -> str:
    """The rules that the kernel breaks with what it became, "" for a good one."""
    report = report_of(kernel)
    text = kernel.source or ""
    elements = 4 if "float4" in text else 1  # that a work-item makes
    by_library = kernel.name == "lrn" or any(name in text for name in LIBRARY_FMA)
    rules = {
        "spills": report.spills == 0,
        "v_fma_f32": report.slow_fma <= (MAX_LIBRARY_FMA * elements if by_library else 0),
        "local memory": report.local_bytes <= 32768,
        "work-group": report.group <= 256,
        "a wave": report.waves >= 1,
        "3 waves or 90% mad": report.name not in HOT or report.waves >= 3 or report.mad_share >= 0.9,
        "4 waves, it waits for memory": kernel.file is not None or report.waves >= 4,
    }
    failed = [rule for rule, holds in rules.items() if not holds]
    return f"{', '.join(failed)}: {report} [{variant(kernel)}]" if failed else ""


def variant(kernel: Kernel) -> str:
    """Name and defines, for messages."""
    return f"{kernel.name} " + " ".join(f"{name}={value}" for name, value in kernel.defines)
