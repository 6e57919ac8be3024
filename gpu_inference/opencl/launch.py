"""What planners produce and the replay list executes: kernels, their launches, and their buffers' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel function of one program.

    Attributes:
        file: name in kernels/, for example "conv_nhwc.cl"; None: `source` is the text.
        name: the __kernel function.
        defines: sorted -D options.
        source: generated text, exactly when `file` is None.
    """

    file: str | None
    name: str
    defines: tuple[tuple[str, int | str], ...] = ()
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Buf:
    """A place in device memory that the plan names.

    Attributes:
        tensor: key of an arena slot or a constant; only the plan that made it can resolve it.
        offset_bytes: from its start; a multiple of the device's base alignment (128 suits all).
    """

    tensor: str
    offset_bytes: int = 0


Argument: TypeAlias = Buf | np.int32 | np.uint32 | np.float32


@dataclass(slots=True)
class Launch:
    """One enqueued kernel.

    Attributes:
        kernel: what runs.
        global_size: work-items; a launch with a zero extent is dropped.
        local_size: work-group; None lets the driver choose.
        args: in the kernel's order.
        flops: of this launch, multiply-adds count two; for the profiler.
        bytes: that it has to move at least; for the profiler.
        node: the ONNX node that it belongs to; the planner fills it in.
    """

    kernel: Kernel
    global_size: tuple[int, ...]
    local_size: tuple[int, ...] | None
    args: tuple[Argument, ...]
    flops: float = 0.0
    bytes: float = 0.0
    node: str = ""
