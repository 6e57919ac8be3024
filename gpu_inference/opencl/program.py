"""Kernels built on a device: a program for each source and set of defines, shared by all its sessions."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from gpu_inference.errors import KernelError
from gpu_inference.opencl.launch import Kernel
from gpu_inference.opencl.source import BUILD_OPTIONS, kernel_source


class ProgramCache:
    """Builds programs and keeps them. The drivers' and pyopencl's own caches keep binaries across processes.

    Args:
        context: a pyopencl.Context with one device.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._programs)

    def kernel(self, kernel: Kernel) -> Any:
        """A new pyopencl.Kernel, whose arguments belong to the caller alone.

        Raises:
            KernelError: the driver refuses the source; the message has its log.
        """
        import pyopencl as cl

        key = (kernel.file, kernel.source, kernel.defines)
        with self._lock:
            program = self._programs.get(key)
            if program is None:
                program = self._programs[key] = self._build(kernel)
        return cl.Kernel(program, kernel.name)

    def _build(self, kernel: Kernel) -> Any:
        import pyopencl as cl

        source = kernel.source if kernel.file is None else kernel_source(kernel.file)
        options = [*BUILD_OPTIONS, *(f"-D{name}={value}" for name, value in kernel.defines)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyopencl warns of any compiler output
            try:
                return cl.Program(self._context, source).build(options=options)
            except cl.RuntimeError as error:
                raise KernelError(
                    f"kernel {kernel.name!r} of {kernel.file or 'generated source'} doesn't build with "
                    f"{' '.join(options)}: report it with this log:\n{error}"
                ) from error
