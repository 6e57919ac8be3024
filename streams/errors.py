"""Errors that polarstream raises on purpose.

Three kinds are kept apart: try again later (`RetryLater`), a record that can never be used
(`BadRecord`, which ends in the dead-letter topic) and stop (`Stop`, `ConfigError`, `UsageError`).
Every message is a fact with the value in it, then what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class PolarstreamError(Exception):
    """Base of every error that is shown to a user without a traceback."""

    #: What the process exits with (sysexits where one fits).
    exit_code: ClassVar[int] = 1


class UsageError(PolarstreamError):
    """A command was called with something it cannot use."""

    exit_code = 2


class Fault(NamedTuple):
    """One fault of a configuration: where it is and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(PolarstreamError):
    """A configuration is refused whole, with every fault that it has."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class BadRecord(PolarstreamError):
    """A record that can never be used; it goes to the dead-letter topic.

    Args:
        reason: a short snake_case word, the label of the metric that counts it.
        detail: what is wrong with this record, with the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class RetryLater(PolarstreamError):
    """Something outside is not there now; the same call may go through later."""

    exit_code = 75


class BrokerUnavailable(RetryLater):
    """No Kafka broker answered."""

    exit_code = 69


class Stop(PolarstreamError):
    """Something that only a person can mend."""

    exit_code = 70


class MissingExtra(Stop):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'polarstream[{extra}]'")
