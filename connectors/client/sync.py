"""The client for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from connectors.client.client import InferenceClient
from connectors.client.payload import Input
from streams.requests import InferenceResult

if TYPE_CHECKING:
    from types import TracebackType

    from streams.config import KafkaConfig

T = TypeVar("T")


class SyncInferenceClient:
    """`InferenceClient` on a loop of its own thread. Use as a context manager; threads may share it.

    Args:
        kafka: see `InferenceClient`.
        requests_topic: likewise.
        results_topic: likewise.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        requests_topic: str = "inference.requests",
        results_topic: str = "inference.results",
    ) -> None:
        self._client = InferenceClient(kafka, requests_topic, results_topic)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="inference-client", daemon=True)

    def __enter__(self) -> SyncInferenceClient:
        self._thread.start()
        try:
            self._do(self._client.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._do(self._client.stop())
        finally:
            self._end()

    def submit(self, model: str, given: Input, timeout_s: float = 30.0) -> str:
        """See `InferenceClient.submit`."""
        return self._do(self._client.submit(model, given, timeout_s))

    def result(self, identity: str, timeout_s: float | None = None) -> InferenceResult:
        """See `InferenceClient.result`."""
        return self._do(self._client.result(identity, timeout_s))

    def ask(self, model: str, given: Input, timeout_s: float = 30.0) -> InferenceResult:
        """See `InferenceClient.ask`."""
        return self._do(self._client.ask(model, given, timeout_s))

    def cancel(self, identity: str) -> None:
        """See `InferenceClient.cancel`."""
        self._do(self._client.cancel(identity))

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
