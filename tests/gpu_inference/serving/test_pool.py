"""The pool on simulated devices that fail when a test says so."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from gpu_inference import DeviceError, EngineError, ModelError
from gpu_inference.errors import BusyError, ServingError
from gpu_inference.serving import Answer, DevicePool, DeviceStatus, HealthLimits, PoolLimits, State
from tests.gpu_inference.serving.simulated import Device, give_nan, give_wrong, raise_error

PROMPT = HealthLimits(first_probe_s=0.02, max_probe_s=0.1, max_hung=2)
QUICK = PoolLimits(min_timeout_s=0.3, cold_timeout_s=2.0, probe_timeout_s=0.3, health=PROMPT)

Make = Callable[..., DevicePool]


@pytest.fixture
def make() -> Iterator[Make]:
    """A pool of devices, with model "m" open."""
    made: list[tuple[DevicePool, tuple[Device, ...]]] = []

    def pool_of(*devices: Device, limits: PoolLimits = QUICK, sizes: Any = (1, 2), **more: Any) -> DevicePool:
        pool = DevicePool([device.spec for device in devices], limits=limits, **more)
        made.append((pool, devices))
        if sizes:
            pool.open("m", sizes=sizes).result(10)
        for device in devices:
            device.runs = 0
        return pool

    yield pool_of
    for pool, devices in made:
        for device in devices:
            device.wake.set()
        pool.close(5)


def rows(n: int, value: float = 1.0) -> dict[str, Any]:
    return {"x": np.full((n, 3), value, np.float32)}


def right(answer: Answer, value: float = 1.0) -> bool:
    return bool((answer.outputs["y"] == 2 * value).all())


def status_of(pool: DevicePool, name: str) -> DeviceStatus:
    return next(status for status in pool.status() if status.name == name)


def wait_until(done: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for what another thread will do."""
    end_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end_s, "it didn't happen"
        time.sleep(0.002)


def is_back(pool: DevicePool, name: str) -> bool:
    return status_of(pool, name).state is State.READY


def test_devices_take_turns_each_on_a_thread_of_its_own(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    answers = [pool.submit("m", rows(2, i)).result(5) for i in range(20)]
    assert all(right(answer, i) for i, answer in enumerate(answers))
    assert [answer.device for answer in answers] == ["a", "b"] * 10
    assert len(a.threads) == len(b.threads) == 1
    assert a.threads.isdisjoint(b.threads)


def test_an_error_sends_the_batch_elsewhere_and_the_device_comes_back(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    a.script = [raise_error]
    answer = pool.submit("m", rows(1)).result(5)
    assert right(answer)
    assert (answer.device, answer.failovers) == ("b", ("a",))
    wait_until(lambda: is_back(pool, "a"))
    status = status_of(pool, "a")
    assert (status.failures, status.probes, status.moved) == ({"error": 1}, 1, 1)
    assert {pool.submit("m", rows(1)).result(5).device for _ in range(4)} == {"a", "b"}


def test_batches_that_wait_behind_a_hung_one_go_elsewhere_too(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    a.script = [a.hang]
    futures = [pool.submit("m", rows(1, i)) for i in range(8)]
    assert all(right(future.result(5), i) for i, future in enumerate(futures))
    assert {future.result().device for future in futures} == {"b"}
    assert sum("a" in future.result().failovers for future in futures) == 1
    assert status_of(pool, "a").hung_threads == 1


def test_a_hung_device_comes_back_with_fresh_sessions_and_its_late_answer_is_thrown_away(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    a.script = [a.hang]
    told: list[Future[Answer]] = []
    future = pool.submit("m", rows(1))
    future.add_done_callback(told.append)
    assert future.result(5).device == "b"
    wait_until(lambda: is_back(pool, "a"))
    assert (a.opened["m"], a.resets) == (2, 1)
    a.wake.set()
    wait_until(lambda: status_of(pool, "a").late_answers == 1)
    wait_until(lambda: a.open_now == 1)  # the old thread closed its session and ended
    assert told == [future]
    assert {pool.submit("m", rows(1)).result(5).device for _ in range(4)} == {"a", "b"}


def test_nan_is_run_elsewhere(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    a.script = [give_nan]
    answer = pool.submit("m", rows(1)).result(5)
    assert right(answer)
    assert answer.device == "b"
    assert status_of(pool, "a").failures == {"nan": 1}


def test_nan_that_two_devices_agree_on_is_the_answer(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b)
    a.script, b.script = [give_nan], [give_nan]
    answer = pool.submit("m", rows(1)).result(5)
    assert np.isnan(answer.outputs["y"]).any()


def test_nan_is_the_answer_of_a_lone_device_that_passes_its_probe(make: Make) -> None:
    a = Device("a")
    pool = make(a)
    a.script = [give_nan, None, give_nan]
    assert np.isnan(pool.submit("m", rows(1)).result(5).outputs["y"]).any()
    assert a.runs == 3


def test_a_model_may_be_allowed_to_give_nan(make: Make) -> None:
    a = Device("a")
    pool = make(a, sizes=None)
    pool.open("m", nan_ok=True).result(5)
    a.script, a.runs = [give_nan], 0
    assert np.isnan(pool.submit("m", rows(1)).result(5).outputs["y"]).any()
    assert (a.runs, status_of(pool, "a").state) == (1, State.READY)


def test_the_last_resort_runs_only_what_no_other_device_can(make: Make) -> None:
    gpu, cpu = Device("gpu"), Device("cpu", last_resort=True)
    pool = make(gpu, cpu)
    assert {pool.submit("m", rows(1)).result(5).device for _ in range(10)} == {"gpu"}
    assert pool.free("m") == (1, 0)
    gpu.script = [raise_error, raise_error, raise_error]  # the batch, then two probes
    assert pool.submit("m", rows(1)).result(5).device == "cpu"
    assert pool.submit("m", rows(1)).result(5).device in ("cpu", "gpu")
    wait_until(lambda: is_back(pool, "gpu"))
    assert {pool.submit("m", rows(1)).result(5).device for _ in range(10)} == {"gpu"}


def test_a_lone_device_gets_its_batch_again_when_it_is_back(make: Make) -> None:
    a = Device("a")
    pool = make(a)
    a.script = [a.hang]
    first, second = pool.submit("m", rows(1, 1)), pool.submit("m", rows(1, 2))
    assert right(first.result(5), 1)
    assert right(second.result(5), 2)
    assert first.result().failovers == ("a",)


def test_a_probe_with_the_wrong_answer_keeps_the_device_out(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    a.script = [raise_error, give_wrong, give_wrong]
    assert pool.submit("m", rows(1)).result(5).device == "b"
    wait_until(lambda: is_back(pool, "a"))
    status = status_of(pool, "a")
    assert (status.failures, status.probes) == ({"error": 1, "wrong": 2}, 3)
    assert a.opened["m"] == 3  # after the first probe, with fresh sessions
    assert a.resets == 2


def test_a_device_that_leaves_too_many_hung_threads_is_lost(make: Make) -> None:
    a = Device("a")
    pool = make(a, limits=dataclasses.replace(QUICK, cold_timeout_s=0.2))
    a.script = [a.hang] * 3
    with pytest.raises(ServingError, match="no device could run a batch of 1 of model 'm'"):
        pool.submit("m", rows(1)).result(10)
    assert (status_of(pool, "a").state, status_of(pool, "a").hung_threads) == (State.LOST, 3)
    assert pool.free("m") == (0, 0)
    with pytest.raises(ServingError, match="no device"):
        pool.submit("m", rows(1)).result(1)


def test_a_batch_that_every_device_fails_ends_with_an_error(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b)

    def poison(outputs: dict[str, Any]) -> dict[str, Any]:
        if outputs["y"][0, 0] == 14:
            raise RuntimeError("poison")
        return outputs

    a.script, b.script = [poison] * 30, [poison] * 30
    with pytest.raises(ServingError, match=r"tried: .*the last error: poison"):
        pool.submit("m", rows(1, 7)).result(10)
    wait_until(lambda: is_back(pool, "a") and is_back(pool, "b"))


def test_a_batch_that_two_engines_refuse_is_to_blame_itself(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b)

    def refuse(outputs: dict[str, Any]) -> dict[str, Any]:
        raise ModelError("input 'x' has the wrong shape")

    for _ in range(10):
        a.script, b.script = [refuse], [refuse]
        with pytest.raises(ModelError, match="wrong shape"):
            pool.submit("m", rows(1)).result(5)
    assert [status.state for status in pool.status()] == [State.READY] * 2


def test_an_answer_that_does_not_come_by_the_deadline_is_an_error(make: Make) -> None:
    a = Device("a")
    pool = make(a, limits=PoolLimits(min_timeout_s=60))
    a.script = [a.hang]
    started_s = time.monotonic()
    first = pool.submit("m", rows(1), deadline_s=started_s + 0.1)
    second = pool.submit("m", rows(1), deadline_s=started_s + 0.1)
    for future in (first, second):
        with pytest.raises(ServingError, match="by its deadline"):
            future.result(5)
    a.wake.set()
    assert right(pool.submit("m", rows(1)).result(5))
    assert a.runs == 2  # the second was never begun


def test_more_batches_than_the_limit_are_refused(make: Make) -> None:
    a = Device("a")
    pool = make(a, limits=PoolLimits(max_batches=2))
    a.script = [a.hang]
    futures = [pool.submit("m", rows(1)) for _ in range(2)]
    with pytest.raises(BusyError, match="2 batches wait"):
        pool.submit("m", rows(1))
    a.wake.set()
    assert all(right(future.result(5)) for future in futures)


def test_free_counts_idle_devices_and_those_with_room(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin", limits=PoolLimits())
    assert pool.free("m") == (2, 0)
    a.script, b.script = [a.hang], [b.hang]
    futures = [pool.submit("m", rows(1)) for _ in range(2)]
    assert pool.free("m") == (0, 2)
    futures.append(pool.submit("m", rows(1)))
    assert pool.free("m") == (0, 1)
    assert pool.free("other") == (0, 0)
    a.wake.set()
    b.wake.set()
    for future in futures:
        future.result(5)


def test_the_caller_hears_of_devices_that_come_and_go(make: Make) -> None:
    a, b = Device("a"), Device("b")
    heard: list[tuple[State, ...]] = []
    pools: list[DevicePool] = []

    def changed() -> None:  # before there is a pool it raises, which does no harm
        heard.append(tuple(status.state for status in pools[0].status()))

    pool = make(a, b, changed=changed)
    pools.append(pool)
    a.script, b.script = [raise_error], [raise_error]
    pool.submit("m", rows(1)).result(5)
    wait_until(lambda: len(heard) >= 2 and set(heard[-1]) == {State.READY})
    assert State.OUT in heard[0]


def test_a_model_is_ready_only_when_every_device_has_opened_and_measured_it(make: Make) -> None:
    a, b = Device("a"), Device("b", cost_s=(0.001, 0.0))
    pool = make(a, b, sizes=None)
    with pytest.raises(ServingError, match="isn't ready"):
        pool.submit("m", rows(1))
    opened = pool.open("m", sizes=(1, 8))
    assert opened.result(10).devices == ("a", "b")
    assert (a.opened["m"], b.opened["m"]) == (1, 1)
    assert pool.curve("m").sizes == (1, 8)
    with pytest.raises(EngineError, match="is open already"):
        pool.open("m")


def test_a_device_that_cannot_open_a_model_leaves_it_to_the_others(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b)
    b.refuse_to_open = DeviceError("too little memory")
    opened = pool.open("big").result(10)
    assert (opened.devices, opened.refused) == (("a",), {"b": "too little memory"})
    assert {pool.submit("big", rows(1)).result(5).device for _ in range(4)} == {"a"}
    b.refuse_to_open = None
    pool.retire("m").result(5)  # which makes room
    wait_until(lambda: "big" in status_of(pool, "b").models)


def test_a_model_that_opens_nowhere_is_an_error_and_may_be_tried_again(make: Make) -> None:
    a = Device("a")
    pool = make(a, sizes=None)
    a.refuse_to_open = ModelError("broken")
    with pytest.raises(ServingError, match="opens on no device \\(a: broken\\)"):
        pool.open("m").result(10)
    a.refuse_to_open = None
    assert pool.open("m").result(10).devices == ("a",)


def test_a_device_with_another_answer_than_the_cpu_does_not_serve_the_model(make: Make) -> None:
    a, b, cpu = Device("a"), Device("b"), Device("cpu", last_resort=True)
    pool = make(a, b, cpu, sizes=None)
    b.script = [give_wrong] * 20
    opened = pool.open("m").result(10)
    assert opened.devices == ("a", "cpu")
    assert "its answer to the sample" in opened.refused["b"]
    assert {pool.submit("m", rows(1)).result(5).device for _ in range(6)} == {"a"}
    wait_until(lambda: b.open_now == 0)


def test_a_new_model_is_opened_on_one_device_at_a_time_while_others_serve(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    a.script = [a.hang]
    opened = pool.open("new", sizes=(1,))
    assert a.hangs.wait(5)
    assert b.opened["new"] == 0
    assert {pool.submit("m", rows(1)).result(5).device for _ in range(6)} == {"b"}
    a.wake.set()
    assert opened.result(5).devices == ("a", "b")


def test_a_retired_model_is_closed_after_its_last_batch(make: Make) -> None:
    a = Device("a")
    pool = make(a)
    a.script = [a.hang]
    last = pool.submit("m", rows(1))
    retired = pool.retire("m")
    with pytest.raises(ServingError, match="isn't ready"):
        pool.submit("m", rows(1))
    assert not retired.done()
    assert a.closed["m"] == 0
    a.wake.set()
    assert right(last.result(5))
    retired.result(5)
    assert (a.open_now, pool.status()[0].models) == (0, ())


def test_a_hundred_swaps_lose_no_batch_and_leave_no_session_behind(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, sizes=None)
    pool.open("v0").result(5)
    live = ["v0"]
    answers: list[Future[Answer]] = []
    stop = threading.Event()

    def stream() -> None:
        while not stop.is_set():
            try:
                future = pool.submit(live[0], rows(1, 3))
            except ServingError:  # it was retired between the two: the caller looks again at what is live
                continue
            answers.append(future)
            future.result(5)

    thread = threading.Thread(target=stream)
    thread.start()
    for n in range(1, 101):
        pool.open(f"v{n}").result(10)
        live[0] = f"v{n}"
        pool.retire(f"v{n - 1}").result(10)
    stop.set()
    thread.join(10)
    assert len(answers) > 50
    assert all(right(future.result(0), 3) for future in answers)
    assert (a.open_now, b.open_now) == (1, 1)
    assert [status.models for status in pool.status()] == [("v100",)] * 2
    assert all(set(slot.curves) == {"v100"} for slot in pool._board.slots)


def test_a_device_that_was_out_opens_what_became_live_meanwhile(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")
    a.script, a.refuse_to_open = [a.hang], DeviceError("still resetting")
    pool.submit("m", rows(1)).result(5)
    pool.open("new").result(5)
    pool.retire("m").result(5)
    a.refuse_to_open = None
    wait_until(lambda: status_of(pool, "a").models == ("new",) and is_back(pool, "a"))
    assert {pool.submit("new", rows(1)).result(5).device for _ in range(4)} == {"a", "b"}


def test_an_answer_tells_how_long_it_waited_and_ran(make: Make) -> None:
    a = Device("a", cost_s=(0.03, 0.0))
    pool = make(a)
    first, second = (pool.submit("m", rows(1)) for _ in range(2))
    assert first.result(5).seconds >= 0.03
    assert second.result(5).waited_s >= first.result().waited_s + 0.03


def test_closing_waits_for_what_is_in_flight(make: Make) -> None:
    a = Device("a", cost_s=(0.02, 0.0))
    pool = make(a)
    futures = [pool.submit("m", rows(1)) for _ in range(4)]
    assert pool.close(5)
    assert all(right(future.result(0)) for future in futures)
    assert a.open_now == 0
    with pytest.raises(ServingError, match="closed"):
        pool.submit("m", rows(1))


def test_closing_takes_bounded_time_with_a_device_that_hangs(make: Make) -> None:
    a = Device("a")
    pool = make(a, limits=PoolLimits(min_timeout_s=60))
    a.script = [a.hang]
    future = pool.submit("m", rows(1))
    assert a.hangs.wait(5)
    started_s = time.monotonic()
    assert not pool.close(0.3)
    assert time.monotonic() - started_s < 1.0
    with pytest.raises(ServingError, match="closed"):
        future.result(0)


def test_a_process_with_a_hung_device_exits() -> None:
    script = """
        import threading
        from gpu_inference.serving import DevicePool, PoolLimits
        from tests.gpu_inference.serving.simulated import Device
        import numpy as np
        a, b = Device("a"), Device("b")
        a.hang = lambda outputs: threading.Event().wait()
        pool = DevicePool([a.spec, b.spec], "round-robin", PoolLimits(min_timeout_s=0.1))
        pool.open("m").result(10)
        a.script = [a.hang]
        print(pool.submit("m", {"x": np.ones((1, 3), np.float32)}).result(10).device)
        print(pool.close(1))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ran.stdout.split() == ["b", "False"]


def test_devices_need_names_of_their_own() -> None:
    with pytest.raises(EngineError, match="a name of its own"):
        DevicePool([Device("a").spec, Device("a").spec])


def test_a_device_that_refuses_whatever_comes_goes_out(make: Make) -> None:
    a, b = Device("a"), Device("b")
    pool = make(a, b, strategy="round-robin")

    def refuse(outputs: dict[str, Any]) -> dict[str, Any]:
        raise ModelError("no such kernel")

    a.script = [refuse] * 3
    while a.script:
        assert right(pool.submit("m", rows(1)).result(5))
    wait_until(lambda: status_of(pool, "a").probes == 1)
    assert status_of(pool, "a").failures == {"error": 1}
    wait_until(lambda: is_back(pool, "a"))


def test_a_model_is_opened_again_under_the_key_of_a_retired_one(make: Make) -> None:
    a = Device("a")
    pool = make(a)
    for _ in range(3):
        pool.retire("m").result(5)
        pool.open("m", sizes=(4,)).result(5)
        assert right(pool.submit("m", rows(4)).result(5))
        assert pool.curve("m").sizes == (4,)
    assert a.open_now == 1


def test_retiring_a_model_that_is_still_opening_ends_both(make: Make) -> None:
    a = Device("a")
    pool = make(a)
    a.script = [a.hang]
    opened = pool.open("new")
    assert a.hangs.wait(5)
    retired = pool.retire("new")
    a.wake.set()
    with pytest.raises(ServingError, match="was retired before it was ready"):
        opened.result(5)
    retired.result(5)
    assert pool.status()[0].models == ("m",)
    assert a.open_now == 1
