from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.plant import FIELDS, Plant, PlantConfig, PlantReading, PlantSource

T0 = 1_750_000_000.0


def run(plant: Plant, seconds: float, interval_s: float = 1.0) -> list[list[PlantReading]]:
    return [plant.step(T0 + i * interval_s) for i in range(int(seconds / interval_s))]


def column(steps: list[list[PlantReading]], sensor_id: str, field: str) -> list[float]:
    return [getattr(r, field) for step in steps for r in step if r.sensor_id == sensor_id]


def test_same_seed_and_times_give_the_same_readings_and_another_seed_does_not() -> None:
    first, again, other = (run(Plant(seed=s), 120) for s in (7, 7, 8))
    assert first == again
    assert first != other


def test_fifty_sensors_have_distinct_names_and_possible_values() -> None:
    steps = run(Plant(speed=600, faults_per_minute=60), 600)
    plant = Plant()
    assert len(set(plant.sensor_ids)) == 50
    for step in steps:
        for r in step:
            assert -60 <= r.temperature <= 200
            assert 0 <= r.humidity <= 100
            assert 850 <= r.pressure <= 1100


def test_temperature_has_inertia() -> None:
    """Without faults no sensor jumps: the change in a second stays near the instrument's noise."""
    steps = run(Plant(faults_per_minute=0), 600)
    for sensor_id in Plant().sensor_ids:
        jumps = np.abs(np.diff(column(steps, sensor_id, "temperature")))
        assert jumps.max() < 0.7


def test_a_day_has_its_rhythm_and_speed_shortens_it() -> None:
    plant = Plant(5, speed=1440, faults_per_minute=0)  # a day a minute
    tank = column(run(plant, 60, 0.5), plant.sensor_ids[4], "temperature")
    swing = max(tank) - min(tank)
    assert 6 < swing < 25
    still = Plant(5, faults_per_minute=0)
    assert np.ptp(column(run(still, 60, 0.5), still.sensor_ids[4], "temperature")) < 2


def test_humidity_falls_where_temperature_rises() -> None:
    plant = Plant(5, speed=1440, faults_per_minute=0)
    steps = run(plant, 60, 0.5)
    warm = column(steps, plant.sensor_ids[4], "temperature")
    damp = column(steps, plant.sensor_ids[4], "humidity")
    assert np.corrcoef(warm, damp)[0, 1] < -0.5


def test_pressure_is_one_weather_for_all() -> None:
    plant = Plant(6, speed=6000, faults_per_minute=0)
    steps = run(plant, 120)
    a, b = (column(steps, s, "pressure") for s in (plant.sensor_ids[0], plant.sensor_ids[3]))
    assert np.corrcoef(a, b)[0, 1] > 0.95


def test_every_kind_of_fault_shows_as_what_it_is() -> None:
    plant, calm = Plant(seed=3, faults_per_minute=60), Plant(seed=3, faults_per_minute=0)
    kinds = set()
    for i in range(1200):
        ts = T0 + i * 0.5
        faulty = {r.sensor_id: r for r in plant.step(ts)}
        clean = {r.sensor_id: r for r in calm.step(ts)}
        for fault in plant.active_faults:
            kinds.add(fault.kind)
            if fault.kind == "dropout":
                assert fault.field is None
                assert fault.sensor_id not in faulty
                continue
            assert fault.field in FIELDS
            seen, true = (getattr(x[fault.sensor_id], fault.field) for x in (faulty, clean))
            if fault.kind == "spike" and 20 < true < 70:
                assert abs(seen - true) > 5
            if fault.kind == "drift" and ts - fault.start > 30 and 20 < true < 70:
                assert abs(seen - true) > 0.5
    assert kinds == {"spike", "drift", "stuck", "dropout"}


def test_a_stuck_sensor_repeats_its_last_value() -> None:
    plant = Plant(seed=1, faults_per_minute=60)
    held: dict[tuple[str, float], set[float]] = {}
    for i in range(600):
        step = {r.sensor_id: r for r in plant.step(T0 + i)}
        for fault in plant.active_faults:
            if fault.kind == "stuck":
                assert fault.field is not None
                held.setdefault((fault.sensor_id, fault.start), set()).add(
                    getattr(step[fault.sensor_id], fault.field)
                )
    assert held
    assert all(len(values) == 1 for values in held.values())


def test_the_first_fault_is_a_spike_at_the_time_asked_for() -> None:
    for seed in range(10):
        plant = Plant(seed=seed, first_fault_s=10)
        run(plant, 11)
        [fault] = plant.take_faults()
        assert (fault.kind, fault.start) == ("spike", T0 + 10)
        assert plant.take_faults() == []


def test_time_never_goes_back_and_a_plant_needs_sensors() -> None:
    plant = Plant()
    plant.step(T0)
    with pytest.raises(ValueError, match="cannot go back"):
        plant.step(T0 - 1)
    with pytest.raises(ValueError, match="no plant of 0 sensors"):
        Plant(0)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 130),
    st.integers(0, 2**32),
    st.lists(st.floats(0, 400), min_size=1, max_size=20),
    st.floats(0.1, 5000),
)
def test_any_pace_gives_whole_readings(sensors: int, seed: int, gaps: list[float], speed: float) -> None:
    plant, ts = Plant(sensors, seed=seed, speed=speed, faults_per_minute=100), T0
    for gap in gaps:
        ts += gap
        for r in plant.step(ts):
            assert all(np.isfinite((r.temperature, r.humidity, r.pressure)))
            assert r.ts == ts


async def test_the_plants_time_stands_still_while_its_source_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "plant.clock"
    config = PlantConfig(sensors=4, interval_s=0.001, speed=3600, faults_per_minute=0, clock_file=str(clock))

    async def some(count: int) -> list[float]:
        batches = PlantSource(config).batches()
        found = [msgspec.json.decode((await anext(batches))[0].value)["pressure"] for _ in range(count)]
        await batches.aclose()  # type: ignore[attr-defined]
        return found

    first = await some(5)
    now = time.time
    monkeypatch.setattr("connectors.plant.time.time", lambda: now() + 30.0)  # a day of the plant
    again = await some(1)
    assert abs(again[0] - first[-1]) < 0.6
    for nonsense in ("", "soon", "nan"):
        clock.write_text(nonsense)
        assert len(await some(1)) == 1


async def test_source_paces_itself_and_keys_by_sensor() -> None:
    source = PlantSource(PlantConfig(sensors=4, interval_s=0.01, faults_per_minute=0))
    batches, loop = source.batches(), asyncio.get_running_loop()
    started = loop.time()
    seen = [await anext(batches) for _ in range(6)]
    assert loop.time() - started >= 0.04
    for batch in seen:
        assert len(batch) == 4
        for message in batch:
            assert message.key == msgspec.json.decode(message.value)["sensor_id"].encode()
    await batches.aclose()  # type: ignore[attr-defined]


def test_a_plant_that_is_started_again_goes_on_where_it_would_be() -> None:
    for speed in (1.0, 60.0):
        first, second = Plant(seed=4, speed=speed, faults_per_minute=0), Plant(seed=4, speed=speed)
        before = run(first, 300)[-1]
        after = second.step(T0 + 300)
        for a, b in zip(before, after, strict=True):
            assert abs(a.temperature - b.temperature) < 1.0
            assert abs(a.humidity - b.humidity) < 2.5
            assert abs(a.pressure - b.pressure) < 0.6
