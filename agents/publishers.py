"""What is known of the messages of a partition apart from their content: publishers' numbers, refusals."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from streams.codecs import dead_letter
from streams.records import Chunk, Rejected
from streams.sequences import SequenceTracker
from streams.state import BlobState


class Output(NamedTuple):
    """Messages for one topic, in order; `headers` is empty where none has any."""

    keys: Sequence[bytes | None] = ()
    values: Sequence[bytes | None] = ()
    headers: Sequence[Sequence[tuple[str, bytes]]] = ()


class Seen(NamedTuple):
    """What `PublisherBook.observe` found in a chunk."""

    lost: int = 0
    duplicated: int = 0
    rejected: Sequence[Rejected] = ()
    dead_letters: Output = Output()


class PublisherBook:
    """Counts what is missing in the publishers' numbering and makes dead letters, each message once.

    It is part of the state of an agent's share of a partition.

    Args:
        changelog: contents of the partition's changelog.
    """

    def __init__(self, changelog: Any) -> None:
        self.sequences = SequenceTracker()
        # offsets up to which numbers are counted and dead letters sent
        self._seen = -1
        self._changed = False
        self._blob = BlobState("seen", "1")
        saved = self._blob.load(changelog)
        if saved is not None:
            self.sequences.restore(saved[0])
            self._seen = saved[1]

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """Take what has changed since the last checkpoint; see `streams.checkpoint.Participant`."""
        if not self._changed:
            return []
        self._changed = False
        return self._blob.dump(self.sequences.snapshot(), self._seen)

    def observe(self, chunk: Chunk, rejected: list[Rejected], applied: int = -1) -> Seen:
        """Take in the publishers' numbers of a chunk and the messages of it that are refused.

        A chunk that is replayed after a crash counts and sends nothing a second time.

        Args:
            chunk: as it was read.
            rejected: of its messages, in log order.
            applied: offset up to which this worker has processed everything.
        """
        seen = max(self._seen, applied)
        if not (chunk.headers or rejected) or chunk.last_offset <= seen:
            return Seen()
        self._seen, self._changed = chunk.last_offset, True
        if chunk.first_offset <= seen:
            rejected = [message for message in rejected if message.offset > seen]
            if chunk.headers:
                new = bisect_right(chunk.offsets, seen)
                chunk = dataclasses.replace(chunk, headers=chunk.headers[new:])
        lost, duplicated = self.sequences.observe(chunk)
        letters = [dead_letter(message, chunk.topic, chunk.partition) for message in rejected]
        return Seen(lost, duplicated, rejected, Output(*zip(*letters, strict=True)) if letters else Output())
