"""Host time of enqueueing a kernel: ours beside the driver's bare call: `python -m benchmarks.engine_launch`.

Takes the kernels of a session, their arguments set, and enqueues the whole list in several ways, in turn,
into an empty queue each time; the median over `--rounds` of the host's time, divided by the launches. Waiting
for the device isn't timed.

- bare, C: a C loop over clEnqueueNDRangeKernel with everything preset and no event (needs a C compiler here)
- bare, ctypes: the same call from Python, every argument converted before
- bare, pyopencl: pyopencl's own lowest call, enqueue_nd_range_kernel, in a loop that stays in C
- ours: OpenCLSession.replay()
- ours, no llvmlite: what it falls back to
- kernel(queue, ...): pyopencl's usual call, which sets the arguments each time
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import repeat, starmap
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl._cl

from gpu_inference import standard_models
from gpu_inference.opencl import replay
from gpu_inference.opencl.launch import Buf, Launch
from gpu_inference.opencl.session import OpenCLSession

_C = """
#include <stddef.h>
typedef int (*Enqueue)(void *, void *, unsigned, const size_t *, const size_t *, const size_t *, unsigned,
                       void *, void *);
int bare(Enqueue enqueue, void *queue, int count, void **kernels, unsigned *dims, size_t *global,
         size_t *local) {
    for (int i = 0; i < count; i++) {
        int status = enqueue(queue, kernels[i], dims[i], 0, global + 3 * i, local + 3 * i, 0, 0, 0);
        if (status) return status;
    }
    return 0;
}
"""


def chain(length: int) -> bytes:
    """A model of `length` tiny launches: what they compute costs next to nothing."""
    net = standard_models.Network((1, 4, 4, 4))
    x = "x"
    for _ in range(length):
        x = net.conv(x, 4, 4, 1, norm=False)
    return net.model(x)


MODELS: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "60 tiny kernels": (lambda: chain(60), (1, 4, 4, 4)),
    "MobileNetV2 b1": (lambda: standard_models.mobilenet_v2(size=224), (1, 3, 224, 224)),
}


def bare_loops(queue: Any, kernels: list[Any], launches: list[Launch]) -> dict[str, Callable[[], object]]:
    """The reference loops over the same kernel objects."""
    count = len(kernels)
    library = ctypes.CDLL(pyopencl._cl.__file__)
    handles = (ctypes.c_void_p * count)(*(kernel.int_ptr for kernel in kernels))
    dims = (ctypes.c_uint * count)(*(len(launch.global_size) for launch in launches))
    sizes = [ctypes.c_size_t * 3] * 2
    rows = [(*launch.global_size, 1, 1)[:3] for launch in launches]
    groups = [(*(launch.local_size or ()), 1, 1, 1)[:3] for launch in launches]
    found: dict[str, Callable[[], object]] = {}
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is not None and all(launch.local_size for launch in launches):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "bare.c"), Path(folder, "bare.so")
            source.write_text(_C)
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", target, source], check=True)
            loop = ctypes.CDLL(str(target)).bare
        flat = [(ctypes.c_size_t * (3 * count))(*(x for row in some for x in row)) for some in (rows, groups)]
        enqueue = ctypes.cast(library.clEnqueueNDRangeKernel, ctypes.c_void_p)
        pointer = ctypes.c_void_p(queue.int_ptr)
        found["bare, C"] = lambda: loop(enqueue, pointer, count, handles, dims, *flat)
    call = library.clEnqueueNDRangeKernel
    preset = [
        (
            ctypes.c_void_p.from_param(queue.int_ptr),
            ctypes.c_void_p.from_param(kernel.int_ptr),
            ctypes.c_uint.from_param(rank),
            None,
            ctypes.byref(sizes[0](*row)),
            ctypes.byref(sizes[1](*group)) if launch.local_size else None,
            ctypes.c_uint.from_param(0),
            None,
            None,
        )
        for kernel, rank, row, group, launch in zip(kernels, dims, rows, groups, launches, strict=True)
    ]
    found["bare, ctypes"] = lambda: any(starmap(call, preset))
    sizes_of = [launch.global_size for launch in launches], [launch.local_size for launch in launches]
    found["bare, pyopencl"] = lambda: deque(
        map(cl.enqueue_nd_range_kernel, repeat(queue), kernels, *sizes_of), maxlen=0
    )
    return found


def measure(model: bytes, shape: tuple[int, ...], device: str | None, rounds: int) -> dict[str, float]:
    """Median host time a launch, µs, by way."""
    session = OpenCLSession(model, device, fallback=False)
    session.upload({"x": np.zeros(shape, np.float32)})
    session.replay()
    session.finish()
    # the benchmark looks inside, so that every way enqueues the very same kernels
    segment, queue = session._first, session._queue
    assert segment is not None
    launches, kernels = segment.launches, session._bound[segment].kernels
    ways = bare_loops(queue, kernels, launches)
    ways["ours"] = session.replay
    plain = replay.ReplayList(kernels, launches)
    plain._native = None
    ways["ours, no llvmlite"] = lambda: plain.enqueue(queue)
    resolve = session._buffers.resolve
    arguments = [[resolve(a) if isinstance(a, Buf) else a for a in launch.args] for launch in launches]

    def usual() -> None:
        for kernel, launch, given in zip(kernels, launches, arguments, strict=True):
            kernel(queue, launch.global_size, launch.local_size, *given)

    ways["kernel(queue, ...)"] = usual
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways.items())
    for _ in range(rounds):
        random.shuffle(order)
        for name, way in order:
            way()  # so that none pays for what the one before it left in the caches
            queue.finish()
            started = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - started) * 1e6 / len(launches))
    session.close()
    return {name: statistics.median(some) for name, some in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_launch", description=__doc__)
    parser.add_argument("--device", help="OpenCL device (default: the best)")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    for name in options.models.split(","):
        make, shape = MODELS[name]
        found = results[name] = measure(make(), shape, options.device, options.rounds)
        references = [way for way in found if way.startswith("bare")]
        print(f"{name}: host time a launch, and its ratio to {', '.join(references)}")
        for way, us in found.items():
            ratios = "  ".join(f"{us / found[reference]:5.2f}" for reference in references)
            print(f"  {way:20s} {us:7.2f} µs  {ratios}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
