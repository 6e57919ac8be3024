"""The best model for a stream: the most accurate one that is made for its data and quick enough now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_inference.errors import ModelError

#: What is running stays until another one is more accurate by so much, or it gets too slow.
HYSTERESIS = 0.005


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may run.

    Attributes:
        model: its name.
        version: of it.
        accuracy: `meta.accuracy` of its manifest; None if it isn't known, which counts as the least.
        data: `meta.data` of its manifest; empty: made for anything.
        compute_s: measured seconds from batch to answer, at the 95th percentile.
        queue_s: seconds that an input waits for a device now; the load.
        ready: whether it is loaded.
    """

    model: str
    version: str
    accuracy: float | None
    data: tuple[str, ...]
    compute_s: float
    queue_s: float = 0.0
    ready: bool = True

    @property
    def latency_s(self) -> float:
        """What an input that comes now takes."""
        return self.compute_s + self.queue_s


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that was chosen, and why in words."""

    candidate: Candidate
    within_budget: bool
    reason: str


def choose(
    candidates: Sequence[Candidate], data: str, budget_s: float, current: tuple[str, str] | None = None
) -> Choice:
    """Chooses a model.

    Args:
        candidates: models that may run.
        data: what the stream carries, "" if it doesn't say.
        budget_s: what an answer may take.
        current: the model and version that run now: they stay if they fit and are nearly as accurate.

    Returns:
        The most accurate of those within the budget, of equal ones the quickest; if none is within it, the
        quickest at all.

    Raises:
        ModelError: none is ready and made for the data.
    """
    fitting = [one for one in candidates if one.ready and (not one.data or not data or data in one.data)]
    if not fitting:
        told = (
            "; ".join(f"{one.model} {one.version}: {_why_not(one)}" for one in candidates) or "none is given"
        )
        raise ModelError(f"no model for data {data!r} ({told}): add one, or set meta.data")
    quick = [one for one in fitting if one.latency_s <= budget_s]
    budget = f"{1e3 * budget_s:.4g} ms"
    if not quick:
        best = min(fitting, key=lambda one: (one.latency_s, -_accuracy(one)))
        return Choice(
            best, False, f"none answers in {budget}; the quickest takes {1e3 * best.latency_s:.4g} ms"
        )
    best = max(quick, key=lambda one: (_accuracy(one), -one.latency_s))
    running = next((one for one in quick if (one.model, one.version) == current), None)
    if running is not None and _accuracy(best) < _accuracy(running) + HYSTERESIS:
        return Choice(
            running, True, f"it runs, takes {1e3 * running.latency_s:.4g} of {budget}, and no other is better"
        )
    accuracy = "unknown accuracy" if best.accuracy is None else f"accuracy {best.accuracy:.3f}"
    slow = [one for one in fitting if one.latency_s > budget_s and _accuracy(one) > _accuracy(best)]
    reason = f"{accuracy} in {1e3 * best.latency_s:.4g} of {budget}, "
    reason += f"the best of {len(quick)} that are quick enough"
    if slow:
        better = max(slow, key=_accuracy)
        reason += f"; {better.model} {better.version} would take {1e3 * better.latency_s:.4g} ms"
    return Choice(best, True, reason)


def _accuracy(candidate: Candidate) -> float:
    return -1.0 if candidate.accuracy is None else candidate.accuracy


def _why_not(candidate: Candidate) -> str:
    return f"made for {', '.join(candidate.data)}" if candidate.ready else "not loaded"
