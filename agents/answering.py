"""One picture's way through what its stream names: a version, an ensemble or a cascade, and who looks on.

`gpu_inference.models.plan` says what runs and makes one answer of several; `ResultCache` may know the answer
already. Versions that only look on (shadows) are compared with the one that answers, and cost the stream
nothing: they are never waited for, and their frames are the first to be left out.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agents.model_server import Fitted, ModelServer, Request, Result
from gpu_inference.models.cache import ResultCache, Signature
from gpu_inference.models.plan import Plan
from gpu_inference.serving.batcher import Policy
from streams import metrics

if TYPE_CHECKING:
    from agents.serving import Serving
    from gpu_inference.tasks.geometry import Geometry

log = logging.getLogger("polarstream.serving")

#: Shadows wait behind everything else.
SHADOW_PRIORITY = -100


@dataclass(slots=True)
class Planned:
    """What runs for one picture; every server is held until its part is done.

    Attributes:
        name: that the stream has: of a model, an alias, an ensemble or a cascade.
        plan: how answers become one.
        members: servers by member of the plan.
        shadows: servers that only look on, with the member that they are compared with.
    """

    name: str
    plan: Plan
    members: dict[str, ModelServer]
    shadows: list[tuple[str, ModelServer]] = field(default_factory=list)

    def servers(self) -> list[ModelServer]:
        """All that the picture is fitted for, members first."""
        return [*self.members.values(), *(server for _, server in self.shadows)]

    def release(self, servers: Iterable[ModelServer] | None = None) -> None:
        """Let servers go whose part will not come; None: all of them."""
        for server in self.servers() if servers is None else servers:
            server.release()


class Answering:
    """Answers the pictures of one stream; belongs to the event loop.

    Args:
        stream: its name, for counters.
        serving: the worker's models.
        policy: what happens when pictures come too fast.
        priority: of its pictures.
        cache: known answers; None: every picture is run.
    """

    def __init__(
        self, stream: str, serving: Serving, policy: Policy, priority: int, cache: ResultCache | None
    ) -> None:
        self._stream = stream
        self._serving = serving
        self._policy = policy
        self._priority = priority
        self.cache = cache
        self._tasks: set[asyncio.Task[None]] = set()

    def known(self, planned: Planned, digest: bytes) -> Result | None:
        """The answer to the same bytes, if it is known; a hit lets the servers go."""
        if self.cache is None or planned.plan.kind != "single":
            return None
        (server,) = planned.members.values()
        return self._hit(planned, self.cache.exact(_model(server), digest, time.monotonic()), "exact")

    async def offer(
        self,
        planned: Planned,
        fitted: list[Fitted],
        source: str,
        ts: float,
        digest: bytes | None = None,
        signature: Signature | None = None,
    ) -> asyncio.Future[Result]:
        """Let a picture wait for its batches; returns once it does, with the answer to come.

        Args:
            planned: what runs.
            fitted: what `Preprocessor.fit` gave for each of `planned.servers()`.
            source: the camera.
            ts: when the picture was taken, seconds since the epoch.
            digest: of its bytes, for the cache.
            signature: of what it looks like, for the cache.
        """
        now = time.monotonic()
        created_s = now - max(0.0, time.time() - ts)
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if self.cache is not None and signature is not None:
            (server,) = planned.members.values()
            known = self._hit(planned, self.cache.similar(_model(server), source, signature, now), "similar")
            if known is not None:
                result.set_result(known)
                return result
        servers = planned.servers()
        got: dict[str, asyncio.Future[Result]] = {}
        later = {"second"} if planned.plan.kind == "cascade" and "first" in planned.members else set()
        for (member, server), (pixels, geometry) in zip(planned.members.items(), fitted, strict=False):
            if member not in later:
                got[member] = await self._run(server, pixels, geometry, source, created_s)
        shadows = []
        for (member, server), (pixels, geometry) in zip(
            planned.shadows, fitted[len(planned.members) :], strict=True
        ):
            looked = await self._run(server, pixels, geometry, source, created_s, shadow=True)
            shadows.append((member, server, looked))
        second = None
        if later and "second" in planned.members:
            server = planned.members["second"]
            second = functools.partial(self._run, server, *fitted[servers.index(server)], source, created_s)
        task = asyncio.create_task(
            self._answer(planned, got, shadows, second, result, source, digest, signature)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return result

    async def _run(
        self,
        server: ModelServer,
        pixels: Any,
        geometry: Geometry | None,
        source: str,
        created_s: float,
        shadow: bool = False,
    ) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        request = Request(pixels, geometry, time.monotonic(), functools.partial(_settle, server, future))
        policy, priority = (Policy.LATEST, SHADOW_PRIORITY) if shadow else (self._policy, self._priority)
        await server.offer(source, created_s, request, policy, priority)
        return future

    async def _answer(
        self,
        planned: Planned,
        got: dict[str, asyncio.Future[Result]],
        shadows: list[tuple[str, ModelServer, asyncio.Future[Result]]],
        second: Any,
        result: asyncio.Future[Result],
        source: str,
        digest: bytes | None,
        signature: Signature | None,
    ) -> None:
        results = dict(zip(got, await asyncio.gather(*got.values()), strict=True))
        try:
            if second is not None:
                first = results["first"]
                if first.dropped is None and planned.plan.wants_second(_answer_of(first)):
                    results["second"] = await (await second())
                else:
                    planned.release([planned.members["second"]])
            whole = self._whole(planned, results)
        except Exception as error:
            # a fault of ours must not hold the picture's chunk up: it goes to the dead letter
            log.exception("the answers of %s can't be made one", planned.name)
            whole = Result(who={}, error=f"{type(error).__name__}: {error}")
        if not result.done():
            result.set_result(whole)
        if self.cache is not None and planned.plan.kind == "single" and whole.answer is not None:
            (server,) = planned.members.values()
            self.cache.put(_model(server), source, whole.answer, time.monotonic(), digest, signature)
        for member, server, looked in shadows:
            trial = await looked
            if trial.dropped is None and results[member].dropped is None:
                live = planned.members[member]
                self._serving.compare(planned.name, live, results[member], server, trial)

    def _whole(self, planned: Planned, results: dict[str, Result]) -> Result:
        """One result of those of the members."""
        if planned.plan.kind == "single":
            (only,) = results.values()
            return only
        dropped = [one.dropped for one in results.values() if one.dropped is not None]
        if len(dropped) == len(results):
            return Result(who={}, dropped=dropped[0])
        answers = {member: _answer_of(one) for member, one in results.items()}
        answer = planned.plan.final(answers)
        ran = [one for one in results.values() if one.answer is not None]
        versions = "+".join(f"{one.who['model']}@{one.who['version']}" for one in results.values() if one.who)
        return Result(
            who={"model": planned.name, "version": versions},
            answer=None if "error" in answer else answer,
            error=str(answer.get("error", "")),
            device="+".join(dict.fromkeys(one.device for one in ran)),
            batch=max((one.batch for one in ran), default=0),
            failovers=tuple(name for one in ran for name in one.failovers),
            late=any(one.late for one in ran),
        )

    def _hit(self, planned: Planned, answer: dict[str, Any] | None, kind: str) -> Result | None:
        if answer is None:
            return None
        (server,) = planned.members.values()
        metrics.CACHE_HITS.labels(self._stream, kind).inc()
        planned.release()
        return Result(who=server.who, answer=answer, device="cache")


def _answer_of(result: Result) -> dict[str, Any]:
    """What a plan takes as a member's answer."""
    if result.answer is not None:
        return result.answer
    return {"error": result.error or f"left out: {result.dropped}"}


def _model(server: ModelServer) -> tuple[str, str]:
    return server.version.name, server.version.version


def _settle(server: ModelServer, future: asyncio.Future[Result], result: Result) -> None:
    server.release()
    if not future.done():
        future.set_result(result)
