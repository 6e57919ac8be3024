"""A simulated plant: sensors with physical inertia, a day's rhythm and faults of known time and kind.

The simulator is pure: time comes in, readings go out, and the same seed and the same times give the same
readings, bit for bit. What it models, per sensor:

- temperature: a machine that follows the air of its hall and its own load through a first-order lag,
  `T += (T_eq - T) * (1 - exp(-dt / tau))`, tau between 3 and 20 minutes;
- relative humidity: the water in the air changes slowly, and what can be held depends on the air's
  temperature (Magnus formula), so that humidity falls where temperature rises;
- pressure: one weather for the whole plant (slow waves of random phase) and each sensor's height;
- noise of the instrument, and the digits that it shows.

Time in the plant may run faster than the clock (`speed`), so that a day can be watched in minutes; at speed
1 its day is that of UTC. A plant that is started again goes on where it would be, or, given `origin_s`, where
it was stopped.
Faults are of the instrument and stay in real time. Their schedule depends on the seed alone, not on the
times at which readings are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
import numpy as np

from connectors.source import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

FaultKind = Literal["spike", "drift", "stuck", "dropout"]

FAULT_KINDS: Final[tuple[FaultKind, ...]] = ("spike", "drift", "stuck", "dropout")
FIELDS: Final = ("temperature", "humidity", "pressure")

#: name, rise above the hall at full load in K, time constant in s
_MACHINES: Final = (
    ("pump", 18.0, 300.0),
    ("boiler", 45.0, 1200.0),
    ("fan", 8.0, 180.0),
    ("compressor", 30.0, 420.0),
    ("tank", 3.0, 900.0),
)
#: standard deviation of the instrument's noise and the digits that it shows, per field (°C, %, hPa)
_NOISE: Final = (0.08, 0.25, 0.06)
_DIGITS: Final = (2, 2, 2)
#: how far a spike jumps and how fast a drift goes (per s), per field
_SPIKE: Final = (12.0, 25.0, 12.0)
_DRIFT_PER_S: Final = (0.05, 0.2, 0.05)
#: a bad reading must still be a possible one, or it would be refused instead of scored
_LIMITS: Final = ((-60.0, 200.0), (0.0, 100.0), (850.0, 1100.0))
_DURATION_S: Final[dict[FaultKind, tuple[float, float]]] = {
    "spike": (0.0, 1.5),
    "drift": (60.0, 180.0),
    "stuck": (30.0, 120.0),
    "dropout": (20.0, 90.0),
}
_MAX_STEP_S: Final = 60.0
_RUN_UP_S: Final = 7200.0
_WEATHER_PERIODS_S: Final = np.array([31_000.0, 97_000.0, 260_000.0])


class PlantReading(msgspec.Struct, frozen=True, gc=False):
    """One reading: `ts` in s since the epoch, temperature in °C, relative humidity in %, pressure in hPa."""

    sensor_id: str
    ts: float
    temperature: float
    humidity: float
    pressure: float


class Fault(NamedTuple):
    """An injected fault: what a detector should find, and when (s since the epoch)."""

    kind: FaultKind
    sensor_id: str
    #: None: the whole sensor (dropout).
    field: str | None
    start: float
    end: float


class _Active(NamedTuple):
    fault: Fault
    row: int
    column: int
    size: float
    held: float


class Plant:
    """The simulator.

    Args:
        sensors: how many sensors.
        seed: the same seed and the same times give the same readings.
        speed: plant seconds per second of the clock (60: a day in 24 minutes).
        faults_per_minute: mean rate of injected faults over the whole plant; 0: none.
        first_fault_s: seconds until the first fault, always a spike, so that a viewer need not wait long.
        origin_s: plant time of the first step, in plant seconds; None: that of the clock.
    """

    def __init__(
        self,
        sensors: int = 50,
        *,
        seed: int = 0,
        speed: float = 1.0,
        faults_per_minute: float = 2.0,
        first_fault_s: float = 20.0,
        origin_s: float | None = None,
    ) -> None:
        if sensors < 1 or speed <= 0 or faults_per_minute < 0:
            raise ValueError(f"no plant of {sensors} sensors, speed {speed}, {faults_per_minute} faults/min")
        self._speed = speed
        self._faults_per_s = faults_per_minute / 60.0
        self._first_fault_s = first_fault_s
        self._origin_s = origin_s
        self._rng = np.random.default_rng([seed, 0])
        self._fault_rng = np.random.default_rng([seed, 1])
        machine = np.arange(sensors) % len(_MACHINES)
        width = max(2, len(str(sensors)))
        self.sensor_ids: tuple[str, ...] = tuple(
            f"{_MACHINES[m][0]}-{i + 1:0{width}d}" for i, m in enumerate(machine)
        )
        rise = np.array([m[1] for m in _MACHINES])[machine]
        tau = np.array([m[2] for m in _MACHINES])[machine]
        self._rise_k = rise * self._rng.uniform(0.85, 1.15, sensors)
        self._tau_s = tau * self._rng.uniform(0.8, 1.2, sensors)
        self._load_phase = self._rng.uniform(0.0, 2 * np.pi, sensors)
        self._height_hpa = self._rng.uniform(-2.5, 0.5, sensors)
        self._water = self._rng.uniform(0.9, 1.1, sensors)
        self._start: float | None = None
        self._last = 0.0
        self._at_s = 0.0
        self._weather_phase = self._rng.uniform(0.0, 2 * np.pi, (2, len(_WEATHER_PERIODS_S)))
        self._busy_until = np.full(sensors, -np.inf)
        self._temperature: NDArray[np.float64] = np.zeros(sensors)
        self._shown: NDArray[np.float64] = np.zeros((sensors, 3))
        self._active: list[_Active] = []
        self._next_fault = np.inf
        #: Every fault injected since the last call of `take_faults`.
        self._injected: list[Fault] = []

    @property
    def plant_time_s(self) -> float:
        """Plant seconds at the last step; `origin_s` of a plant that goes on from there."""
        return self._at_s

    @property
    def active_faults(self) -> list[Fault]:
        """Faults that hold at the time of the last step."""
        return [active.fault for active in self._active]

    def take_faults(self) -> list[Fault]:
        """Faults that began since the last call: the truth that a detector is measured against."""
        taken, self._injected = self._injected, []
        return taken

    def step(self, ts: float) -> list[PlantReading]:
        """Move the plant to `ts` (s since the epoch, never back) and read every sensor.

        Returns:
            One reading a sensor, in the order of `sensor_ids`, without those that have dropped out.
        """
        true = self._advance(ts)
        values = true + self._rng.normal(0.0, _NOISE, true.shape)
        silent = self._inject(ts, values)
        for column, digits in enumerate(_DIGITS):
            low, high = _LIMITS[column]
            values[:, column] = np.round(np.clip(values[:, column], low, high), digits)
        self._shown = values
        rows = values.tolist()
        return [
            PlantReading(sensor_id, ts, *rows[row])
            for row, sensor_id in enumerate(self.sensor_ids)
            if row not in silent
        ]

    def _advance(self, ts: float) -> NDArray[np.float64]:
        """The true values at `ts`, float64 [sensors, 3]."""
        if self._start is None:
            self._start = ts
            if self._faults_per_s > 0:
                self._next_fault = ts + self._first_fault_s
            # the machines have run before: a restart must not show as a jump
            self._last = ts - _RUN_UP_S / self._speed
            origin = self._origin_s if self._origin_s is not None else ts * self._speed
            self._at_s = origin - _RUN_UP_S
            self._temperature = self._equilibrium(self._at_s)
        if ts < self._last:
            raise ValueError(f"the plant is at {self._last} and cannot go back to {ts}")
        # long gaps are cut, into a thousand steps at most: the lag follows the day, it does not jump
        left, at = (ts - self._last) * self._speed, self._at_s
        longest = max(_MAX_STEP_S, left / 1000)
        while left > 0:
            dt = min(left, longest)
            at, left = at + dt, left - dt
            target = self._equilibrium(at)
            self._temperature += (target - self._temperature) * -np.expm1(-dt / self._tau_s)
        self._last, self._at_s = ts, at
        hall = self._hall_c(at)
        # what the sensor feels: the hall's air, warmed a little by its machine
        air = hall + 0.15 * (self._temperature - hall)
        saturation = 6.112 * np.exp(17.62 * air / (243.12 + air))
        weather, vapour = np.sin(2 * np.pi * at / _WEATHER_PERIODS_S + self._weather_phase).mean(axis=1)
        true = np.empty((len(self.sensor_ids), 3))
        true[:, 0] = self._temperature
        true[:, 1] = np.clip(100.0 * (11.0 + 2.5 * vapour) * self._water / saturation, 2.0, 99.0)
        true[:, 2] = 1013.25 + 12.0 * weather + self._height_hpa
        return true

    @staticmethod
    def _hall_c(at_s: float) -> float:
        """Temperature of the hall: coldest near five in the morning, warmest twelve hours later."""
        return 20.0 - 5.0 * float(np.cos(2 * np.pi * (at_s / 86_400.0 - 5.0 / 24.0)))

    def _equilibrium(self, at_s: float) -> NDArray[np.float64]:
        day = 2 * np.pi * at_s / 86_400.0
        shift = 0.5 - 0.3 * np.cos(day - 2 * np.pi * 2 / 24)
        load = np.clip(shift + 0.1 * np.sin(4 * day + self._load_phase), 0.0, 1.0)
        return np.asarray(self._hall_c(at_s) + self._rise_k * load)

    def _inject(self, ts: float, values: NDArray[np.float64]) -> set[int]:
        """Begin and end faults, change `values` in place; the rows that are silent."""
        self._active = [active for active in self._active if active.fault.end > ts]
        while self._next_fault <= ts:
            self._begin(self._next_fault, ts, values)
            self._next_fault += float(self._fault_rng.exponential(1.0 / self._faults_per_s))
        silent: set[int] = set()
        for fault, row, column, size, held in self._active:
            if fault.kind == "dropout":
                silent.add(row)
            elif fault.kind == "spike":
                values[row, column] += size
            elif fault.kind == "drift":
                values[row, column] += size * (ts - fault.start)
            else:
                values[row, column] = held
        return silent

    def _begin(self, start: float, ts: float, values: NDArray[np.float64]) -> None:
        rng = self._fault_rng
        # every draw is made whatever the kind, so that one fault never shifts the next one's luck
        first = self._start is not None and start <= self._start + self._first_fault_s
        kind = FAULT_KINDS[int(rng.integers(len(FAULT_KINDS)))]
        row, column = int(rng.integers(len(self.sensor_ids))), int(rng.integers(len(FIELDS)))
        size, sign, part = rng.uniform(0.8, 1.6), rng.choice((-1.0, 1.0)), rng.uniform()
        if first:
            kind = "spike"
        low, high = _DURATION_S[kind]
        # a spike lasts one reading at least, whenever the next one is taken
        end = max(start + low + part * (high - low), np.nextafter(ts, np.inf))
        if end < ts or self._busy_until[row] > start:
            return
        self._busy_until[row] = end
        name = self.sensor_ids[row]
        fault = Fault(kind, name, None if kind == "dropout" else FIELDS[column], start, float(end))
        scale = _SPIKE[column] if kind == "spike" else _DRIFT_PER_S[column]
        shown = float(self._shown[row, column]) if self._shown.any() else float(values[row, column])
        self._active.append(_Active(fault, row, column, float(sign * size * scale), shown))
        self._injected.append(fault)


class PlantConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="plant"):
    """Settings of the simulated plant as a source."""

    sensors: int = 50
    interval_s: float = 0.25
    seed: int = 0
    #: Plant seconds per second of the clock; 60: a day in 24 minutes.
    speed: float = 60.0
    faults_per_minute: float = 6.0
    #: Where the plant's time is kept, so that it stands still while the source does not run; None: nowhere.
    clock_file: str | None = None


class PlantSource:
    """The plant in real time: one batch of messages every `interval_s`."""

    def __init__(self, config: PlantConfig) -> None:
        self._interval_s = config.interval_s
        self._clock_file = None if config.clock_file is None else Path(config.clock_file)
        self._plant = Plant(
            config.sensors,
            seed=config.seed,
            speed=config.speed,
            faults_per_minute=config.faults_per_minute,
            origin_s=self._kept_time(),
        )

    async def batches(self) -> AsyncIterator[list[Message]]:
        """Readings of all sensors, keyed by sensor id, until cancelled."""
        encoder = msgspec.json.Encoder()
        due, last = time.monotonic(), 0.0
        while True:
            last = max(last, round(time.time(), 3))  # a clock that is set back must not break the plant
            yield [Message(r.sensor_id.encode(), encoder.encode(r)) for r in self._plant.step(last)]
            self._keep_time()
            due = max(due + self._interval_s, time.monotonic() - self._interval_s)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _kept_time(self) -> float | None:
        try:
            kept = float(self._clock_file.read_text()) if self._clock_file is not None else None
        except (OSError, ValueError):
            return None
        return kept if kept is None or math.isfinite(kept) else None

    def _keep_time(self) -> None:
        if self._clock_file is None:
            return
        with contextlib.suppress(OSError):  # a full disk must not stop the plant
            draft = self._clock_file.with_suffix(".new")
            draft.write_text(f"{self._plant.plant_time_s!r}\n")
            draft.replace(self._clock_file)
