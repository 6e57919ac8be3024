"""Device memory: known before it is taken, refused with the numbers, given back; the staging ring."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from onnx import TensorProto, helper

import gpu_inference
from gpu_inference import DeviceError, standard_models
from gpu_inference.devices import DeviceHandle, open_device, pick_device
from gpu_inference.opencl.forecast import memory_of_model
from gpu_inference.opencl.memory import MemoryNeed
from gpu_inference.opencl.session import OpenCLSession
from gpu_inference.opencl.staging import Staging

MODEL = standard_models.mobilenet_v2(size=32, width=0.25)


def images(batch: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)}


@pytest.fixture
def handle() -> DeviceHandle:
    return open_device(pick_device())


@pytest.fixture
def no_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any allocation of device memory fails the test."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("device memory was allocated")

    with monkeypatch.context() as patch:
        patch.setattr(cl, "Buffer", refuse)
        yield


def test_the_need_is_what_a_session_then_holds() -> None:
    need = memory_of_model(MODEL, [images(1), images(4)], pick_device().traits)
    session = OpenCLSession(MODEL)
    foreseen = session.memory_need(images(4))
    assert session.report.peak_bytes == 0
    session.run(images(4))
    assert (foreseen.weight_bytes, foreseen.slot_bytes) == (
        session.report.constant_bytes,
        session.report.slot_bytes,
    )
    session.run(images(1))
    report = session.report
    session.close()
    assert need.weight_bytes == report.constant_bytes
    assert need.slot_bytes == report.slot_bytes
    assert need.largest_bytes >= max(report.slot_bytes)
    assert need.complete


def test_a_larger_batch_is_foreseen_beside_what_is_held() -> None:
    session = OpenCLSession(MODEL)
    session.run(images(1))
    small = session.report
    need = session.memory_need(images(8))
    assert session.report.peak_bytes == small.peak_bytes
    session.run(images(8))
    report = session.report
    session.close()
    assert (need.weight_bytes, need.slot_bytes) == (report.constant_bytes, report.slot_bytes)
    assert need.arena_bytes > 4 * small.arena_bytes


def test_load_refuses_the_largest_batch_before_it_allocates(
    handle: DeviceHandle, monkeypatch: pytest.MonkeyPatch, no_buffers: None
) -> None:
    need = memory_of_model(MODEL, [images(16)], handle.traits)
    monkeypatch.setattr(handle, "memory_bytes", handle._held_bytes + need.peak_bytes - 1)
    with pytest.raises(DeviceError, match=r"needs \d+.* MiB .*the device has .* free.*: run a smaller batch"):
        gpu_inference.load(MODEL, max_batch=16)
    monkeypatch.setattr(handle, "memory_bytes", handle._held_bytes + need.peak_bytes + (16 << 20))
    gpu_inference.load(MODEL, max_batch=16).close()


def test_a_buffer_over_the_drivers_limit_is_refused_before_it_allocates(
    handle: DeviceHandle, monkeypatch: pytest.MonkeyPatch, no_buffers: None
) -> None:
    monkeypatch.setattr(handle, "max_buffer_bytes", 1 << 14)
    with pytest.raises(DeviceError, match=r"largest buffer .*buffers of at most 0\.0 MiB"):
        gpu_inference.load(MODEL, max_batch=1)


def test_load_says_what_the_model_takes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gpu_inference"):
        session = gpu_inference.load(MODEL, max_batch=2)
        (message,) = [record.message for record in caplog.records if "the model takes" in record.message]
        session.run(images(2))
        session.run(images(1))
        assert sum("the model takes" in record.message for record in caplog.records) <= 2
    session.close()
    assert "of weights" in message
    assert "of intermediate tensors" in message


def test_shapes_that_depend_on_an_input_are_weighed_at_the_first_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("s", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with caplog.at_level(logging.INFO, "gpu_inference"):
        session = gpu_inference.load(model.SerializeToString(), max_batch=3)
    assert any("depend on input 's'" in record.message for record in caplog.records)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert session.run({"x": x, "s": np.int64([2, 6])})["y"].shape == (2, 6)
    session.close()


@pytest.mark.parametrize(
    ("need", "free", "limit", "advice"),
    [
        (MemoryNeed(10 << 20, (5 << 20,), 0, 10 << 20), 15 << 20, 10 << 20, None),
        (MemoryNeed(30 << 20, (5 << 20,), 0, 30 << 20), 20 << 20, 64 << 20, "take a smaller model"),
        (MemoryNeed(10 << 20, (15 << 20,), 0, 15 << 20), 20 << 20, 64 << 20, "close other sessions"),
        (MemoryNeed(10 << 20, (30 << 20,), 0, 30 << 20), 20 << 20, 64 << 20, "run a smaller batch"),
        (MemoryNeed(10 << 20, (5 << 20,), 0, 10 << 20), 20 << 20, 8 << 20, "one of its weights"),
        (MemoryNeed(1 << 20, (9 << 20,), 0, 9 << 20), 20 << 20, 8 << 20, "run a smaller batch"),
        (MemoryNeed(10 << 20, (5 << 20,), 6 << 20, 10 << 20), 20 << 20, 64 << 20, "close other sessions"),
    ],
)
def test_a_refusal_says_what_to_do(need: MemoryNeed, free: int, limit: int, advice: str | None) -> None:
    text = need.refusal(free_bytes=free, total_bytes=32 << 20, limit_bytes=limit)
    if advice is None:
        assert text is None
    else:
        assert text is not None
        assert advice in text
        assert "the device has 32 MiB" in text


def test_what_a_session_holds_is_no_longer_free_until_it_is_closed(
    handle: DeviceHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = handle.free_bytes()
    session = OpenCLSession(MODEL)
    session.run(images(2))
    taken = before - handle.free_bytes()
    assert taken == session.report.peak_bytes
    # a second one of the same size no longer fits, the first one goes on
    monkeypatch.setattr(handle, "memory_bytes", handle._held_bytes + taken // 2)
    other = OpenCLSession(MODEL)
    with pytest.raises(DeviceError, match="free"):
        other.run(images(2))
    session.run(images(2))
    monkeypatch.undo()
    session.close()
    other.close()
    assert handle.free_bytes() == before


@pytest.mark.parametrize(
    ("told", "free"), [([1024, 512], 1 << 20), (2048, 2 << 20), ([], 1 << 40), ([0, 0], 1 << 40)]
)
def test_amds_drivers_tell_what_is_free(
    handle: DeviceHandle, monkeypatch: pytest.MonkeyPatch, told: Any, free: int
) -> None:
    monkeypatch.setattr(handle, "device", SimpleNamespace(global_free_memory_amd=told))
    monkeypatch.setattr(handle, "memory_bytes", (1 << 40) + handle._held_bytes)
    assert handle.free_bytes() == free


# ---- staging


@pytest.mark.parametrize("count", [1, 63, 64, 65, 256, 257, 1000])
def test_staging_carries_any_size_through_its_ring(handle: DeviceHandle, count: int) -> None:
    queue = cl.CommandQueue(handle.context)
    staging = Staging(handle.context, blocks=4, block_bytes=64)
    for number in range(3):
        array = np.random.default_rng(number).integers(0, 255, count, np.uint8)
        want = array.copy()
        buffer = cl.Buffer(handle.context, cl.mem_flags.READ_WRITE, 1024)
        staging.write(queue, buffer, array)
        array[:] = 0  # the caller may use its array again at once
        got = np.empty(count, np.uint8)
        staging.read(queue, buffer, got)
        np.testing.assert_array_equal(got, want)
    assert staging.size_bytes == 256
    staging.close()
    staging.close()


def test_staging_keeps_dtype_and_shape(handle: DeviceHandle) -> None:
    queue = cl.CommandQueue(handle.context)
    staging = Staging(handle.context, blocks=2, block_bytes=128)
    buffer = cl.Buffer(handle.context, cl.mem_flags.READ_WRITE, 4096)
    for dtype in (np.float32, np.int64, np.bool_, np.float16):
        array = np.random.default_rng(1).integers(0, 2, (3, 5, 7)).astype(dtype)
        staging.write(queue, buffer, array)
        got = np.empty_like(array)
        staging.read(queue, buffer, got)
        np.testing.assert_array_equal(got, array)
    scalar = np.array(2.5, np.float32)
    staging.write(queue, buffer, scalar)
    got = np.empty_like(scalar)
    staging.read(queue, buffer, got)
    assert got == scalar
    staging.close()


def test_a_session_gives_the_same_through_staging_as_directly(
    handle: DeviceHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = {}
    for unified in (True, False):
        monkeypatch.setattr(handle, "unified_memory", unified)
        monkeypatch.setenv("POLARSTREAM_STAGING", "1")
        session = OpenCLSession(MODEL)
        assert (session.memory_need(images(1)).staging_bytes > 0) == (not unified)
        for batch in (1, 5):
            (y,) = session.run(images(batch)).values()
            np.testing.assert_array_equal(y, want.setdefault(batch, y))
        session.close()
