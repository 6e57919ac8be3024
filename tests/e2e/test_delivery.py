"""The delivery promises, with real workers that are killed under load."""

from __future__ import annotations

import asyncio
import time

import pytest

from polarstream.delivery_proof import ProofOptions, ProofReport, WorkerProcess, prove
from streams.config import KafkaConfig

KILLS = ProofOptions(readings=30_000, rate_hz=3_000, kills=3)


def assert_sound(report: ProofReport, options: ProofOptions) -> None:
    assert report.published == options.readings
    assert (report.lost, report.wrong, report.out_of_order) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_killed_workers_lose_nothing_and_score_as_if_never_killed(
    kafka: KafkaConfig, delivery: str
) -> None:
    options = ProofOptions(readings=30_000, rate_hz=3_000, kills=3, delivery=delivery)
    report = await prove(kafka, options)
    assert_sound(report, options)
    assert report.kills == 3
    if delivery == "exactly_once":
        assert report.duplicated == 0
    # one of the three may have been killed again before it was ready
    assert sorted(report.recovery_s)[1] <= 6


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_workers_killed_about_their_first_checkpoints_lose_nothing(
    kafka: KafkaConfig, delivery: str
) -> None:
    """Until then there is no committed offset that could bring a restarted worker back."""

    async def kill_early(workers: list[WorkerProcess], options: ProofOptions) -> list[float]:
        (worker,) = workers
        for pause_s in (0.8, 1.0, 1.1, 1.2, 1.4):
            await asyncio.sleep(pause_s)
            worker.kill()
            worker.start()
        return []

    options = ProofOptions(readings=18_000, rate_hz=3_000, delivery=delivery)
    report = await prove(kafka, options, disturb=kill_early)
    assert_sound(report, options)
    if delivery == "exactly_once":
        assert report.duplicated == 0


@pytest.mark.slow
async def test_another_worker_takes_over_within_15_s_of_a_death(kafka: KafkaConfig) -> None:
    taken_over: list[float] = []

    async def kill_one(workers: list[WorkerProcess], options: ProofOptions) -> list[float]:
        await asyncio.sleep(4)
        workers[0].kill()
        taken_over.append(time.time())
        return []

    options = ProofOptions(readings=60_000, rate_hz=3_000, workers=2)
    report = await prove(kafka, options, disturb=kill_one)
    assert_sound(report, options)
    # the readings after the death go on for 16 s, so a partition that nobody took would show in the silence
    assert report.longest_silence_s <= 15


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_workers_that_join_and_leave_under_load_change_nothing(
    kafka: KafkaConfig, delivery: str
) -> None:
    async def come_and_go(workers: list[WorkerProcess], options: ProofOptions) -> list[float]:
        first, second = workers
        await asyncio.to_thread(second.stop)
        await asyncio.sleep(2)
        second.start()
        await asyncio.sleep(4)
        await asyncio.to_thread(first.stop)
        await asyncio.sleep(2)
        first.start()
        return []

    options = ProofOptions(readings=30_000, rate_hz=2_500, workers=2, delivery=delivery)
    report = await prove(kafka, options, disturb=come_and_go)
    assert_sound(report, options)
    if delivery == "exactly_once":
        assert report.duplicated == 0
