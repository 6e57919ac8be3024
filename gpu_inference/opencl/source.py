"""The text of the hand-written kernels, with their includes put in place."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from gpu_inference.errors import KernelError

KERNELS: Final = Path(__file__).parent / "kernels"

# What every kernel is built with. Denormals are flushed because gfx803 has a full-rate mul-add (v_mac_f32)
# only without them; mad() may then be one instruction everywhere.
BUILD_OPTIONS: Final = ("-cl-std=CL1.2", "-cl-mad-enable", "-cl-denorms-are-zero")

_INCLUDE: Final = re.compile(r'^[ \t]*#include "([\w.]+)"[ \t]*$', re.MULTILINE)


@cache
def kernel_source(file: str) -> str:
    """The source of `file` in kernels/ with each `#include "name"` replaced by that file's text.

    Drivers disagree on where `-I` looks and on caching included files, so they get one text.

    Raises:
        KernelError: there is no such file.
    """
    path = KERNELS / file
    if not path.is_file():
        raise KernelError(
            f"no kernel source {file!r} in {KERNELS}: reinstall the package, or fix Kernel.file"
        )
    return _INCLUDE.sub(lambda match: kernel_source(match.group(1)), path.read_text(encoding="utf-8"))
