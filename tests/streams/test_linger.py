"""How long a fetch may wait for more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from streams.chunk_fetcher import ChunkFetcher, ChunkLimits


@pytest.mark.parametrize(
    ("own", "topics", "expected"),
    [
        ({}, ["readings", "requests"], 7),
        ({"requests": 2.0}, ["readings"], 7),
        ({"requests": 2.0}, ["readings", "requests"], 2),
        ({"requests": 0.0}, ["requests"], 0),
        ({"requests": 2.0}, [], 7),
    ],
)
def test_the_shortest_linger_of_the_assigned_topics_holds(
    own: dict[str, float], topics: list[str], expected: float
) -> None:
    limits = ChunkLimits(linger_ms=7)
    limits.linger_by_topic.update(own)
    fetcher: Any = SimpleNamespace(limits=limits)
    assignment = SimpleNamespace(tps={TopicPartition(topic, n) for topic in topics for n in range(2)})
    assert ChunkFetcher._linger_ms(fetcher, assignment) == expected
