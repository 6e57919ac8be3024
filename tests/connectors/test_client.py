"""What a client sends, and how it keeps its requests."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import numpy as np
import pytest

from connectors.client.outstanding import Ask, Outstanding
from connectors.client.payload import payload_of, raw_picture
from connectors.errors import BadInput
from streams.errors import RetryLater, UsageError
from streams.frames import RAW
from streams.requests import READINGS, TENSOR, InferenceResult, Payload


def ask(deadline_s: float = 10.0) -> Ask:
    return Ask("animals", 0, deadline_s, asyncio.get_running_loop().create_future())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"\xff\xd8\xffrest", Payload("image/jpeg", b"\xff\xd8\xffrest")),
        (bytearray(b"\x89PNG\r\n\x1a\nrest"), Payload("image/png", b"\x89PNG\r\n\x1a\nrest")),
        (np.array([[1, 2]], ">f4"), Payload(TENSOR, np.array([[1, 2]], "<f4").tobytes(), (1, 2), "float32")),
        (np.arange(6)[::2], Payload(TENSOR, np.array([0, 2, 4], "<i8").tobytes(), (3,), "int64")),
        (np.array(7, np.uint8), Payload(TENSOR, b"\x07", (), "uint8")),
        ([{"a": 1.5}, {"a": 2}], Payload(READINGS, b'[{"a":1.5},{"a":2}]')),
        (((1, 2), (3, 4)), Payload(READINGS, b"[[1,2],[3,4]]")),
    ],
)
def test_inputs_become_values_and_headers(given: Any, expected: Payload) -> None:
    made = payload_of(given)
    assert made == expected
    assert payload_of(made) is made


def test_pixels_go_as_a_picture_where_that_is_meant() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert raw_picture(pixels[:, ::-1]) == Payload(RAW, pixels[:, ::-1].tobytes(), (2, 4, 3))
    for wrong in (pixels.astype(np.float32), pixels[0, 0], pixels[..., :2]):
        with pytest.raises(BadInput):
            raw_picture(wrong)


@pytest.mark.parametrize("given", [b"no picture", np.array([1j]), np.array(["x"]), 7, [object()]])
def test_what_is_no_input_is_refused_before_it_is_sent(given: Any) -> None:
    with pytest.raises(BadInput):
        payload_of(given)


async def test_the_first_result_of_an_id_counts_and_others_are_dropped() -> None:
    outstanding = Outstanding()
    mine = ask()
    outstanding.add("a", mine)
    outstanding.answer(InferenceResult("b", "ok"))
    assert not mine.future.done()
    outstanding.answer(InferenceResult("a", "ok", {"label": "cat"}))
    outstanding.answer(InferenceResult("a", "ok", {"label": "dog"}))
    outstanding.fail("a", RetryLater("too late"))
    assert (await outstanding.get("a").future).answer == {"label": "cat"}
    outstanding.forget("a")
    outstanding.answer(InferenceResult("a", "ok", {"label": "dog"}))
    with pytest.raises(UsageError, match="fetched once"):
        outstanding.get("a")


async def test_results_that_nobody_fetches_are_forgotten_after_a_while() -> None:
    outstanding = Outstanding(keep_s=60)
    for n in range(100):
        outstanding.add(str(n), ask(deadline_s=n))
    outstanding.answer(InferenceResult("3", "ok"))
    outstanding.fail("4", RetryLater("not sent"))
    outstanding.sweep(59.9)
    assert len(outstanding) == 100
    outstanding.sweep(60 + 49.5)
    assert len(outstanding) == 50
    outstanding.sweep(1e9)
    assert len(outstanding) == 0
    gc.collect()  # an error that nobody looked at would be a warning here


async def test_memory_stays_bounded_when_results_are_fetched_long_before_their_deadline() -> None:
    outstanding = Outstanding()
    for n in range(10_000):
        outstanding.add(str(n), ask(deadline_s=1e6))
        outstanding.answer(InferenceResult(str(n), "ok"))
        outstanding.forget(str(n))
    assert len(outstanding) == 0
    assert len(outstanding._ends) <= 65


async def test_who_still_waits_is_told_when_the_client_stops() -> None:
    outstanding = Outstanding()
    outstanding.add("a", ask())
    outstanding.fail_all(RetryLater("stopped"))
    with pytest.raises(RetryLater, match="stopped"):
        await outstanding.get("a").future
