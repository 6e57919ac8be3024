"""Everything that runs for one input: one route, those of an ensemble, or the two of a cascade."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gpu_inference.errors import ModelNotReady, UnknownModel
from gpu_inference.models.ensemble import CascadeRule, Ensemble
from gpu_inference.models.live import LiveModels, Route
from gpu_inference.tasks.answers import Answer


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs, and how its answers become one.

    Attributes:
        kind: single, ensemble (all routes run) or cascade ("first" runs, and "second" if `wants_second`).
        routes: by member; one for single.
        missing: members that can't run, with the reason.
        ensemble: combines the answers; None for the other kinds.
        rule: of a cascade; None for the other kinds.
    """

    kind: Literal["single", "ensemble", "cascade"]
    routes: Mapping[str, Route]
    missing: Mapping[str, str] = field(default_factory=dict)
    ensemble: Ensemble | None = None
    rule: CascadeRule | None = None

    def wants_second(self, first: Answer) -> bool:
        """Whether a cascade's second model has to run now."""
        return self.rule is not None and "second" in self.routes and self.rule.wants_second(first)

    def final(self, answers: Mapping[str, Answer]) -> Answer:
        """One answer of those that came, by member; a member that failed has one with an error, or none."""
        failed = {name: {"error": reason} for name, reason in self.missing.items()}
        if self.ensemble is not None:
            return self.ensemble.combine({**failed, **answers})
        if self.rule is None:
            (name,) = self.routes
            return answers.get(name, {"error": "no answer"})
        first = answers.get("first") or failed.get("first") or {"error": "no answer"}
        second = answers.get("second")
        if second is None and self.rule.wants_second(first):
            second = failed.get("second", {"error": "no answer"})
        return self.rule.final(first, second)


def plan(state: LiveModels, name: str, source: str) -> Plan:
    """What runs for an input.

    Args:
        state: what is live.
        name: of an ensemble, a cascade, an alias or a model; the first of these that has it counts.
        source: of the input.

    Raises:
        UnknownModel: nothing of that name is live.
        ModelNotReady: nothing of it is ready.
    """
    if name in state.ensembles:
        record = state.ensembles[name]
        routes, missing = _routes(state, {member: member for member in record.members}, source)
        found = Plan("ensemble", routes, missing, ensemble=record.ensemble())
    elif name in state.cascades:
        cascade = state.cascades[name]
        routes, missing = _routes(state, {"first": cascade.first, "second": cascade.second}, source)
        found = Plan("cascade", routes, missing, rule=cascade.rule)
    else:
        return Plan("single", {name: state.route(name, source)})
    if not routes:
        told = "; ".join(f"{member}: {reason}" for member, reason in missing.items())
        raise ModelNotReady(f"no member of {name!r} is ready ({told}): send again later")
    return found


def _routes(
    state: LiveModels, members: Mapping[str, str], source: str
) -> tuple[dict[str, Route], dict[str, str]]:
    routes, missing = {}, {}
    for member, name in members.items():
        try:
            routes[member] = state.route(name, source)
        except (UnknownModel, ModelNotReady) as error:
            missing[member] = str(error)
    return routes, missing
