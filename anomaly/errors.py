"""Errors of the detectors, in polarstream's one tree."""

from __future__ import annotations

from streams.errors import ConfigError, Stop


class BadDetector(ConfigError):
    """A detector's configuration is refused, with every fault that it has; paths are inside that table."""


class StateMismatch(Stop):
    """Stored detector state was written by a detector of another shape."""

    def __init__(self, detector: str, found: int, wanted: int) -> None:
        super().__init__(
            f"stored state of detector {detector!r} has {found} bytes, not a multiple of {wanted}: "
            "other fields or another version wrote it; start from fresh state or restore the fields"
        )
