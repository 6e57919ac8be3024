"""A worker's share of a partition of frames."""

from __future__ import annotations

from typing import Any

from agents.infer import InferPartition
from streams.records import Chunk


async def test_a_share_remembers_how_far_its_answers_go() -> None:
    """A checkpoint's offset is older than its outputs: what they cover must not be answered again."""
    partition: Any = object()
    share = InferPartition(partition, {})
    assert share.applied == -1
    assert share.snapshot() == []
    share.applied = 41
    changelog = dict(share.snapshot())
    assert share.snapshot() == []
    share.applied = 57
    changelog |= dict(share.snapshot())
    assert InferPartition(partition, changelog).applied == 57


async def test_a_share_remembers_the_numbers_of_publishers() -> None:
    partition: Any = object()
    share = InferPartition(partition, {})

    def chunk(first: int, *numbers: int) -> Chunk:
        n = len(numbers)
        headers: list[Any] = [[("ps-seq", b"cam:%d" % number)] for number in numbers]
        return Chunk(
            "frames",
            0,
            first,
            first + n - 1,
            range(first, first + n),
            [0] * n,
            [b"c"] * n,
            [b"x"] * n,
            headers,
        )

    assert share.publishers.observe(chunk(0, 0, 1, 2), []).lost == 0
    again = InferPartition(partition, dict(share.snapshot()))
    seen = again.publishers.observe(chunk(3, 5, 5), [])
    assert (seen.lost, seen.duplicated) == (2, 1)
    assert again.publishers.observe(chunk(0, 0, 1, 2), []).duplicated == 0
