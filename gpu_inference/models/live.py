"""What is live: the state behind routes, from records and from what the worker reports. Pure.

A version goes `loading, warming, ready, draining, unloading`; each step but the first is taken when the
worker reports that the one before is done. A new version takes a model's traffic when it is ready, in one
step, and the old one goes on serving until then; so no input finds no model, and each is answered by one
version. A version that can't be loaded takes nothing over: what served goes on. A route costs 2 to 8 us.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gpu_inference.errors import ModelNotReady, RegistryError, UnknownModel
from gpu_inference.models import records
from gpu_inference.models.records import (
    AliasRecord,
    Canary,
    CascadeRecord,
    EnsembleRecord,
    Message,
    ModelRecord,
    Share,
    VersionRecord,
)
from gpu_inference.models.traffic import choose, draw

Phase: TypeAlias = Literal["loading", "warming", "ready", "draining", "unloading", "failed"]
#: Name and version.
Target: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Action:
    """What the worker has to do.

    Attributes:
        kind: load, warm and drain are reported when done (`loaded`, `warmed`, `drained`), unload too
            (`unloaded`), and `failed` instead of the first two. switch is done already, and told for the log.
        model: its name.
        version: of it.
        sha256: of the file that must be loaded; None if no record tells.
    """

    kind: Literal["load", "warm", "switch", "drain", "unload"]
    model: str
    version: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers an input.

    Attributes:
        model: its name.
        version: of it; ready.
        shadows: others that are ready and see the input too, without an answer.
        role: why this version: live, canary, or pinned by an alias.
    """

    model: str
    version: str
    shadows: tuple[Target, ...] = ()
    role: Literal["live", "canary", "pinned"] = "live"


class LiveModels:
    """What a worker knows by the records read so far, and how far it has got.

    Attributes:
        versions: records of versions, by name and version.
        models: records of models.
        aliases: records of aliases.
        ensembles: records of ensembles, of which `plan.plan` makes routes.
        cascades: the same of cascades.
        serving: the version of each model that answers now.
        phases: of every version that the worker has to do with.
        reasons: why a version failed.
    """

    def __init__(self) -> None:
        self.versions: dict[Target, VersionRecord] = {}
        self.models: dict[str, ModelRecord] = {}
        self.aliases: dict[str, AliasRecord] = {}
        self.ensembles: dict[str, EnsembleRecord] = {}
        self.cascades: dict[str, CascadeRecord] = {}
        self.serving: dict[str, str] = {}
        self.phases: dict[Target, Phase] = {}
        self.reasons: dict[Target, str] = {}

    # -- records

    def apply(self, key: bytes | None, value: bytes | None) -> list[Action]:
        """Takes a message of the topic in.

        Returns:
            What is to be done now.

        Raises:
            RecordError: it is no record of models; what held before goes on to hold.
        """
        (kind, name, *rest), record = records.decode(key, value)
        by_kind: dict[str, dict[Any, Any]] = {
            "version": self.versions,
            "model": self.models,
            "alias": self.aliases,
            "ensemble": self.ensembles,
            "cascade": self.cascades,
        }
        held = by_kind[kind]
        identity = (name, *rest) if rest else name
        if record is None:
            held.pop(identity, None)
        else:
            held[identity] = record
        named = {target for target in self.phases if target[0] == name or kind == "alias"}
        for target in named:
            if self.phases[target] == "failed":  # whoever writes again wants it tried again
                del self.phases[target]
        return self._settle()

    def refresh(self) -> list[Action]:
        """What is to be done after records were put into `versions`, `models` or `aliases` by hand."""
        return self._settle()

    # -- reports

    def loaded(self, model: str, version: str) -> list[Action]:
        """The worker has loaded a version."""
        return self._step((model, version), "loading", "warming", "warm")

    def warmed(self, model: str, version: str) -> list[Action]:
        """The worker has run a version on every batch size that it will see."""
        return self._step((model, version), "warming", "ready")

    def failed(self, model: str, version: str, reason: str) -> list[Action]:
        """A version can't be loaded or run, and its memory was given back.

        It stays out until a record of its model, or of an alias, is written again.
        """
        target = (model, version)
        if target in self.phases:
            self.phases[target] = "failed"
            self.reasons[target] = reason
            if self.serving.get(model) == version:
                del self.serving[model]
        return self._settle()

    def drained(self, model: str, version: str) -> list[Action]:
        """No input is with a version now; since it drains, no route leads to it."""
        return self._step((model, version), "draining", "unloading", "unload")

    def unloaded(self, model: str, version: str) -> list[Action]:
        """The memory of a version was given back."""
        if self.phases.get((model, version)) == "unloading":
            del self.phases[model, version]
        return self._settle()

    # -- routes

    def route(self, name: str, source: str) -> Route:
        """Who answers an input; the same for all inputs of a source while nothing changes.

        Args:
            name: of an alias or a model; an alias hides a model of its name.
            source: of the input.

        Raises:
            UnknownModel: neither is live.
            ModelNotReady: nothing that may answer is ready.
        """
        alias = self.aliases.get(name)
        if alias is None:
            if name not in self.models:
                known = ", ".join(sorted({*self.aliases, *self.models})) or "none"
                raise UnknownModel(
                    f"no model or alias {name!r} is live, only {known}: promote a version of it"
                )
            found = self._of_model(name, source)
            shadows = [(name, version) for version in self.models[name].shadows]
        else:
            found = self._of_alias(name, alias, source)
            shadows = [(one.model, one.version or self.serving.get(one.model, "")) for one in alias.shadows]
        if found is None:
            raise ModelNotReady(f"{name!r} is live but not ready{self._why(name)}: send again later")
        model, version, role = found
        ready = tuple(
            one
            for one in dict.fromkeys(shadows)
            if self.phases.get(one) == "ready" and one != (model, version)
        )
        return Route(model, version, ready, role)

    # -- records for the topic

    def added(self, model: str, version: str, sha256: str) -> Message:
        """The record of a version that was put into the folder.

        Raises:
            RegistryError: there is one with another hash.
        """
        known = self.versions.get((model, version))
        if known is not None and known.sha256 != sha256:
            raise RegistryError(
                f"version {version!r} of {model!r} is another file: add it under a new number"
            )
        return records.encode(("version", model, version), VersionRecord(sha256=sha256))

    def promote(self, model: str, version: str, keep_previous: bool = False) -> Message:
        """The record that makes a version live; a canary or shadow of a model ends with it.

        Raises:
            RegistryError: no such version was added.
        """
        self._known(model, version)
        now = self.models.get(model)
        previous = None if now is None else now.previous if now.live == version else now.live
        record = ModelRecord(live=version, previous=previous, keep_previous=keep_previous)
        return records.encode(("model", model), record)

    def roll_back(self, model: str) -> Message:
        """The record that makes the version before live again; a canary is only ended.

        Raises:
            RegistryError: there is none.
        """
        now = self.models.get(model)
        if now is not None and now.canary is not None:
            ended = ModelRecord(live=now.live, previous=now.previous, keep_previous=now.keep_previous)
            return records.encode(("model", model), ended)
        if now is None or now.previous is None:
            raise RegistryError(f"model {model!r} has no version before this one: promote one by its number")
        record = ModelRecord(live=now.previous, previous=now.live, keep_previous=now.keep_previous)
        return records.encode(("model", model), record)

    def try_out(self, model: str, version: str, part: float = 0.0) -> Message:
        """The record that makes a version a canary for a part of the sources, or with part 0 a shadow.

        Raises:
            RegistryError: the model isn't live, or no such version was added.
        """
        self._known(model, version)
        now = self.models.get(model)
        if now is None:
            raise RegistryError(f"model {model!r} is not live: promote a first version")
        record = ModelRecord(
            live=now.live,
            previous=now.previous,
            keep_previous=now.keep_previous,
            canary=Canary(version=version, part=part) if part else None,
            shadows=() if part else (version,),
        )
        return records.encode(("model", model), record)

    @staticmethod
    def unload(model: str) -> Message:
        """The record that ends a model."""
        return records.encode(("model", model), None)

    # -- inside

    def _known(self, model: str, version: str) -> None:
        if (model, version) not in self.versions:
            there = ", ".join(v for m, v in self.versions if m == model) or "none"
            raise RegistryError(f"no version {version!r} of {model!r} was added, only {there}: add it first")

    def _of_model(
        self, name: str, source: str
    ) -> tuple[str, str, Literal["live", "canary", "pinned"]] | None:
        record = self.models.get(name)
        if record is not None and record.canary is not None:
            canary = (name, record.canary.version)
            # the salt has no version: who tries out one canary tries out the next one
            if draw(name, source) < record.canary.part and self.phases.get(canary) == "ready":
                return *canary, "canary"
        version = self.serving.get(name)
        return None if version is None else (name, version, "live")

    def _of_alias(
        self, name: str, alias: AliasRecord, source: str
    ) -> tuple[str, str, Literal["live", "canary", "pinned"]] | None:
        shares = [share for share in alias.traffic if self._may_answer(share)]
        if not shares:
            return None
        targets = [(f"{share.model}\0{share.version or ''}", share.weight) for share in shares]
        share = shares[choose(name, source, targets)]
        if share.version is not None:
            return share.model, share.version, "pinned"
        return self._of_model(share.model, source)

    def _may_answer(self, share: Share) -> bool:
        if share.version is None:
            return share.model in self.serving
        return self.phases.get((share.model, share.version)) == "ready"

    def _why(self, name: str) -> str:
        alias = self.aliases.get(name)
        named = {share.model for share in alias.traffic} if alias else {name}
        why = [f"{m} {v}: {self.reasons[m, v]}" for m, v in self.reasons if m in named]
        return f" ({'; '.join(why)})" if why else ""

    def _step(
        self, target: Target, before: Phase, after: Phase, then: Literal["warm", "unload"] | None = None
    ) -> list[Action]:
        """Moves a version on, unless the report is of a time before."""
        moved = self.phases.get(target) == before
        if moved:
            self.phases[target] = after
        actions = self._settle()
        if moved and then is not None and self.phases.get(target) == after:
            actions.append(self._action(then, target))
        return actions

    def _settle(self) -> list[Action]:
        """Switches what is ready to serve, then loads what is wanted and drains what is not."""
        actions = []
        for model, record in self.models.items():
            target = (model, record.live)
            if self.serving.get(model) == record.live:
                continue
            if self.phases.get(target) == "draining":
                self.phases[target] = "ready"
            if self.phases.get(target) == "ready":
                self.serving[model] = record.live
                actions.append(self._action("switch", target))
        for model in [model for model in self.serving if model not in self.models]:
            del self.serving[model]
        wanted = set(self._wanted())
        for target in sorted(wanted):
            phase = self.phases.get(target)
            if phase is None:
                self.phases[target] = "loading"
                self.reasons.pop(target, None)
                actions.append(self._action("load", target))
            elif phase == "draining":
                self.phases[target] = "ready"
        for target in sorted(self.phases.keys() - wanted):
            phase = self.phases[target]
            if phase == "ready":
                self.phases[target] = "draining"
                actions.append(self._action("drain", target))
            elif phase == "warming":  # it has no inputs
                self.phases[target] = "unloading"
                actions.append(self._action("unload", target))
            elif phase == "failed":
                del self.phases[target]
                self.reasons.pop(target, None)
        return actions

    def _wanted(self) -> Iterator[Target]:
        for model, record in self.models.items():
            yield model, record.live
            if model in self.serving:
                yield model, self.serving[model]
            if record.canary is not None:
                yield model, record.canary.version
            if record.keep_previous and record.previous is not None:
                yield model, record.previous
            for version in record.shadows:
                yield model, version
        for alias in self.aliases.values():
            for share in (*alias.traffic, *alias.shadows):
                if share.version is not None:
                    yield share.model, share.version

    def _action(self, kind: Literal["load", "warm", "switch", "drain", "unload"], target: Target) -> Action:
        record = self.versions.get(target)
        return Action(kind, *target, record.sha256 if record is not None else None)
