"""Why a reading is refused: the checks over whole columns, and the words for one bad reading.

The decoder and the column checks only find out *that* something is wrong, as fast as they can. Only then a
message is looked at once more, slowly, to name the field, the value and what to do.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.config import FieldConfig, StreamConfig

#: What is wrong with a reading: (reason, detail). The reason is one of `REASONS`.
Refusal: TypeAlias = tuple[str, str]

#: Longest sensor id, in characters.
MAX_ID_LENGTH: Final = 256

#: A number above this is a time in milliseconds: as seconds it would be the year 5138.
MILLISECONDS_FROM: Final = 1e11

#: Every reason a reading can be refused for, with its meaning.
REASONS: Final = {
    "empty_value": "the message has no value (a tombstone) or an empty one",
    "not_json": "the value is not a JSON object",
    "no_sensor_id": "there is no sensor id, or it is null or empty",
    "too_long_id": f"the sensor id is longer than {MAX_ID_LENGTH} characters",
    "missing_field": "a required field is absent or null",
    "wrong_type": "a field holds something else than a number, or the id something else than a string",
    "not_finite": "a field is NaN or infinite, or too large for a 64-bit float; of a frame: its answer",
    "out_of_bounds": "a field is outside its configured bounds",
    "bad_timestamp": "the time is no epoch number and no RFC 3339 text with an offset",
    "future_timestamp": "the time is further in the future than max_clock_skew_s",
    "bad_arrow": "the value is not a readable Arrow IPC stream",
    "no_arrow": "the value is an Arrow IPC stream, and pyarrow is not installed here",
    "bad_control": "the record of the control topic is none that can be used",
}

_LARGEST = sys.float_info.max


class ReadingChecks:
    """The checks of one stream's readings."""

    def __init__(self, stream: StreamConfig) -> None:
        self._stream = stream
        # infinity is out of these bounds too, so that one comparison finds both
        self._lows = [max(-_LARGEST, -math.inf if f.min is None else f.min) for f in stream.fields.values()]
        self._highs = [min(_LARGEST, math.inf if f.max is None else f.max) for f in stream.fields.values()]
        self._required = [f.required for f in stream.fields.values()]

    def bad_rows(
        self, columns: Sequence[NDArray[np.float64]], ts: NDArray[np.float64], now: float
    ) -> NDArray[np.bool_] | None:
        """Find the readings that must be refused.

        Args:
            columns: float64 [n] of each field; NaN where it is absent.
            ts: float64 [n], seconds since the epoch; NaN where it could not be read.
            now: seconds since the epoch.

        Returns:
            bool [n], or None where all are good.
        """
        if not len(ts):
            return None
        latest = now + self._stream.max_clock_skew_s
        # a NaN makes these comparisons False, so each is written to be True for good columns
        good = bool(ts.min() >= 0 and ts.max() <= latest)
        for column, low, high, required in zip(columns, self._lows, self._highs, self._required, strict=True):
            if not good:
                break
            if required:
                good = bool(column.min() >= low and column.max() <= high)
            else:
                good = not ((column < low) | (column > high)).any()
        if good:
            return None
        bad = ~((ts >= 0) & (ts <= latest))
        for column, low, high, required in zip(columns, self._lows, self._highs, self._required, strict=True):
            bad |= ~((column >= low) & (column <= high)) if required else (column < low) | (column > high)
        return bad if bad.any() else None

    def explain_row(self, values: Sequence[float | None], ts: float, now: float) -> Refusal:
        """Say what is wrong with a reading that came as columns; None stands for an absent value."""
        for (name, spec), value in zip(self._stream.fields.items(), values, strict=True):
            refusal = _field_refusal(name, spec, value)
            if refusal is not None:
                return refusal
        refusal = self._time_refusal(ts, ts, now)
        return refusal or ("wrong_type", "the reading was refused by its columns: check their types")

    def explain_message(
        self, value: bytes | None, sensor_id: str | None, now: float, error: Exception | None = None
    ) -> Refusal:
        """Say what is wrong with a message of one JSON reading.

        Args:
            value: the message's bytes.
            sensor_id: the id, where it does not stand in the value but is the Kafka key.
            now: seconds since the epoch.
            error: what the decoder said, where it refused the message.
        """
        if value is None:
            return "empty_value", "the value is null (a tombstone): send a reading, or nothing"
        if not value.strip():
            return "empty_value", "the value is empty: send a JSON object"
        parsed, constants = _parse(value)
        if parsed is _UNREADABLE:
            hint = "send one JSON object a message, in UTF-8"
            return "not_json", f"{_shown(value)} is not JSON ({_first_line(error)}): {hint}"
        if not isinstance(parsed, dict):
            return (
                "not_json",
                f"the value is a JSON {_type_name(parsed)}: send an object with the fields in it",
            )
        refusal = self._object_refusal(parsed, sensor_id, now)
        if refusal is not None:
            return refusal
        if constants:
            return "not_finite", f"the value holds {constants[0]}, which JSON has no number for: leave it out"
        return (
            "not_json",
            f"{_shown(value)} is not JSON ({_first_line(error)}): send one JSON object a message",
        )

    def _object_refusal(self, parsed: dict[str, Any], sensor_id: str | None, now: float) -> Refusal | None:
        stream = self._stream
        if stream.id_field is not None:
            refusal = id_refusal(parsed.get(stream.id_field), f"'{stream.id_field}'")
        else:
            refusal = id_refusal(sensor_id, "the Kafka key")
        if refusal is not None:
            return refusal
        for name, spec in stream.fields.items():
            refusal = _field_refusal(name, spec, parsed.get(name), absent=name not in parsed)
            if refusal is not None:
                return refusal
        if stream.time_field is None or parsed.get(stream.time_field) is None:
            return None
        raw = parsed[stream.time_field]
        return self._time_refusal(raw, _seconds(raw), now)

    def _time_refusal(self, raw: object, ts: float, now: float) -> Refusal | None:
        name = (
            f"'{self._stream.time_field}'" if self._stream.time_field is not None else "the Kafka timestamp"
        )
        skew = self._stream.max_clock_skew_s
        if not ts >= 0:
            form = "epoch seconds, epoch milliseconds, or RFC 3339 with an offset (2026-01-31T12:00:00Z)"
            return "bad_timestamp", f"{name} is {_shown(raw)}, which is no time since 1970: send {form}"
        if ts > now + skew:
            ahead = f"{ts - now:.1f} s ahead of this worker's clock, more than max_clock_skew_s {skew:g}"
            advice = "set the sensor's clock"
            if ts > 100 * now:
                advice = "send epoch seconds or milliseconds, not micro- or nanoseconds"
            return "future_timestamp", f"{name} is {_shown(raw)}, {ahead}: {advice}"
        return None


def id_refusal(value: object, where: str) -> Refusal | None:
    """Say what is wrong with a sensor id, None if it is good."""
    if value is None or value == "":
        state = "absent or null" if value is None else "empty"
        return "no_sensor_id", f"{where} is {state}: send the sensor's id there"
    if not isinstance(value, str):
        kind = _type_name(value)
        return "wrong_type", f"{where} is {_shown(value)}, a JSON {kind}: send the id as a string"
    if len(value) > MAX_ID_LENGTH:
        return "too_long_id", (
            f"{where} is {_shown(value)}, {len(value)} characters long: use at most {MAX_ID_LENGTH}"
        )
    return None


def _field_refusal(name: str, spec: FieldConfig, value: object, *, absent: bool = False) -> Refusal | None:
    if value is None:
        if not spec.required:
            return None
        state = "absent" if absent else "null"
        return "missing_field", f"'{name}' is {state}: send it, or set fields.{name}.required = false"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "wrong_type", f"'{name}' is {_shown(value)}, a JSON {_type_name(value)}: send a number"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return "not_finite", f"'{name}' is {number}: send a finite number, or leave the field out or null"
    shown = f"'{name}' is {number!r} {spec.unit}".rstrip()
    if spec.min is not None and number < spec.min:
        advice = f"check the sensor, or lower fields.{name}.min"
        return "out_of_bounds", f"{shown}, below its min {spec.min:g}: {advice}"
    if spec.max is not None and number > spec.max:
        advice = f"check the sensor, or raise fields.{name}.max"
        return "out_of_bounds", f"{shown}, above its max {spec.max:g}: {advice}"
    return None


_UNREADABLE: Final = object()


def _parse(value: bytes) -> tuple[Any, list[str]]:
    """Read JSON the forgiving way, NaN and huge numbers too; also give the NaN-like words met."""
    constants: list[str] = []

    def constant(word: str) -> float:
        constants.append(word)
        return float(word)

    try:
        # int() refuses thousands of digits; as a float they are infinite, which is what we want to know
        return json.loads(value.decode(), parse_constant=constant, parse_int=_whole), constants
    except (ValueError, RecursionError):
        return _UNREADABLE, constants


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < 20 else float(digits)


def _seconds(raw: object) -> float:
    """Read a time the way the codec does; NaN where it can't be."""
    if isinstance(raw, bool):
        return math.nan
    if isinstance(raw, (int, float)):
        return raw / 1000 if raw > MILLISECONDS_FROM else float(raw)
    if isinstance(raw, str):
        try:
            return moment_seconds(msgspec.convert(raw, datetime))
        except msgspec.ValidationError:
            return math.nan
    return math.nan


def scale_times(ts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give epoch seconds for epoch seconds or milliseconds, float64 [n]; NaN stays."""
    if len(ts) and not ts.max() <= MILLISECONDS_FROM:
        return np.where(ts > MILLISECONDS_FROM, ts / 1000, ts)
    return ts


def moment_seconds(moment: datetime) -> float:
    """Seconds since the epoch; NaN for a datetime without an offset, which says no moment."""
    return math.nan if moment.tzinfo is None else moment.timestamp()


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return {int: "number", float: "number", str: "string", list: "array"}.get(type(value), "object")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: Exception | None) -> str:
    return str(error).splitlines()[0] if error is not None and str(error) else type(error).__name__
