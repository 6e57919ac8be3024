"""Two versions on the same inputs: how they differ, and what follows from it. Pure, in a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gpu_inference.models.agreement import agreement
from gpu_inference.tasks.answers import Answer

#: Of the intervals: 99.7%, since they are looked at again and again.
Z: Final = 3.0
#: A version that is plainly worse needs no more than so many inputs.
EARLY: Final = 30


class Rules(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """When a version on trial takes over, and when it goes."""

    #: Inputs that both have answered.
    min_samples: Annotated[int, Meta(ge=1)] = 500
    #: After so many without a decision the trial ends with a roll back.
    max_samples: Annotated[int, Meta(ge=1)] = 20_000
    #: Mean agreement of the answers; the ends of its interval are held against it.
    min_agreement: Annotated[float, Meta(ge=0, le=1)] = 0.95
    #: Mean seconds of the version on trial by those of the live one.
    max_latency_ratio: Annotated[float, Meta(gt=0)] = 1.5
    #: Part of inputs that only the version on trial fails.
    max_errors: Annotated[float, Meta(ge=0, le=1)] = 0.01
    #: Relative difference of numbers that still counts as agreement.
    tolerance: Annotated[float, Meta(ge=0)] = 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """The difference so far; intervals are 99.7%.

    Attributes:
        samples: inputs compared.
        agreement: mean, from 0 to 1.
        agreement_interval: of it.
        score_shift: by how much the trial's scores are higher; None where none was compared.
        score_shift_interval: of it.
        latency_ratio: mean seconds of the trial by those of the live one; None without any.
        errors: part of inputs that only the trial failed.
        errors_interval: of it.
    """

    samples: int
    agreement: float
    agreement_interval: tuple[float, float]
    score_shift: float | None
    score_shift_interval: tuple[float, float] | None
    latency_ratio: float | None
    errors: float
    errors_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and why in words."""

    action: Literal["wait", "promote", "roll back"]
    reason: str


class Sums(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All that a comparison keeps, as JSON too: workers send theirs to the one that decides."""

    samples: int = 0
    #: Inputs that only the trial failed.
    errors: int = 0
    #: Sum of agreements.
    agreement: float = 0.0
    #: Number, mean and sum of squared deviations of score shifts.
    shifts: int = 0
    shift: float = 0.0
    shift_squares: float = 0.0
    #: Sums of seconds.
    live_s: float = 0.0
    trial_s: float = 0.0

    def add(self, other: Sums) -> None:
        """Takes in what another worker has seen (T. Chan, G. Golub, R. LeVeque, 1979)."""
        both = self.shifts + other.shifts
        if other.shifts:
            step = other.shift - self.shift
            self.shift += step * other.shifts / both
            self.shift_squares += other.shift_squares + step * step * self.shifts * other.shifts / both
            self.shifts = both
        for name in ("samples", "errors", "agreement", "live_s", "trial_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Comparison:
    """Compares a version on trial with the live one.

    Args:
        rules: of the trial.
        sums: to go on from; those of several workers are added up by `Sums.add`.
    """

    def __init__(self, rules: Rules, sums: Sums | None = None) -> None:
        self.rules = rules
        self.sums = Sums() if sums is None else sums

    def add(self, live: Answer, trial: Answer, live_s: float, trial_s: float) -> None:
        """Takes both answers to one input.

        Args:
            live: the answer that was published.
            trial: the one of the version on trial; `{"error": ...}` where it failed.
            live_s: seconds that it took, the input's part of its batch.
            trial_s: the same of the trial.
        """
        same, shift = agreement(live, trial, self.rules.tolerance)
        failed = "error" in trial and "error" not in live
        one = Sums(samples=1, errors=int(failed), agreement=same, live_s=live_s, trial_s=trial_s)
        if shift is not None:
            one.shifts, one.shift = 1, shift
        self.sums.add(one)

    def report(self) -> Report:
        """The difference so far."""
        sums, n = self.sums, max(self.sums.samples, 1)
        interval = None
        if sums.shifts > 1:
            error = Z * math.sqrt(sums.shift_squares / (sums.shifts - 1) / sums.shifts)
            interval = (sums.shift - error, sums.shift + error)
        return Report(
            samples=sums.samples,
            agreement=sums.agreement / n,
            agreement_interval=wilson(sums.agreement, sums.samples),
            score_shift=sums.shift if sums.shifts else None,
            score_shift_interval=interval,
            latency_ratio=sums.trial_s / sums.live_s if sums.live_s > 0 else None,
            errors=sums.errors / n,
            errors_interval=wilson(sums.errors, sums.samples),
        )

    def verdict(self) -> Verdict:
        """What the rules say to it."""
        rules, told = self.rules, self.report()
        low, high = told.agreement_interval
        if told.samples >= EARLY and told.errors_interval[0] > rules.max_errors:
            return Verdict(
                "roll back", f"{told.errors:.1%} errors of its own, allowed are {rules.max_errors:.1%}"
            )
        if told.samples >= EARLY and high < rules.min_agreement:
            return Verdict(
                "roll back",
                f"agreement {told.agreement:.1%} (at most {high:.1%}) is below {rules.min_agreement:.1%}",
            )
        if told.samples < rules.min_samples:
            return Verdict("wait", f"{told.samples} of {rules.min_samples} samples")
        slow = told.latency_ratio is not None and told.latency_ratio > rules.max_latency_ratio
        if slow:
            ratio = f"takes {told.latency_ratio:.2f} times as long"
            return Verdict("roll back", f"{ratio}, allowed are {rules.max_latency_ratio:g}")
        if low >= rules.min_agreement and told.errors <= rules.max_errors:
            return Verdict(
                "promote", f"agreement {told.agreement:.1%} (at least {low:.1%}) over {told.samples} samples"
            )
        if told.samples >= rules.max_samples:
            return Verdict(
                "roll back", f"{told.samples} samples did not show agreement of {rules.min_agreement:.1%}"
            )
        return Verdict(
            "wait", f"agreement is between {low:.1%} and {high:.1%}, wanted are {rules.min_agreement:.1%}"
        )


def wilson(successes: float, samples: int) -> tuple[float, float]:
    """Interval of a proportion (E. B. Wilson, 1927); for means of numbers from 0 to 1 it is no narrower."""
    if samples == 0:
        return 0.0, 1.0
    p, z2 = successes / samples, Z * Z / samples
    middle = (p + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(max(p * (1 - p), 0) / samples + z2 / samples / 4) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)
