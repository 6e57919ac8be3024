"""Requests to models and their results, on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from connectors.client.outstanding import Ask, Outstanding
from connectors.client.payload import Input, payload_of
from connectors.errors import BadInput, NoAnswer, RequestFailed
from connectors.publisher import MAX_MESSAGE_BYTES
from streams.errors import BadRecord, BrokerUnavailable, RetryLater, UsageError
from streams.kafka import client_options
from streams.requests import InferenceResult, decode_result, request_headers

if TYPE_CHECKING:
    from types import TracebackType

    from streams.config import KafkaConfig

_log = logging.getLogger(__name__)

#: A worker says that a request has expired; so long after the deadline nothing of that kind comes any more.
GRACE_S: Final = 2.0
#: How long requests go to the same partition. At 500/s over 4 partitions a worker then has two thirds of
#: the chunks, and of the work with them (`python -m benchmarks.requests`).
STRETCH_S: Final = 0.02
#: Pause after the broker failed in a way that its client does not mend by itself.
RETRY_S: Final = 0.2


class InferenceClient:
    """Asks models that workers serve. Use as an async context manager; tasks may share it.

    It reads one partition of the topic of results, of its own choice and without a consumer group, from where
    it ended when the client started. Lost connections are made again, and what came meanwhile is read.

    Args:
        kafka: how the brokers are reached.
        requests_topic: as the workers have it.
        results_topic: likewise.

    Example:
        >>> async def main():
        ...     async with InferenceClient(KafkaConfig(bootstrap_servers=["broker:9092"])) as client:
        ...         result = await client.ask("animals", open("cat.jpg", "rb").read(), timeout_s=5)
        ...         print(result.answer["label"])
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        requests_topic: str = "inference.requests",
        results_topic: str = "inference.results",
    ) -> None:
        self._options: dict[str, Any] = client_options(kafka)
        self._servers = ", ".join(kafka.bootstrap_servers)
        self._requests_topic = requests_topic
        self._results_topic = results_topic
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._partition = 0
        self._prefix = secrets.token_hex(8)
        self._count = 0
        self._stretch = (0, 0.0)
        self._outstanding = Outstanding()

    async def __aenter__(self) -> InferenceClient:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: no broker answered.
            UsageError: there are no such topics.
        """
        self._producer = AIOKafkaProducer(**self._options, enable_idempotence=True, linger_ms=0)
        self._consumer = AIOKafkaConsumer(
            **self._options,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # where the log has begun anew, nothing of it is left out
            isolation_level="read_committed",
        )
        try:
            await self._producer.start()
            await self._consumer.start()
            there = (await self._producer.client.fetch_all_metadata()).topics()
            for topic in (self._requests_topic, self._results_topic):
                if topic not in there:
                    raise UsageError(
                        f"topic '{topic}' does not exist: set requests.enabled = true and start a worker"
                    )
            await self._producer.partitions_for(self._requests_topic)
            partitions = await self._producer.partitions_for(self._results_topic)
            self._partition = random.choice(sorted(partitions))
            mine = TopicPartition(self._results_topic, self._partition)
            self._consumer.assign([mine])
            await self._consumer.seek_to_end(mine)
            await self._consumer.position(mine)
        except (KafkaError, OSError) as error:
            await self.stop()
            raise BrokerUnavailable(
                f"no Kafka broker answers at {self._servers} ({type(error).__name__}): is it running, "
                "and do the security settings fit? polarstream doctor looks"
            ) from error
        except BaseException:
            await self.stop()
            raise
        self._receiving = asyncio.create_task(self._receive(self._consumer), name="inference-results")

    async def stop(self) -> None:
        """Disconnect; who waits for a result gets `NoAnswer`. Safe to call twice."""
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiving
        self._outstanding.fail_all(NoAnswer("the client has been stopped: results can't be read any more"))
        producer, self._producer = self._producer, None
        consumer, self._consumer = self._consumer, None
        for part in (producer, consumer):
            if part is not None:
                await part.stop()

    async def submit(self, model: str, given: Input, timeout_s: float = 30.0) -> str:
        """Send a request; returns its id once it is queued. That it could not be sent is told by `result`.

        Args:
            model: `name` of a model or an alias, or `name@version`.
            given: what it shall look at: the bytes of a picture's file, an array, or readings, oldest first.
            timeout_s: how long an answer is of use; nobody computes it later.

        Raises:
            BadInput: it is none of these.
            UsageError: it is too large.
        """
        producer = self._running()
        payload = payload_of(given)
        if len(payload.data) > MAX_MESSAGE_BYTES:
            raise UsageError(
                f"an input of {len(payload.data)} bytes exceeds Kafka's limit of {MAX_MESSAGE_BYTES}: "
                "send a smaller one"
            )
        if not model or timeout_s <= 0:
            raise UsageError(f"model '{model}', timeout_s {timeout_s:g}: name a model and a time above 0")
        now = time.monotonic()
        self._outstanding.sweep(now)
        self._count += 1
        identity = f"{self._prefix}-{self._count}"
        headers = request_headers(model, payload, time.time() + timeout_s, self._partition)
        future: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
        partition = self._choose(producer, now)
        self._outstanding.add(identity, Ask(model, partition, now + timeout_s, future))
        try:
            sent = await producer.send(
                self._requests_topic,
                payload.data,
                key=identity.encode(),
                partition=partition,
                headers=headers,
            )
        except BaseException as error:
            self._outstanding.forget(identity)
            if isinstance(error, (KafkaError, OSError)):
                raise self._unsent(error) from error
            raise

        def stored(done: asyncio.Future[Any]) -> None:
            error = None if done.cancelled() else done.exception()
            if isinstance(error, Exception):
                self._outstanding.fail(identity, self._unsent(error))

        sent.add_done_callback(stored)
        return identity

    async def result(self, identity: str, timeout_s: float | None = None) -> InferenceResult:
        """Wait for what became of a request; it can be fetched once.

        Args:
            identity: what `submit` gave.
            timeout_s: how long to wait; None: until the request's deadline.

        Raises:
            NoAnswer: nothing came in that time; with `timeout_s` it may be asked for again.
            RetryLater: the request could not be sent.
            UsageError: there is no such request here.
        """
        ask = self._outstanding.get(identity)
        rest_s = max(0.0, ask.deadline_s + GRACE_S - time.monotonic())
        wait_s = rest_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(wait_s):
                result = await asyncio.shield(ask.future)
        except TimeoutError:
            if timeout_s is None or timeout_s >= rest_s:
                self._outstanding.forget(identity)
            raise NoAnswer(
                f"model '{ask.model}' gave no answer within {wait_s:.3g} s: "
                "is a worker running? polarstream status looks"
            ) from None
        except RetryLater:
            self._outstanding.forget(identity)
            raise
        self._outstanding.forget(identity)
        return result

    async def ask(self, model: str, given: Input, timeout_s: float = 30.0) -> InferenceResult:
        """Send a request and wait for its answer.

        Raises:
            RequestFailed: there is none, with the reason.
            NoAnswer: nothing came in time.
            BadInput, UsageError, RetryLater: as `submit` and `result`.
        """
        result = await self.result(await self.submit(model, given, timeout_s))
        if result.status == "expired":
            raise NoAnswer(
                f"model '{model}' gave no answer within {timeout_s:g} s: allow more, or add workers"
            )
        if result.status != "ok":
            reason = result.error.reason if result.error else result.status
            detail = result.error.detail if result.error else "the request has no answer"
            raise RequestFailed(reason, detail)
        return result

    async def cancel(self, identity: str) -> None:
        """Say that a request is of no use any more. Its result tells whether that came before the answer.

        Raises:
            UsageError: there is no such request here.
            RetryLater: that could not be sent.
        """
        ask = self._outstanding.get(identity)
        try:
            await self._running().send(
                self._requests_topic, None, key=identity.encode(), partition=ask.partition
            )
        except (KafkaError, OSError) as error:
            raise self._unsent(error) from error

    def _choose(self, producer: AIOKafkaProducer, now: float) -> int:
        """The partition of a request: another one every now and then, so that requests come in chunks."""
        partition, end = self._stretch
        if now >= end:
            there = producer.client.cluster.partitions_for_topic(self._requests_topic) or {0}
            partition = random.choice(sorted(there))
            self._stretch = partition, now + STRETCH_S
        return partition

    async def _receive(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                fetched = await consumer.getmany(timeout_ms=1000)
            except (KafkaError, OSError) as error:
                _log.warning("results can't be read now (%s), trying again", type(error).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            for messages in fetched.values():
                for message in messages:
                    # most are other clients', and a second answer with the same id is dropped
                    if self._outstanding.waits_for((message.key or b"").decode(errors="replace")):
                        try:
                            self._outstanding.answer(decode_result(message.value or b""))
                        except BadRecord as error:
                            _log.warning("%s", error)

    def _running(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise RuntimeError("the client is not started: use it in `async with`")
        return self._producer

    def _unsent(self, error: BaseException) -> Exception:
        if isinstance(error, MessageSizeTooLargeError):
            return BadInput(f"the broker takes no input of this size ({error}): send a smaller one")
        return RetryLater(f"the request was not sent to {self._servers} ({type(error).__name__}): try again")
