"""The page of records against the code that writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streams.checks import MAX_ID_LENGTH, REASONS
from streams.codecs import PredictionEncoder, ReadingCodec, dead_letter, encode_alert
from streams.config import FieldConfig, StreamConfig
from streams.frames import FRAME_REASONS
from streams.records import Alert, Chunk
from streams.requests import (
    REQUEST_REASONS,
    InferenceResult,
    Payload,
    decode_result,
    encode_result,
    request_headers,
)
from streams.windows import WindowResult

PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
STREAM = StreamConfig(name="plant", topic="sensors.plant", fields={"temperature": FieldConfig()})


def section(title: str) -> str:
    found = re.search(rf"^## {title}.*?$(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def example(title: str) -> dict[str, Any]:
    """The JSON object that a section shows."""
    found = re.search(r"```json\n(.*?)```", section(title), re.DOTALL)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


def rows(title: str, head: str) -> list[str]:
    """The words in code style in the first column of the table that begins with `head`."""
    table = section(title).partition(f"| {head} |")[2].partition("\n\n")[0]
    return [word for line in table.splitlines()[2:] for word in re.findall(r"`([^`]+)`", line.split("|")[1])]


def prediction() -> dict[str, Any]:
    reading = json.dumps(example("Reading")).encode()
    batch = ReadingCodec(STREAM).decode(
        Chunk("sensors.plant", 3, 301, 301, [301], [0], [None], [reading]), 2e9
    )
    assert not batch.rejected
    one = np.array([7.4])
    encoder = PredictionEncoder(STREAM, "ewz", "1")
    value: dict[str, Any] = json.loads(encoder.encode(batch, None, one, one.astype(int) * 0, one > 6, 2e9)[0])
    return value


def test_the_prediction_has_the_keys_of_the_page_in_its_order() -> None:
    keys = list(prediction())
    assert list(example("Prediction")) == keys
    assert rows("Prediction", "key") == keys
    assert example("Prediction")["id"] == prediction()["id"]


def test_the_alert_has_the_keys_of_the_page() -> None:
    shown = example("Alert")
    assert json.loads(encode_alert(msgspec.convert(shown, Alert))) == shown
    assert rows("Alert", "key") == list(shown)


def test_the_window_result_has_the_keys_of_the_page() -> None:
    shown = example("Analytics")
    assert json.loads(msgspec.json.encode(msgspec.convert(shown, WindowResult))) == shown
    assert rows("Analytics", "key") == list(WindowResult.__struct_fields__)


def test_the_result_has_the_keys_of_the_page_and_a_request_its_headers() -> None:
    shown = example("Result")
    assert json.loads(encode_result(decode_result(json.dumps(shown).encode()))) == shown
    assert rows("Result", "key") == list(InferenceResult.__struct_fields__) == list(shown)
    sent = request_headers("m", Payload("application/x-tensor", b"1", (1,), "uint8"), 1.0, 2)
    assert rows("Request", "header") == [name for name, _ in sent]


def test_every_reason_of_a_refusal_is_on_the_page_with_its_meaning() -> None:
    reasons = {**REASONS, **FRAME_REASONS, **REQUEST_REASONS}
    assert rows("Dead letter", "reason") == list(reasons)
    for reason, meaning in reasons.items():
        assert f"| `{reason}` | {meaning} |" in section("Dead letter")
    assert f"1 to {MAX_ID_LENGTH} characters" in section("Reading")


def test_the_headers_of_a_dead_letter_are_those_of_the_page() -> None:
    batch = ReadingCodec(STREAM).decode(Chunk("t", 0, 0, 0, [0], [0], [None], [b"no"]), 2e9)
    _, value, headers = dead_letter(batch.rejected[0], "t", 0)
    assert value == b"no"
    assert rows("Dead letter", "header") == [name for name, _ in headers]


def test_the_arrow_example_runs() -> None:
    pytest.importorskip("pyarrow", reason="pip install 'polarstream[arrow]'")
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    batch = ReadingCodec(STREAM).decode(Chunk("t", 0, 0, 0, [0], [0], [None], [names["value"]]), 2e9)
    assert (batch.sensor_ids, batch.values[:, 0].tolist()) == (["a", "b"], [21.4, 19.9])
