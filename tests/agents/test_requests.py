"""The agent of requests without Kafka: how requests end, and what becomes of their inputs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.request_inputs import InputReader
from agents.requests import Done, RequestPartition
from gpu_inference.models.manifest import ImageInput, SeriesInput, TensorInput
from gpu_inference.tasks.numbers import SeriesPreprocessor, TensorPreprocessor
from gpu_inference.tasks.preprocessing import Preprocessor
from streams.errors import BadRecord
from streams.requests import READINGS, TENSOR, InferenceRequest, Payload
from tests.frames import picture

PICTURES = Preprocessor(ImageInput(size=(16, 16)), "crop")
TENSORS = TensorPreprocessor(TensorInput(shape=(2,), dtype="float32"))
WINDOWS = SeriesPreprocessor(SeriesInput(fields=("a",), window=2))


async def outcome(share: RequestPartition, identity: str, left_s: float, event: asyncio.Event) -> str:
    try:
        async with share.limited(identity, left_s):
            await event.wait()
    except TimeoutError:
        return "cancelled" if share.is_cancelled(identity) else "expired"
    return "ok"


@pytest.mark.parametrize(
    ("when", "expected"),
    [("never", "ok"), ("at once", "cancelled"), ("later", "cancelled"), ("after the answer", "ok")],
)
async def test_a_request_is_cancelled_before_it_began_or_under_way_but_not_once_answered(
    when: str, expected: str
) -> None:
    share = RequestPartition(SimpleNamespace())  # type: ignore[arg-type]
    event = asyncio.Event()
    task: Any = asyncio.create_task(outcome(share, "id", 30, event))
    share.start("id", task)
    if when == "at once":
        share.cancel("id")
    await asyncio.sleep(0)
    if when == "later":
        share.cancel("id")
        await asyncio.sleep(0.01)
    event.set()
    if when == "after the answer":
        await task
        share.cancel("id")
    assert await task == expected
    await asyncio.sleep(0)
    assert not share._requests
    assert not share._cancelled


@pytest.mark.parametrize("left_s", [-1.0, 0.0, 0.01])
async def test_a_request_expires(left_s: float) -> None:
    share = RequestPartition(SimpleNamespace())  # type: ignore[arg-type]
    task: Any = asyncio.create_task(outcome(share, "id", left_s, asyncio.Event()))
    share.start("id", task)
    assert await task == "expired"


async def test_a_partition_that_is_closed_gives_up_what_is_under_way() -> None:
    share = RequestPartition(SimpleNamespace())  # type: ignore[arg-type]
    task: asyncio.Task[Done] = asyncio.create_task(outcome(share, "id", 30, asyncio.Event()))  # type: ignore[arg-type]
    share.start("id", task)
    await asyncio.sleep(0)
    share.close()
    with pytest.raises(asyncio.CancelledError):
        await task


def request(payload: Payload) -> InferenceRequest:
    return InferenceRequest("id", "m", payload, 0.0, 0, 0.0, 0)


def tensor(array: np.ndarray) -> Payload:
    return Payload(TENSOR, array.tobytes(), array.shape, array.dtype.name)


def test_each_kind_of_input_reaches_models_that_take_it() -> None:
    reader = InputReader(10_000)
    (pixels, geometry), _ = reader.fit(request(Payload("image/jpeg", picture("red"))), [PICTURES, PICTURES])
    assert pixels.shape == (16, 16, 3)
    assert geometry is not None
    assert geometry.source == (60, 80)
    ((array, none),) = reader.fit(request(tensor(np.array([1, 2], "<f4"))), [TENSORS])
    assert none is None
    assert array.tolist() == [1, 2]
    ((window, _),) = reader.fit(request(Payload(READINGS, b'[{"a": 1}, {"a": 2}]')), [WINDOWS])
    assert window.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("reason", "payload", "preprocessor"),
    [
        ("wrong_input", Payload("image/jpeg", picture("red")), TENSORS),
        ("wrong_input", tensor(np.zeros(2, np.float32)), WINDOWS),
        ("wrong_input", Payload(READINGS, b"[]"), PICTURES),
        ("bad_tensor", tensor(np.zeros(3, np.float32)), TENSORS),
        ("bad_tensor", tensor(np.zeros(2)), TENSORS),
        ("bad_window", Payload(READINGS, b"[[1]]"), WINDOWS),
        ("bad_window", Payload(READINGS, b"{}"), WINDOWS),
        ("bad_window", Payload(READINGS, b"[[1], [NaN]]"), WINDOWS),
        ("bad_window", Payload(READINGS, b"\xff"), WINDOWS),
        ("bad_image", Payload("image/jpeg", picture("red")[:200]), PICTURES),
        ("image_too_large", Payload("image/png", picture("red", (200, 60), "PNG")), PICTURES),
    ],
)
def test_an_input_that_a_model_does_not_take_says_what_to_send(
    reason: str, payload: Payload, preprocessor: Any
) -> None:
    with pytest.raises(BadRecord, match="send") as refused:
        InputReader(10_000).fit(request(payload), [preprocessor])
    assert refused.value.reason == reason
