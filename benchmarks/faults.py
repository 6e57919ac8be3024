"""Which detector finds which fault: `python -m benchmarks.faults [--detector NAME ...] [--by-shape]`.

Generated series of seven shapes, with one fault each or none, through every registered univariate detector at
its shipped settings. A fault is found when a reading of its window is anomalous; sensors that are anomalous
there or just before without the fault as well don't count, so that nothing is found by chance. False alarms
are anomalous readings of series without faults, in 10,000, after the first 1,000; events are those that begin
a run of them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anomaly import DETECTORS, BadDetector, build_detector
from benchmarks import report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SENSORS = 40
#: What a detector can't do without.
CONFIGS: dict[str, dict[str, object]] = {"out_of_range": {"low": {"value": 2.0}, "high": {"value": 85.0}}}
READINGS = 8_000
#: The fault begins here.
AT = 6_000
#: Readings that are not looked at: warm-ups.
YOUNG = 1_000
STEP_S = 300.0
#: Readings of a day.
DAY = 288


class Series(NamedTuple):
    """One field of many sensors: values and times, [readings, sensors]."""

    values: Array
    ts: Array


def autoregressive(noise: Array, rho: float) -> Array:
    """x[t] = rho x[t-1] + noise[t], with variance 1."""
    out = np.empty_like(noise)
    out[0] = noise[0]
    for t in range(1, len(noise)):
        out[t] = rho * out[t - 1] + np.sqrt(1 - rho * rho) * noise[t]
    return out


def season(t: Array, sensors: int, rng: np.random.Generator) -> Array:
    phase = rng.uniform(0, 2 * np.pi, sensors)
    return 5 * np.sin(2 * np.pi * t[:, None] / DAY + phase)


#: From standard normal noise [readings, sensors] to a shape around 50.
SHAPES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "level": lambda e, rng: 50 + e,
    "season": lambda e, rng: 50 + season(np.arange(len(e)), e.shape[1], rng) + e,
    "trend": lambda e, rng: 50 + np.arange(len(e))[:, None] * 0.002 + e,
    "ar": lambda e, rng: 50 + 2 * autoregressive(e, 0.9),
    "walk": lambda e, rng: 50 + np.cumsum(0.1 * e, 0) + 0.1 * rng.normal(size=e.shape),
    "coarse": lambda e, rng: 50 + 2 * np.round(autoregressive(e, 0.95)),
    "counts": lambda e, rng: rng.poisson(20 + 0 * e).astype(float),
}


def clean(shape: str, seed: int, sensors: int = SENSORS, readings: int = READINGS) -> Series:
    """Series without faults, readings about STEP_S apart."""
    rng = np.random.default_rng((seed, list(SHAPES).index(shape)))
    values = SHAPES[shape](rng.normal(size=(readings, sensors)), rng)
    ts = 1.75e9 + STEP_S * np.arange(readings)[:, None] + rng.normal(0, 1, (readings, sensors))
    return Series(values, ts)


def spread(values: Array) -> Array:
    """The standard deviation of the last day's readings before the fault, by sensor."""
    return values[AT - DAY : AT].std(0)


def spike(s: Series, rng: np.random.Generator) -> int:
    s.values[AT] += 8 * spread(s.values) * rng.choice([-1, 1], s.values.shape[1])
    return 1


def level_shift(s: Series, rng: np.random.Generator) -> int:
    s.values[AT:] += 3 * spread(s.values) * rng.choice([-1, 1], s.values.shape[1])
    return 200


def drift(s: Series, rng: np.random.Generator) -> int:
    rise = np.minimum(np.arange(len(s.values) - AT) / 400, 1.0)[:, None]
    s.values[AT:] += 6 * spread(s.values) * rise
    return 600


def stuck(s: Series, rng: np.random.Generator) -> int:
    s.values[AT : AT + 100] = s.values[AT]
    return 100


def gap(s: Series, rng: np.random.Generator) -> int:
    s.ts[AT:] += 12 * STEP_S
    return 1


def sentinel(s: Series, rng: np.random.Generator) -> int:
    s.values[AT : AT + 3] = 0
    return 3


def noise_change(s: Series, rng: np.random.Generator) -> int:
    s.values[AT : AT + 200] += 2.5 * spread(s.values) * rng.normal(size=(200, s.values.shape[1]))
    return 200


def frequency(s: Series, rng: np.random.Generator) -> int:
    """The readings of the future come three times as fast."""
    later = s.values[AT : AT + 3 * ((len(s.values) - AT) // 3) : 3].copy()
    s.values[AT : AT + len(later)] = later
    s.values[AT + len(later) :] = later[-1] + s.values[AT + len(later) :] - s.values[AT + len(later)]
    return 300


def out_of_bounds(s: Series, rng: np.random.Generator) -> int:
    s.values[AT : AT + 3] = 90
    return 3


FAULTS: dict[str, Callable[[Series, np.random.Generator], int]] = {
    "spike": spike,
    "shift": level_shift,
    "drift": drift,
    "stuck": stuck,
    "gap": gap,
    "sentinel": sentinel,
    "range": out_of_bounds,
    "noise": noise_change,
    "frequency": frequency,
}


def univariate() -> list[str]:
    """The registered detectors that score each field for itself and need no settings but CONFIGS."""
    names = []
    for name in sorted(DETECTORS):
        try:
            detector = build_detector({"type": name, **CONFIGS.get(name, {})}, ["value", "other"])
        except BadDetector:
            continue
        if len(detector.thresholds) == 2:
            names.append(name)
    return names


def anomalous(name: str, s: Series) -> NDArray[np.bool_]:
    """Which readings a detector flags, [readings, sensors]."""
    detector = build_detector({"type": name, **CONFIGS.get(name, {})}, ["value"])
    n, sensors = s.values.shape
    rows = np.tile(np.arange(sensors, dtype=np.int32), n)
    scores = detector.score(detector.init(sensors), rows, s.values.reshape(-1, 1), s.ts.ravel())
    return (scores[:, 0] >= detector.thresholds[0]).reshape(n, sensors)


def found(name: str, shape: str, faults: Sequence[str], sensors: int = SENSORS) -> list[float]:
    """The share of each fault that a detector finds, of the sensors where it would not be found by chance."""
    without = anomalous(name, clean(shape, 1, sensors))
    shares = []
    for fault in faults:
        s = clean(shape, 1, sensors)
        window = slice(AT, AT + FAULTS[fault](s, np.random.default_rng(2)))
        chance = without[window].any(0) | without[AT - 20 : AT].any(0)
        flags = anomalous(name, s)[window].any(0)
        shares.append(float(flags[~chance].mean()) if not chance.all() else 0.0)
    return shares


def false_alarms(name: str, shape: str, sensors: int = SENSORS) -> tuple[float, float]:
    """Anomalous readings of clean series, and those of them that come first, in 10,000."""
    flags = anomalous(name, clean(shape, 0, sensors))[YOUNG:]
    return 1e4 * float(flags.mean()), 1e4 * float((flags[1:] & ~flags[:-1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--detector", nargs="*", default=univariate())
    parser.add_argument("--by-shape", action="store_true")
    options = parser.parse_args()
    table = []
    for name in options.detector:
        by_shape = [[*found(name, shape, list(FAULTS)), *false_alarms(name, shape)] for shape in SHAPES]
        rows = [(f"{name} {shape}", row) for shape, row in zip(SHAPES, by_shape, strict=True)]
        for label, row in [*(rows if options.by_shape else []), (name, np.mean(by_shape, 0).tolist())]:
            table.append([label, *(f"{x:.0%}" for x in row[:-2]), *(f"{x:.1f}" for x in row[-2:])])
    print(report.table(["detector", *FAULTS, "false", "events"], table))


if __name__ == "__main__":
    main()
