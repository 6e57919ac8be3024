"""Requests and results through real workers: one answer for each, whatever happens."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from connectors.client import InferenceClient, RequestFailed, SyncInferenceClient, raw_picture
from streams.config import KafkaConfig
from tests.e2e.node import WorkerNode
from tests.frames import COLOURS, add_colour_model, picture
from tests.requests import add_double_model, add_sum_model

CONFIG = """
app_id = "{prefix}app"
topics.predictions = "{prefix}predictions"
topics.alerts = "{prefix}alerts"
topics.analytics = "{prefix}analytics"
topics.dead_letter = "{prefix}dead"
topics.control = "{prefix}control"
topics.models = "{prefix}models"
inference.devices = ["cpu"]
worker.delivery = "{delivery}"

[requests]
enabled = true
topic = "{prefix}requests"
results_topic = "{prefix}results"
models = ["colours", "double@1", "sum"]
partitions = 3
"""


class Node(WorkerNode):
    """Requests to three models."""

    def __init__(self, folder: Path, bootstrap: str, prefix: str, delivery: str = "at_least_once") -> None:
        super().__init__(folder, bootstrap, prefix, CONFIG.format(prefix=prefix, delivery=delivery))
        self.version = add_colour_model(self.models)
        add_double_model(self.models)
        add_sum_model(self.models)
        self.kafka = KafkaConfig(bootstrap_servers=[bootstrap])
        self.topics = (f"{prefix}requests", f"{prefix}results")

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[InferenceClient]:
        async with InferenceClient(self.kafka, *self.topics) as client:
            yield client

    async def make_topics(self) -> None:
        from polarstream.config import load
        from streams.layout import lay_out

        config = load(self.cli.folder / "polarstream.toml", {})
        await lay_out(self.kafka, config.app_id, config.inputs, config.topics)

    async def send(self, key: bytes | None, value: bytes, **headers: bytes) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap)
        await producer.start()
        try:
            await producer.send_and_wait(self.topics[0], value, key=key, headers=list(headers.items()))
        finally:
            await producer.stop()


@pytest.fixture
def make_node(tmp_path: Path, broker: str, topic_prefix: str) -> Iterator[Any]:
    made: list[Node] = []

    def make(**options: str) -> Node:
        node = Node(tmp_path, broker, topic_prefix, **options)
        made.append(node)
        return node

    yield make
    for node in made:
        node.stop()


async def test_requests_of_all_kinds_are_answered_and_bad_ones_say_why(make_node: Any) -> None:
    node = make_node()
    await node.make_topics()
    node.start()
    async with node.client() as client:
        red = await client.ask("colours", picture("red"))
        assert red.answer is not None
        assert (red.status, red.answer["label"], red.device) == ("ok", "red", "cpu")
        assert (red.model, red.version, red.sha256) == ("colours", "1", node.version.model_sha256)
        assert red.latency_ms > red.compute_ms > 0
        pixels = np.full((6, 8, 3), COLOURS["green"], np.uint8)
        for given, label in ((picture("blue", kind="WEBP"), "blue"), (raw_picture(pixels), "green")):
            answer = (await client.ask("colours@1", given)).answer
            assert answer is not None
            assert answer["label"] == label
        vector = np.array([1, -2, 0.5], np.float32)
        for name in ("double@1",):
            np.testing.assert_array_equal((await client.ask(name, vector)).arrays()["y"], 2 * vector)
        total = (await client.ask("sum", [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6.5}])).answer
        assert total == {"values": {"sum": 21.5}}

        bad: list[tuple[str, Any, str]] = [
            ("lions", vector, "unknown_model"),
            ("colours@9", vector, "unknown_model"),
            ("colours", vector, "wrong_input"),
            ("colours", picture("red")[:300], "bad_image"),
            ("double@1", picture("red"), "wrong_input"),
            ("double@1", vector[:2], "bad_tensor"),
            ("double@1", np.array([np.nan, 0, 0], np.float32), "not_finite"),
            ("sum", [{"a": 1, "b": 2}], "bad_window"),
        ]
        for model, given, reason in bad:
            with pytest.raises(RequestFailed) as failed:
                await client.ask(model, given)
            assert failed.value.reason == reason, failed.value
        # many at a time, each its own answer
        vectors = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
        results = await asyncio.gather(*(client.ask("double@1", one) for one in vectors))
        for one, result in zip(vectors, results, strict=True):
            np.testing.assert_array_equal(result.arrays()["y"], 2 * one)
        assert max(result.batch for result in results) > 1
    # what no client of ours would send
    await node.send(b"far", picture("red"), model=b"colours", **{"reply-partition": b"99"})
    await node.send(b"nameless", b"x", **{"reply-partition": b"99"})
    await node.send(None, b"x", model=b"double@1")
    reasons = ["bad_reply_partition", "no_model", "no_request_id"]
    dead = await node.read("dead", len(bad) + 3)
    found = collections.Counter(dict(message.headers)["ps-error"].decode() for message in dead)
    assert found == collections.Counter([*(reason for _, _, reason in bad), *reasons])
    told = {message.key: msgspec.json.decode(message.value) for message in await node.read("results", 315)}
    assert [told[key]["error"]["reason"] for key in (b"far", b"nameless")] == reasons[:2]
    assert {message.value for message in dead} >= {picture("red")[:300], picture("red")}

    def in_threads() -> str:
        with SyncInferenceClient(node.kafka, *node.topics) as sync:
            identity = sync.submit("colours", picture("blue"))
            answer = sync.result(identity).answer
            assert answer is not None
            return str(answer["label"])

    assert await asyncio.to_thread(in_threads) == "blue"

    (node.cli.folder / "red.jpg").write_bytes(picture("red"))
    shown = await asyncio.to_thread(node.cli.spawn, "submit", "colours", "red.jpg", "--json")
    assert shown.returncode == 0, shown.stderr
    assert msgspec.json.decode(shown.stdout)["answer"]["label"] == "red"
    refused = await asyncio.to_thread(node.cli.spawn, "submit", "lions", "red.jpg")
    assert refused.returncode == 65
    assert "unknown_model: no model or alias 'lions' is live" in refused.stderr


async def test_what_is_cancelled_or_too_late_is_not_computed(make_node: Any) -> None:
    node = make_node()
    await node.make_topics()
    async with node.client() as client:
        late = await client.submit("colours", picture("red"), timeout_s=0.5)
        unwanted = await client.submit("colours", picture("red"), timeout_s=60)
        wanted = await client.submit("colours", picture("green"), timeout_s=60)
        await client.cancel(unwanted)
        await asyncio.sleep(0.6)
        node.start()
        statuses = [(await client.result(one, 30)).status for one in (late, unwanted, wanted)]
        assert statuses == ["expired", "cancelled", "ok"]
        await client.cancel(await client.submit("double@1", np.ones(3, np.float32)))
    results = await node.read("results", 4, quiet_s=1)
    assert len(results) == 4


async def test_a_worker_whose_models_do_not_fit_says_so_and_stops(make_node: Any) -> None:
    node = make_node()
    file = node.cli.folder / "polarstream.toml"
    text = file.read_text()
    for changed, told in (
        (text.replace('"sum"', '"total"'), "model 'total': there is none in"),
        (
            text + f'[[frames]]\nname = "gate"\ntopic = "{node.prefix}frames"\nmodel = "double"\n',
            "model 'double' takes no pictures",
        ),
    ):
        file.write_text(changed)
        ended = await asyncio.to_thread(node.cli.spawn, "worker")
        assert (ended.returncode, told in ended.stderr) == (70, True), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_killed_worker_leaves_no_request_without_its_one_answer(
    make_node: Any, delivery: str
) -> None:
    node = make_node(delivery=delivery)
    await node.make_topics()
    worker = node.start()
    vectors = np.arange(1800, dtype=np.float32).reshape(600, 3)

    async with node.client() as client:

        async def publish() -> list[str]:
            ids = []
            for at, vector in enumerate(vectors):
                ids.append(await client.submit("double@1", vector, timeout_s=120))
                if at % 10 == 9:
                    await asyncio.sleep(0.15)
            return ids

        async def disturb() -> None:
            nonlocal worker
            for pause_s in (4.5, 3.0):
                await asyncio.sleep(pause_s)
                node.kill(worker)
                worker = node.start()

        ids, _ = await asyncio.gather(publish(), disturb())
        for identity, vector in zip(ids, vectors, strict=True):
            result = await client.result(identity, 60)
            assert result.status == "ok"
            np.testing.assert_array_equal(result.arrays()["y"], 2 * vector)
    written = await node.read("results", len(ids), quiet_s=2)
    counts = collections.Counter(message.key.decode() for message in written)
    assert set(counts) == set(ids)
    if delivery == "exactly_once":
        assert set(counts.values()) == {1}
