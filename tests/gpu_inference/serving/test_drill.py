"""The drill: real onnxruntime sessions beside devices that hang, raise and give NaN in mid-batch."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections import Counter
from concurrent.futures import Future, wait

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_inference
from gpu_inference import Session
from gpu_inference.devices import forget_device, open_device, pick_device
from gpu_inference.serving import (
    Answer,
    CostCurve,
    DevicePool,
    HealthLimits,
    Item,
    Limits,
    MicroBatcher,
    PoolLimits,
    State,
)
from tests.gpu_inference.serving.simulated import Device, give_nan, raise_error
from tests.gpu_inference.serving.test_pool import wait_until

WEIGHTS = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
LIMITS = PoolLimits(min_timeout_s=0.3, cold_timeout_s=5.0, health=HealthLimits(first_probe_s=0.05))


def model() -> bytes:
    """y = x w."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return made.SerializeToString()


def on_onnxruntime(key: str) -> Session:
    return gpu_inference.load(model(), engine="onnxruntime")


@pytest.mark.parametrize("strategy", ["round-robin", "least-loaded", "adaptive"])
def test_no_prediction_is_lost_or_doubled(strategy: str) -> None:
    cost_s = (0.001, 0.0)
    hangs, raises, nans = (Device(name, on_onnxruntime, cost_s) for name in ("hangs", "raises", "nans"))
    sound, cpu = Device("sound", on_onnxruntime, cost_s), Device("cpu", on_onnxruntime, last_resort=True)
    devices = (hangs, raises, nans, sound, cpu)
    pool = DevicePool([device.spec for device in devices], strategy, LIMITS)  # type: ignore[arg-type]
    pool.open("m", sizes=(1, 4, 8)).result(30)
    batcher: MicroBatcher[np.ndarray] = MicroBatcher(Limits(max_batch=8, max_delay_ms=2), pool.curve("m"))
    rng = random.Random(1)
    frames = np.random.default_rng(2).standard_normal((2000, 8)).astype(np.float32)
    answers: Counter[int] = Counter()
    wrong: list[int] = []
    lock = threading.Lock()
    futures: list[Future[Answer]] = []

    def keep(batch_items: tuple[Item[np.ndarray], ...], future: Future[Answer]) -> None:
        outputs = future.result().outputs["y"]
        with lock:
            for item, row in zip(batch_items, outputs, strict=True):
                answers[item.sequence] += 1
                if not np.allclose(row, item.payload @ WEIGHTS, rtol=1e-3, atol=1e-4):
                    wrong.append(item.sequence)

    try:
        for n, frame in enumerate(frames):
            batcher.offer(Item(f"camera-{n % 7}", n, n * 1e-4, frame), n * 1e-4)
            if n == 400:
                hangs.script, raises.script, nans.script = [hangs.hang], [raise_error], [give_nan]
            if n == 1200:
                raises.script, nans.script, sound.script = [raise_error] * 2, [give_nan], [sound.hang]
            while (batch := batcher.take(n * 1e-4 + rng.random() * 1e-3, rng.randint(0, 3))) is not None:
                future = pool.submit("m", {"x": np.stack([item.payload for item in batch.items])})
                future.add_done_callback(lambda done, items=batch.items: keep(items, done))
                futures.append(future)
                wait([futures[max(0, len(futures) - 12)]], 30)
        while (batch := batcher.take(1e9, 1)) is not None:
            future = pool.submit("m", {"x": np.stack([item.payload for item in batch.items])})
            future.add_done_callback(lambda done, items=batch.items: keep(items, done))
            futures.append(future)
        assert not wait(futures, 30).not_done
        wait_until(lambda: all(status.state is State.READY for status in pool.status()), 30)
        hangs.wake.set()
        sound.wake.set()
        statuses = {status.name: status for status in pool.status()}
        hung = sum(status.hung_threads for status in statuses.values())
        wait_until(lambda: sum(status.late_answers for status in pool.status()) == hung)
        assert all(device.script == [] for device in devices)
        assert statuses["hangs"].failures["timeout"] >= 1
        assert statuses["sound"].failures["timeout"] >= 1
        assert statuses["raises"].failures["error"] >= 2
        assert statuses["nans"].failures["nan"] >= 2
        # every prediction once, and right; what was thrown away is not among them
        assert answers == Counter(range(len(frames)))
        assert wrong == []
    finally:
        for device in devices:
            device.wake.set()
        assert pool.close(10)
    assert all(device.open_now == 0 for device in devices)


def test_a_device_made_slow_gets_less_work() -> None:
    fast, slow = Device("fast", cost_s=(0.001, 0.0)), Device("slow", cost_s=(0.008, 0.0))
    pool = DevicePool([fast.spec, slow.spec], "adaptive")
    try:
        pool.open("m").result(10)
        x = {"x": np.ones((1, 3), np.float32)}
        futures = [pool.submit("m", x) for _ in range(60)]
        given = Counter(future.result(10).device for future in futures)
        assert given["fast"] > 3 * given["slow"]
        curve = pool.curve("m")
        assert isinstance(curve, CostCurve)
    finally:
        assert pool.close(5)


def test_the_opencl_engine_serves_on_a_thread_of_its_own_and_agrees_with_the_last_resort() -> None:
    def on_opencl(key: str) -> Session:
        return gpu_inference.load(model(), engine="opencl", fallback=False)

    card, cpu = Device("card", on_opencl), Device("cpu", on_onnxruntime, last_resort=True)
    spec = dataclasses.replace(card.spec, reset=forget_device)
    context = open_device(pick_device()).context
    pool = DevicePool([spec, cpu.spec], limits=LIMITS)
    try:
        assert pool.open("m", sizes=(1, 8)).result(60).devices == ("card", "cpu")
        x = np.random.default_rng(3).standard_normal((8, 8)).astype(np.float32)
        card.script = [None, raise_error, raise_error]  # the second error is the probe's
        for device in ("card", "cpu", "card"):
            wait_until(lambda: all(status.state is State.READY for status in pool.status()))
            answer = pool.submit("m", {"x": x}).result(10)
            assert answer.device == device
            np.testing.assert_allclose(answer.outputs["y"], x @ WEIGHTS, rtol=1e-4, atol=1e-5)
        assert open_device(pick_device()).context is not context  # the old one may have been dead
        pool.retire("m").result(10)
    finally:
        assert pool.close(10)
    assert card.open_now == cpu.open_now == 0
