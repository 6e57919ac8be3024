"""The batching benchmark counts what it should: run small, on onnxruntime."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.batching import Bench, Trial, flood
from benchmarks.batching_simulated import simulate
from gpu_inference.serving import Limits


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(
        argparse.Namespace(
            model="mobilenet_v2",
            size=32,
            max_batch=4,
            engine="onnxruntime",
            devices="CPUExecutionProvider,CPUExecutionProvider",
        )
    )


def test_every_arrival_of_a_trial_is_answered(bench: Bench) -> None:
    pool = bench.pool(list(bench.devices)[:1])
    limits = Limits(max_batch=4, max_delay_ms=5, max_queue=10**9, pad=True)
    trial = Trial(bench, pool, limits, rate_hz=40, seconds=1.0, hopeless_s=20, seed=1)
    result = trial.run()
    assert pool.close(5)
    assert len(trial.latencies_s) == len(trial.arrivals) > 20
    assert 0 < result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"]
    assert result["offered_hz"] == pytest.approx(40, rel=0.5)
    assert 1 <= result["mean_batch"] <= 4


@pytest.mark.parametrize("fault", ["error", "nan"])
def test_a_device_that_fails_in_mid_run_loses_nothing(bench: Bench, fault: str) -> None:
    result = flood(bench, list(bench.devices), 0.9, fault)
    assert result["batches"] == sum(result["by_device"].values()) > 3
    assert (result["lost"], result["doubled"], result["wrong"]) == (0, 0, 0)
    assert list(result["failures"]) == [list(bench.devices)[1]]
    assert result["moved"] >= 1


@pytest.mark.parametrize("devices", [1, 2])
def test_waiting_for_company_saves_the_devices_time_and_costs_little(devices: int) -> None:
    cost_s = (0.002, 0.0001)
    rate_hz = 0.2 * devices * 32 / (0.002 + 32 * 0.0001)
    at_once, patient = (
        simulate(rate_hz, cost_s, devices, Limits(32, delay_ms, max_queue=10**9)) for delay_ms in (0.0, 5.0)
    )
    assert at_once.busy > 0.94
    assert patient.busy < 0.8
    assert patient.mean_batch > 1.15 * at_once.mean_batch
    assert patient.p95_ms < at_once.p95_ms + 2.5


def test_batches_serve_what_single_frames_cannot() -> None:
    rate_hz = 3 / 0.0021  # three times what batch 1 can do
    limits = Limits(32, 5.0, max_queue=10**9)
    assert simulate(rate_hz, (0.002, 0.0001), 1, limits, frames=6000).p95_ms < 10
