"""What the structs of a stream say by themselves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streams.config import (
    AlertConfig,
    FieldConfig,
    ScaleConfig,
    StreamConfig,
    TumblingConfig,
    WorkerConfig,
)

BASE = StreamConfig(
    name="s", topic="t", fields={"a": FieldConfig(), "b": FieldConfig()}, detector={"type": "ewz"}
)


def changed(**changes: Any) -> StreamConfig:
    return msgspec.structs.replace(BASE, **changes)


@pytest.mark.parametrize(
    "other",
    [
        changed(fields={"b": FieldConfig(), "a": FieldConfig()}),
        changed(fields={"a": FieldConfig()}),
        changed(fields={"a": FieldConfig(transforms=[ScaleConfig(factor=2)]), "b": FieldConfig()}),
        changed(detector={"type": "ewz", "alpha": 0.5}),
        changed(id_field=None),
    ],
)
def test_fingerprint_changes_with_what_the_state_means(other: StreamConfig) -> None:
    assert other.state_fingerprint() != BASE.state_fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        changed(),
        changed(name="u", topic="v", partitions=9, alerts=AlertConfig(open_after=3)),
        changed(detector={"threshold": 9.0, "type": "ewz"}),
        changed(fields={"a": FieldConfig(unit="K", min=0, threshold=2.0), "b": FieldConfig(required=False)}),
        changed(windows=[TumblingConfig(name="w", size_s=1)]),
    ],
)
def test_fingerprint_stays_where_kept_state_still_fits(other: StreamConfig) -> None:
    assert other.state_fingerprint() == BASE.state_fingerprint()


def test_fingerprint_is_the_same_in_every_process() -> None:
    assert BASE.state_fingerprint() == "034e96978a54e11b"


def test_fingerprint_of_windows_follows_the_windows_alone() -> None:
    one, two = TumblingConfig(name="w", size_s=1), TumblingConfig(name="v", size_s=1)
    assert changed(windows=[one]).windows_fingerprint() != changed(windows=[two]).windows_fingerprint()
    # kept windows are told apart by their place
    assert (
        changed(windows=[one, two]).windows_fingerprint() != changed(windows=[two, one]).windows_fingerprint()
    )
    assert changed(detector={"type": "x"}).windows_fingerprint() == BASE.windows_fingerprint()


def test_checkpoint_interval_follows_the_delivery() -> None:
    assert WorkerConfig().checkpoint_s == 1.0
    assert WorkerConfig(delivery="exactly_once").checkpoint_s == 0.1
    assert WorkerConfig(checkpoint_interval_ms=250).checkpoint_s == 0.25


def test_tagged_structs_are_read_by_their_type() -> None:
    (window,) = msgspec.convert(
        {
            "name": "s",
            "topic": "t",
            "fields": {},
            "windows": [{"type": "tumbling", "name": "w", "size_s": 5}],
        },
        StreamConfig,
    ).windows
    assert window == TumblingConfig(name="w", size_s=5)
