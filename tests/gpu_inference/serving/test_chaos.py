"""Faults of every kind at random, models that change, threads that submit: nothing lost, doubled, mixed."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, ClassVar

import numpy as np

from gpu_inference import DeviceError, TensorInfo
from gpu_inference.errors import ServingError
from gpu_inference.serving import Answer, DevicePool, DeviceSpec, HealthLimits, PoolLimits

LIMITS = PoolLimits(
    min_timeout_s=0.1,
    timeout_factor=3,
    cold_timeout_s=0.4,
    probe_timeout_s=0.2,
    health=HealthLimits(first_probe_s=0.02, max_probe_s=0.1, max_hung=1000),
)


class Chaotic:
    """y = k x for model "m-k", on a device that fails now and then."""

    inputs = outputs = (TensorInfo("x", np.dtype(np.float32), (None, 3)),)
    open_now: ClassVar[Counter[str]] = Counter()

    def __init__(self, device: str, rng: random.Random, key: str) -> None:
        self._device, self._rng, self._factor = device, rng, float(key.split("-")[1])
        if device != "cpu" and rng.random() < 0.01:
            raise DeviceError("too little memory")
        self.open_now[device] += 1

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        y = self._factor * inputs["x"]
        fate = self._rng.random() if self._device != "cpu" else 1.0
        time.sleep(0.001 * self._rng.random())
        if fate < 0.004:
            time.sleep(0.2 + 0.3 * self._rng.random())
        elif fate < 0.02:
            raise RuntimeError("CL_OUT_OF_RESOURCES")
        elif fate < 0.03:
            y[0] = np.nan
        return {"y": y}

    def close(self) -> None:
        self.open_now[self._device] -= 1


def test_chaos() -> None:
    rngs = {name: random.Random(name) for name in ("a", "b", "c", "cpu")}
    devices = [
        DeviceSpec(name, partial(Chaotic, name, rng), last_resort=name == "cpu") for name, rng in rngs.items()
    ]
    pool = DevicePool(devices, limits=LIMITS)
    pool.open("m-1").result(10)
    live, stop = ["m-1"], threading.Event()
    told: Counter[Future[Answer]] = Counter()
    wrong: list[Answer] = []
    submitted: list[list[Future[Answer]]] = [[], []]

    def keep(key: str, value: float, future: Future[Answer]) -> None:
        told[future] += 1
        answer = future.result()
        if not np.allclose(answer.outputs["y"], float(key.split("-")[1]) * value):
            wrong.append(answer)

    def submit(thread: int) -> None:
        rng, mine = random.Random(thread), submitted[thread]
        while not stop.is_set():
            key, value = live[0], rng.random()
            try:
                future = pool.submit(key, {"x": np.full((rng.randint(1, 4), 3), value, np.float32)})
            except ServingError:  # retired since it was looked up
                continue
            mine.append(future)
            future.add_done_callback(partial(keep, key, value))
            if len(mine) % 6 == 0:
                wait(mine[-6:], 20)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for version in range(2, 14):
        key = f"m-{version}"
        pool.open(key, sizes=(1, 2)).result(20)
        before, live[0] = live[0], key
        time.sleep(0.1)
        pool.retire(before).result(20)
    stop.set()
    for thread in threads:
        thread.join(30)
    futures = [future for mine in submitted for future in mine]
    assert len(wait(futures, 30).done) == len(futures) > 300
    failures = sum((Counter(status.failures) for status in pool.status()), Counter[str]())
    assert failures.total() > 0
    pool.close(10)  # False where a thread hangs just now
    assert told == Counter(futures)
    assert wrong == []
    end_s = time.monotonic() + 10
    while any(Chaotic.open_now.values()) and time.monotonic() < end_s:
        time.sleep(0.01)  # hung threads wake and close what they hold
    assert not any(Chaotic.open_now.values())
