"""Asking models over Kafka: `InferenceClient`, and `SyncInferenceClient` for programs without a loop."""

from __future__ import annotations

from connectors.client.client import InferenceClient
from connectors.client.payload import raw_picture
from connectors.client.sync import SyncInferenceClient
from connectors.errors import NoAnswer, RequestFailed
from streams.requests import InferenceResult

__all__ = [
    "InferenceClient",
    "InferenceResult",
    "NoAnswer",
    "RequestFailed",
    "SyncInferenceClient",
    "raw_picture",
]
