"""One request from a file: a picture, an array (`.npy`) or readings (`.json`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from connectors.client import InferenceClient
from connectors.client.payload import payload_of
from connectors.errors import BadInput
from streams.errors import UsageError

if TYPE_CHECKING:
    from polarstream.config import Config
    from streams.config import KafkaConfig
    from streams.requests import InferenceResult, Payload


def read_input(path: Path) -> Payload:
    """Read a file as the input of a request.

    Raises:
        UsageError: it can't be read.
        BadInput: it is none of the three.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    try:
        if path.suffix == ".npy":
            return payload_of(np.load(io.BytesIO(data), allow_pickle=False))
        if path.suffix == ".json":
            return payload_of(msgspec.json.decode(data, type=list))
    except (ValueError, EOFError, msgspec.MsgspecError) as error:
        wanted = "an array as numpy.save writes it" if path.suffix == ".npy" else "a JSON list of readings"
        raise BadInput(f"{path}: {error}: write {wanted}") from error
    return payload_of(data)


async def submit_file(
    config: Config, kafka: KafkaConfig, model: str, path: Path, timeout_s: float
) -> InferenceResult:
    """Ask a model about a file.

    Raises:
        UsageError, BadInput: the file is no input, or there are no such topics.
        RequestFailed: there is no answer, with the reason.
        NoAnswer: none came in time.
    """
    payload = read_input(path)
    topics = config.requests
    async with InferenceClient(kafka, topics.topic, topics.results_topic) as client:
        return await client.ask(model, payload, timeout_s)
