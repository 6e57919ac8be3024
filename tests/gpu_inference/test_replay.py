"""The replay list enqueues what it was given, by the compiled loop and by pyopencl, and names what fails."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

from gpu_inference.devices import open_device, pick_device
from gpu_inference.errors import KernelError
from gpu_inference.opencl import replay
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.replay import ReplayList

SOURCE = """
__kernel void append(__global int *list, const int value) {
    if (get_global_id(0) == 0 && get_global_id(1) == 0 && get_global_id(2) == 0) {
        list[1 + list[0]] = value;
        list[0] += 1;
    }
}
__kernel void count(__global int *list) {
    atomic_add(list, (int)(get_local_size(0) + 100 * get_local_size(1)));
}
"""


@pytest.fixture(params=["compiled", "pyopencl"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pyopencl":
        monkeypatch.setattr(replay, "native_loop", lambda: None)
    else:
        assert replay.native_loop() is not None, "the compiled loop is what the launch times promise"
    return str(request.param)


class Device:
    def __init__(self) -> None:
        import pyopencl as cl

        self.cl, self.handle = cl, open_device(pick_device())
        self.queue = cl.CommandQueue(self.handle.context)
        self.buffer = cl.Buffer(self.handle.context, cl.mem_flags.READ_WRITE, 4096)
        self.clear()

    def clear(self) -> None:
        self.cl.enqueue_copy(self.queue, self.buffer, np.zeros(1024, np.int32))

    def read(self) -> list[int]:
        found = np.empty(1024, np.int32)
        self.cl.enqueue_copy(self.queue, found, self.buffer)
        return [int(x) for x in found]

    def bind(self, launches: list[Launch]) -> list[Any]:
        kernels = []
        for launch in launches:
            kernel = self.handle.programs.kernel(launch.kernel)
            for index, argument in enumerate(launch.args):
                kernel.set_arg(index, self.buffer if isinstance(argument, Buf) else argument)
            kernels.append(kernel)
        return kernels


@pytest.fixture(scope="module")
def device() -> Device:
    return Device()


def append(value: int, size: tuple[int, ...], local: tuple[int, ...] | None) -> Launch:
    return Launch(Kernel(None, "append", source=SOURCE), size, local, (Buf("list"), np.int32(value)))


def test_launches_run_in_order_whatever_their_dimensions(device: Device, way: str) -> None:
    launches = [append(7, (64,), (64,)), append(5, (64, 2), None), append(6, (8, 8, 2), (8, 8, 1))]
    launches += [append(n, (64,), (64,)) for n in range(200)]
    some = ReplayList(device.bind(launches), launches)
    device.clear()
    some.enqueue(device.queue)
    some.enqueue(device.queue)
    found = device.read()
    assert found[0] == 2 * len(some) == 406
    assert found[1 : 1 + 406] == 2 * [7, 5, 6, *range(200)]


def test_each_launch_has_its_own_size_and_work_group(device: Device, way: str) -> None:
    kernel = Kernel(None, "count", source=SOURCE)
    launches = [
        Launch(kernel, (64,), (32,), (Buf("list"),)),  # 64 items of 32 + 100
        Launch(kernel, (16, 4), (8, 2), (Buf("list"),)),  # 64 items of 8 + 200
    ]
    some = ReplayList(device.bind(launches), launches)
    device.clear()
    some.enqueue(device.queue)
    assert device.read()[0] == 64 * 132 + 64 * 208


def test_a_refused_launch_is_named_and_those_before_it_run(device: Device, way: str) -> None:
    launches = [append(1, (64,), (64,)), append(2, (64,), (64,)), append(3, (64,), (64,))]
    kernels = device.bind(launches)
    # a kernel without arguments is what every driver refuses
    kernels[1] = device.handle.programs.kernel(launches[1].kernel)
    launches[1].node = "conv7"
    some = ReplayList(kernels, launches)
    device.clear()
    with pytest.raises(KernelError, match=r"refuses kernel 'append' of node 'conv7' \(.*INVALID_KERNEL_ARGS"):
        some.enqueue(device.queue)
    assert device.read()[:3] == [1, 1, 0]


def test_an_empty_list_does_nothing(device: Device, way: str) -> None:
    ReplayList([], []).enqueue(device.queue)


def test_two_threads_replay_lists_of_their_own(device: Device, way: str) -> None:
    launches = [append(4, (64,), (64,))] * 50
    others = [Device() for _ in range(2)]
    lists = [ReplayList(other.bind(launches), launches) for other in others]
    threads = [
        threading.Thread(target=lambda pair=pair: [pair[0].enqueue(pair[1].queue) for _ in range(10)])
        for pair in zip(lists, others, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [other.read()[0] for other in others] == [500, 500]


def test_without_llvmlite_pyopencl_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    replay.native_loop.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    try:
        assert replay.native_loop() is None
    finally:
        replay.native_loop.cache_clear()
