"""Enqueues a list of preset kernels as fast as the driver lets one: a compiled loop, no events.

From Python, clEnqueueNDRangeKernel costs 0.4 to 0.8 µs more than from C, whether through pyopencl, ctypes or
cffi; itself it takes 1.5 to 8 µs (benchmarks/engine_launch.py). So the loop over the list is 20 lines of
LLVM code, which llvmlite compiles in 6 ms when the first session asks for it. Other threads can run Python
while it enqueues. Where llvmlite is missing, pyopencl enqueues one kernel after another.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections import deque
from collections.abc import Sequence
from functools import cache
from itertools import repeat
from operator import length_hint
from typing import Any, Final, NoReturn

from gpu_inference.errors import KernelError
from gpu_inference.opencl.launch import Launch

_log = logging.getLogger(__name__)

# int replay(enqueue, queue, count, kernels[count], dims[count], globals[3 * count], locals[count], done):
# calls `enqueue` for every kernel until one fails; returns its status, and in `done` how many went well.
_LOOP: Final = """
define i32 @replay(i32 (i8*, i8*, i32, i64*, i64*, i64*, i32, i8*, i8*)* %enqueue, i8* %queue, i64 %count,
                   i8** %kernels, i32* %dims, i64* %globals, i64** %locals, i64* %done) {
entry:
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  store i64 %i, i64* %done
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %good
body:
  %kernel_at = getelementptr i8*, i8** %kernels, i64 %i
  %kernel = load i8*, i8** %kernel_at
  %dims_at = getelementptr i32, i32* %dims, i64 %i
  %rank = load i32, i32* %dims_at
  %three = mul i64 %i, 3
  %global = getelementptr i64, i64* %globals, i64 %three
  %local_at = getelementptr i64*, i64** %locals, i64 %i
  %local = load i64*, i64** %local_at
  %status = call i32 %enqueue(i8* %queue, i8* %kernel, i32 %rank, i64* null, i64* %global, i64* %local,
                              i32 0, i8* null, i8* null)
  %next = add i64 %i, 1
  %fine = icmp eq i32 %status, 0
  br i1 %fine, label %head, label %bad
bad:
  ret i32 %status
good:
  ret i32 0
}
"""


class ReplayList:
    """Kernels with their arguments set, to be enqueued in order as often as one likes.

    Args:
        kernels: pyopencl.Kernel objects, one a launch; kept alive.
        launches: their sizes and names.
    """

    def __init__(self, kernels: Sequence[Any], launches: Sequence[Launch]) -> None:
        self._kernels = list(kernels)
        self._launches = list(launches)
        self._globals = [launch.global_size for launch in launches]
        self._locals = [launch.local_size for launch in launches]
        self._native: _Native | None = None
        if (functions := native_loop()) is not None:
            self._native = _Native(functions, self._kernels, self._launches)

    def __len__(self) -> int:
        return len(self._kernels)

    def enqueue(self, queue: Any) -> None:
        """Enqueues everything in order, without events, a flush or waiting.

        Args:
            queue: an in-order pyopencl.CommandQueue of the kernels' context.

        Raises:
            KernelError: the driver refuses a launch; those before it are enqueued.
        """
        if self._native is not None:
            status, done = self._native(queue)
            if status:
                self._refused(done, _status_name(status))
            return
        import pyopencl as cl

        kernels = iter(self._kernels)
        calls = map(cl.enqueue_nd_range_kernel, repeat(queue), kernels, self._globals, self._locals)
        try:
            deque(calls, maxlen=0)  # keeps the loop in C: 0.8 µs a launch less than a for statement
        except cl.Error as error:
            self._refused(len(self) - length_hint(kernels) - 1, str(error))

    def _refused(self, position: int, why: str) -> NoReturn:
        launch = self._launches[position]
        raise KernelError(
            f"the driver refuses kernel {launch.kernel.name!r} of node {launch.node!r} ({why}; global size "
            f"{launch.global_size}, work-group {launch.local_size}): if it says out of memory or resources, "
            "close other sessions or run a smaller batch, else report it with this message"
        )


class _Native:
    """The compiled loop with its arguments preset."""

    def __init__(self, functions: tuple[Any, Any], kernels: list[Any], launches: list[Launch]) -> None:
        self._loop, enqueue = functions
        count = len(kernels)
        pointers, size3 = ctypes.c_void_p * count, ctypes.c_size_t * 3
        sizes: Any = size3 * count
        groups = sizes(*((*(launch.local_size or ()), 1, 1, 1)[:3] for launch in launches))
        self._queue: Any = None
        self._handle = ctypes.c_void_p()
        self._done = ctypes.c_int64()
        # converted once: right after a wait, when the caches are cold, ctypes takes 15 µs to do it
        self._arguments = (
            enqueue,
            self._handle,
            ctypes.c_int64(count),
            pointers(*(kernel.int_ptr for kernel in kernels)),
            (ctypes.c_uint32 * count)(*(len(launch.global_size) for launch in launches)),
            sizes(*((*launch.global_size, 1, 1)[:3] for launch in launches)),
            pointers(
                *(
                    ctypes.addressof(group) if launch.local_size else None
                    for group, launch in zip(groups, launches, strict=True)
                )
            ),
            ctypes.byref(self._done),
        )
        self._alive = groups

    def __call__(self, queue: Any) -> tuple[int, int]:
        """Status of the driver (0: good), and how many were enqueued."""
        if queue is not self._queue:
            self._queue, self._handle.value = queue, queue.int_ptr
        status: int = self._loop(*self._arguments)
        return status, self._done.value


@cache
def native_loop() -> tuple[Any, Any] | None:
    """The compiled loop and the driver loader's clEnqueueNDRangeKernel; None where either is missing."""
    try:
        import pyopencl._cl

        # the symbol comes from the loader that pyopencl itself is linked with, so handles fit
        enqueue = ctypes.CDLL(pyopencl._cl.__file__).clEnqueueNDRangeKernel
        loop = ctypes.CFUNCTYPE(ctypes.c_int32)(_compiled())  # argument types: those that it is called with
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        _log.debug("kernels are enqueued by pyopencl, which costs 0.5 µs more a launch: %s", error)
        return None
    return loop, ctypes.cast(enqueue, ctypes.c_void_p)


_engines: list[Any] = []


def _compiled() -> int:
    """Address of the loop's machine code, which lives as long as the process."""
    llvm: Any = importlib.import_module("llvmlite.binding")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_LOOP)
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address("replay"))


def _status_name(status: int) -> str:
    import pyopencl as cl

    try:
        return str(cl.status_code.to_string(status))
    except ValueError:
        return f"status {status}"
