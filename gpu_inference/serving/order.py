"""Answers of a source in the order of its frames, though several devices answer in any order. No clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from gpu_inference.serving.batcher import Item

T = TypeVar("T")
A = TypeVar("A")


class SourceOrder(Generic[T, A]):
    """Holds an answer back until those before it, of the same source, are there or will never come.

    It holds no more than what is in flight, since only taken items count. Not for several threads.

    Example:
        >>> order = SourceOrder()
        >>> first, second = (Item("door", n, 0.0, None) for n in (1, 2))
        >>> order.began([first, second])
        >>> order.ended(second, "cat")
        []
        >>> [answer for _, answer in order.ended(first, "dog")]
        ['dog', 'cat']
    """

    def __init__(self) -> None:
        # of each source: items in flight, oldest first, each with its answer once that is known
        self._flying: dict[str, deque[tuple[Item[T], list[A | None]]]] = {}

    def __len__(self) -> int:
        """Items in flight, or held back."""
        return sum(map(len, self._flying.values()))

    def began(self, items: Iterable[Item[T]]) -> None:
        """Items left the batcher, in this order."""
        for item in items:
            self._flying.setdefault(item.source, deque()).append((item, []))

    def ended(self, item: Item[T], answer: A | None) -> list[tuple[Item[T], A]]:
        """An item has its answer, or will never have one.

        Args:
            item: one that began; it is told from others of its source by its sequence.
            answer: None where it failed.

        Returns:
            What may go out now, in order.
        """
        flying = self._flying[item.source]
        next(known for other, known in flying if other.sequence == item.sequence).append(answer)
        out: list[tuple[Item[T], A]] = []
        while flying and flying[0][1]:
            first, (known, *_) = flying.popleft()
            if known is not None:
                out.append((first, known))
        if not flying:
            del self._flying[item.source]
        return out
