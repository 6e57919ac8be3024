"""Which requests a client waits for. No clock, no Kafka."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass

from streams.errors import UsageError
from streams.requests import InferenceResult


@dataclass(slots=True)
class Ask:
    """A request that was sent.

    Attributes:
        model: that is asked.
        partition: of the topic of requests, where a cancellation must go, too.
        deadline_s: on the caller's clock.
        future: gets the result, or why it could not be sent.
    """

    model: str
    partition: int
    deadline_s: float
    future: asyncio.Future[InferenceResult]


class Outstanding:
    """The requests of a client by id. A result that nobody fetches is kept for a while, then forgotten.

    Args:
        keep_s: how long after the deadline.
    """

    def __init__(self, keep_s: float = 60.0) -> None:
        self._keep_s = keep_s
        self._asks: dict[str, Ask] = {}
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._asks)

    def add(self, identity: str, ask: Ask) -> None:
        """Wait for a result."""
        self._asks[identity] = ask
        heapq.heappush(self._ends, (ask.deadline_s + self._keep_s, identity))

    def get(self, identity: str) -> Ask:
        """The request of an id.

        Raises:
            UsageError: there is none, its result was fetched, or was kept for long enough.
        """
        ask = self._asks.get(identity)
        if ask is None:
            raise UsageError(f"no request '{identity}' is under way here: a result can be fetched once")
        return ask

    def waits_for(self, identity: str) -> bool:
        """Whether a result is one of ours, and the first one: a second one is dropped."""
        ask = self._asks.get(identity)
        return ask is not None and not ask.future.done()

    def answer(self, result: InferenceResult) -> None:
        """Take a result in."""
        if self.waits_for(result.id):
            self._asks[result.id].future.set_result(result)

    def fail(self, identity: str, error: Exception) -> None:
        """A request could not be sent."""
        if self.waits_for(identity):
            self._asks[identity].future.set_exception(error)

    def forget(self, identity: str) -> None:
        """A result was fetched."""
        ask = self._asks.pop(identity, None)
        if ask is not None and ask.future.done() and not ask.future.cancelled():
            ask.future.exception()  # else asyncio says that nobody looked at it
        if len(self._ends) > 2 * len(self._asks) + 64:
            self._ends = [end for end in self._ends if end[1] in self._asks]
            heapq.heapify(self._ends)

    def sweep(self, now_s: float) -> None:
        """Forget what nobody has fetched."""
        while self._ends and self._ends[0][0] <= now_s:
            self.forget(heapq.heappop(self._ends)[1])

    def fail_all(self, error: Exception) -> None:
        """Nothing will come any more."""
        for identity in list(self._asks):
            self.fail(identity, error)
