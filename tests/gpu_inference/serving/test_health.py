"""The health of a device, without a device."""

from __future__ import annotations

from gpu_inference.serving import Failure, HealthLimits, State
from gpu_inference.serving.health import DeviceHealth


def test_a_failure_puts_it_out_until_a_probe_passes() -> None:
    health = DeviceHealth(HealthLimits(first_probe_s=1))
    assert health.ready
    assert health.probe_due_s() is None
    health.failed(Failure.ERROR, 10)
    assert (health.state, health.probe_due_s()) == (State.OUT, 11)
    health.probe_started()
    assert (health.state, health.probe_due_s()) == (State.PROBING, None)
    health.probe_passed()
    assert health.ready


def test_pauses_double_up_to_the_longest_and_only_an_answer_makes_them_short_again() -> None:
    health = DeviceHealth(HealthLimits(first_probe_s=1, max_probe_s=5))
    pauses = []
    for now_s in range(0, 500, 100):
        health.failed(Failure.WRONG, now_s)
        due_s = health.probe_due_s()
        assert due_s is not None
        pauses.append(due_s - now_s)
        health.probe_started()
    assert pauses == [1, 2, 4, 5, 5]
    health.probe_passed()
    health.failed(Failure.ERROR, 1000)
    assert health.probe_due_s() == 1005
    health.probe_started()
    health.probe_passed()
    health.succeeded()
    health.failed(Failure.ERROR, 2000)
    assert health.probe_due_s() == 2001


def test_refusals_put_it_out_only_in_a_row() -> None:
    health = DeviceHealth(HealthLimits(model_errors=3))
    for settle in (health.succeeded, health.acquitted):
        health.refused(1)
        health.refused(1)
        assert health.ready
        settle()
    for _ in range(3):
        health.refused(1)
    assert health.state is State.OUT
    assert health.failures == {Failure.ERROR: 1}


def test_too_many_hung_threads_are_the_end() -> None:
    health = DeviceHealth(HealthLimits(max_hung=2))
    for n in range(3):
        assert health.state is not State.LOST
        health.failed(Failure.TIMEOUT, n)
    assert (health.state, health.hung, health.probe_due_s()) == (State.LOST, 3, None)
