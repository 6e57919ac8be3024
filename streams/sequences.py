"""Lost and duplicated messages, told by the numbers that publishers put on them.

A publisher that wants to be checked gives each message the header `ps-seq` = `<producer id>:<n>`, where n
counts its messages to that partition from 0. Kafka keeps the order of a partition, so a number that is
skipped is a message lost before Kafka, and one that comes again is a duplicate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.records import Chunk

HEADER: Final = "ps-seq"

#: Publishers remembered a partition; the one that was silent for longest is forgotten first.
MAX_PRODUCERS: Final = 1024
#: Gaps remembered a publisher, to tell a late message from a duplicate.
MAX_GAPS: Final = 64

_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
_decode_numbers = msgspec.json.Decoder(list[_Number]).decode


class _Producer(msgspec.Struct, array_like=True):
    next: int
    #: What is missing so far, as [first, behind the last], oldest first.
    gaps: list[tuple[int, int]] = []


_snapshot_decoder = msgspec.msgpack.Decoder(dict[bytes, _Producer])


class SequenceTracker:
    """Counts lost and duplicated messages of one partition; memory is bounded.

    A publisher's first message that is seen sets where its count begins, so that old messages which
    retention has deleted, or a start from the latest offset, are not taken for losses. A number that was
    counted as lost and comes after all is neither lost nor duplicated: it raises `late`.
    """

    def __init__(self) -> None:
        self.late = 0
        self._producers: dict[bytes, _Producer] = {}

    def observe(self, chunk: Chunk) -> tuple[int, int]:
        """Take in a chunk that has not been observed before.

        Returns:
            Messages newly found (lost, duplicated).
        """
        if not chunk.headers:
            return 0, 0
        # the usual case, our header alone, without an inner loop: 0.07 instead of 0.11 µs a message
        marks = [
            own[0][1] if len(own) == 1 and own[0][0] == HEADER else _find(own) for own in chunk.headers if own
        ]
        lost = duplicated = 0
        for name, numbers in _by_producer([mark for mark in marks if mark]):
            producer = self._producers.pop(name, None) or _Producer(numbers[0])
            self._producers[name] = producer  # youngest last
            if numbers[0] == producer.next and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
                producer.next += len(numbers)
                continue
            for number in numbers:
                if number == producer.next:
                    producer.next += 1
                elif number > producer.next:
                    lost += number - producer.next
                    producer.gaps.append((producer.next, number))
                    del producer.gaps[:-MAX_GAPS]
                    producer.next = number + 1
                elif _fill(producer.gaps, number):
                    self.late += 1
                else:
                    duplicated += 1
        while len(self._producers) > MAX_PRODUCERS:
            del self._producers[next(iter(self._producers))]
        return lost, duplicated

    def snapshot(self) -> bytes:
        """Give the state for a checkpoint."""
        return msgspec.msgpack.encode(self._producers)

    def restore(self, state: bytes) -> None:
        """Take over the state of a checkpoint.

        Raises:
            ValueError: the state is damaged.
        """
        self._producers = _snapshot_decoder.decode(state)


def _find(headers: Iterable[tuple[str, bytes]]) -> bytes:
    for name, value in headers:
        if name == HEADER:
            return value or b""
    return b""


def _by_producer(marks: list[bytes]) -> list[tuple[bytes, list[int]]]:
    """Group marks by producer, numbers in order; marks of another form are left out."""
    if not marks:
        return []
    # the usual case, one producer: all numbers by one call of the JSON decoder, 0.11 instead of 0.28 µs a
    # message (8192 messages)
    first, _, _ = marks[0].rpartition(b":")
    joined = b",".join(marks)
    if joined.count(first + b":") == len(marks):
        try:
            numbers = _decode_numbers(b"[" + joined.replace(first + b":", b"") + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        else:
            if len(numbers) == len(marks):
                return [(first, numbers)]
    groups: dict[bytes, list[int]] = {}
    for mark in marks:
        name, _, digits = mark.rpartition(b":")
        if digits.isdigit() and len(digits) < 19:
            groups.setdefault(name, []).append(int(digits))
    return list(groups.items())


def _fill(gaps: list[tuple[int, int]], number: int) -> bool:
    """Take a number out of the gaps; False if it was in none."""
    for i, (first, behind) in enumerate(gaps):
        if first <= number < behind:
            gaps[i : i + 1] = [gap for gap in ((first, number), (number + 1, behind)) if gap[0] < gap[1]]
            return True
    return False
