"""Errors of the outside world, on top of `streams.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from streams.errors import PolarstreamError, RetryLater, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable


class TopicMissing(UsageError):
    """A topic that does not exist was to be read or written."""

    def __init__(self, topic: str, existing: Iterable[str] = ()) -> None:
        from difflib import get_close_matches

        near = get_close_matches(topic, list(existing), n=1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        super().__init__(
            f"topic '{topic}' does not exist: {guess}polarstream topics list shows what there is, "
            f"polarstream topics create {topic} makes it"
        )


class BadInput(PolarstreamError):
    """A file or stream of a user holds something that cannot be sent."""

    exit_code: ClassVar[int] = 65


class NoAnswer(RetryLater):
    """No answer to a request came in time."""


class RequestFailed(BadInput):
    """A request has an error for an answer.

    Args:
        reason: a word of those of dead letters.
        detail: what is wrong, and what to do.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")
