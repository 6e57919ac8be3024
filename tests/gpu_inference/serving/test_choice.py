"""Strategies, and what a choice costs."""

from __future__ import annotations

import timeit

import pytest

from gpu_inference import EngineError
from gpu_inference.serving import CostCurve
from gpu_inference.serving.board import Board, PoolLimits
from gpu_inference.serving.choice import (
    EXPLORE_EVERY,
    Adaptive,
    DeviceLoad,
    LeastLoaded,
    RoundRobin,
    make_strategy,
)
from tests.gpu_inference.serving.simulated import Device


def idle(device: int, batch_s: float | None = 0.01) -> DeviceLoad:
    return DeviceLoad(device, 0, 0.0, batch_s)


def test_round_robin_goes_on_where_it_was_when_devices_come_and_go() -> None:
    strategy = RoundRobin()
    every = [idle(0), idle(1), idle(2)]
    chosen = [every[strategy.choose(every)].device for _ in range(4)]
    without = [idle(0), idle(2)]
    chosen += [without[strategy.choose(without)].device for _ in range(3)]
    chosen.append(every[strategy.choose(every)].device)
    assert chosen == [0, 1, 2, 0, 2, 0, 2, 0]


def test_least_loaded_takes_the_shortest_queue_and_shares_ties() -> None:
    strategy = LeastLoaded()
    assert strategy.choose([DeviceLoad(0, 3, 0.1, 0.1), DeviceLoad(1, 1, 9.0, 9.0)]) == 1
    assert sorted(strategy.choose([idle(0), idle(1), idle(2)]) for _ in range(3)) == [0, 1, 2]


def test_adaptive_takes_who_would_be_done_first() -> None:
    loads = [DeviceLoad(0, 2, 0.020, 0.010), DeviceLoad(1, 0, 0.0, 0.025), DeviceLoad(2, 1, 0.010, 0.010)]
    assert Adaptive().choose(loads) == 2


def test_adaptive_measures_whom_nobody_has_measured_but_waits_for_nobody() -> None:
    strategy = Adaptive()
    assert strategy.choose([idle(0, 0.001), idle(1, None)]) == 1
    assert strategy.choose([idle(0, 0.001), DeviceLoad(1, 1, 0.5, None)]) == 0


def test_adaptive_looks_again_at_a_device_that_was_slow() -> None:
    strategy = Adaptive()
    chosen = [strategy.choose([idle(0, 0.001), idle(1, 1.0)]) for _ in range(4 * EXPLORE_EVERY)]
    assert 3 <= chosen.count(1) <= 4


def test_no_strategy_of_another_name() -> None:
    with pytest.raises(EngineError, match="'random'"):
        make_strategy("random")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["round-robin", "least-loaded", "adaptive"])
def test_a_choice_among_four_devices_takes_less_than_20_us(name: str) -> None:
    """As `Placement.place` chooses: the loads of the devices, then the strategy. Best of many runs."""
    specs = [Device(name).spec for name in "abcd"]
    board = Board(specs, PoolLimits(), lambda: 0.0, lambda: None)
    for slot in board.slots:
        slot.opened.add("m")
        slot.curves["m"] = CostCurve({1: 0.002, 8: 0.003, 32: 0.008})
    strategy = make_strategy(name)  # type: ignore[arg-type]
    runs = timeit.repeat(
        lambda: strategy.choose([slot.load("m", 20) for slot in board.slots]), number=100, repeat=30
    )
    for slot in board.slots:
        assert slot.thread is not None
        slot.thread.stop()
    assert min(runs) / 100 < 20e-6
