"""Camera frames through real workers: pictures in, predictions out, none lost."""

from __future__ import annotations

import asyncio
import collections
import itertools
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from streams.frames import RAW, frame_headers
from tests.e2e.node import WorkerNode
from tests.frames import COLOURS, add_colour_model, picture

CONFIG = """
app_id = "{prefix}app"
topics.predictions = "{prefix}predictions"
topics.alerts = "{prefix}alerts"
topics.analytics = "{prefix}analytics"
topics.dead_letter = "{prefix}dead"
topics.control = "{prefix}control"
topics.models = "{prefix}models"
inference.devices = ["cpu"]

[worker]
delivery = "{delivery}"
start_from = "earliest"

[[frames]]
name = "gate"
topic = "{prefix}frames"
model = "colours"
partitions = 2
policy = "{policy}"
"""


class Node(WorkerNode):
    """One stream of frames, looked at by the model of colours."""

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        prefix: str,
        delivery: str = "at_least_once",
        policy: str = "block",
    ) -> None:
        config = CONFIG.format(prefix=prefix, delivery=delivery, policy=policy)
        super().__init__(folder, bootstrap, prefix, config)
        self.version = add_colour_model(self.models)

    async def publish(
        self, frames: list[tuple[str | None, bytes, list[tuple[str, bytes]]]], topic: str = "frames"
    ) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, max_request_size=4 << 20)
        await producer.start()
        try:
            for camera, value, headers in frames:
                key = None if camera is None else camera.encode()
                await producer.send(f"{self.prefix}{topic}", value, key=key, headers=headers)
            await producer.flush()
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


def decoded(messages: list[Any]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(message.value) for message in messages]


async def test_pictures_of_all_kinds_become_predictions_and_bad_ones_dead_letters(make_node: Any) -> None:
    node = make_node()
    good = [
        ("gate-1", picture("red"), frame_headers("image/jpeg", 1737500000.25)),
        ("gate-1", picture("green", kind="PNG"), []),
        ("gate-2", picture("blue", kind="WEBP"), frame_headers("image/webp")),
        ("gate-2", bytes(COLOURS["green"]) * 48, frame_headers(RAW, shape=(6, 8, 3))),
        ("gate-1", picture("blue", size=(1000, 900)), []),
    ]
    bad = [
        ("gate-1", picture("red")[:300], []),
        ("gate-1", b"not a picture at all", []),
        (None, picture("red"), []),
        ("gate-2", b"\0" * 100, frame_headers(RAW, shape=(10, 11, 3))),
        ("gate-2", b"", []),
    ]
    node.start()
    await node.publish([frame for pair in itertools.zip_longest(good, bad) for frame in pair if frame])
    messages = await node.read("predictions", len(good))
    found = decoded(messages)
    assert [(p["source"], p["label"]) for p in found if p["source"] == "gate-1"] == [
        ("gate-1", "red"),
        ("gate-1", "green"),
        ("gate-1", "blue"),
    ]
    assert [p["label"] for p in found if p["source"] == "gate-2"] == ["blue", "green"]
    first = next(p for p in found if p["label"] == "red")
    assert first["ts"] == 1737500000.25
    assert (first["model"], first["version"], first["stream"]) == ("colours", "1", "gate")
    assert first["sha256"] == node.version.model_sha256
    assert first["device"] == "cpu"
    assert first["score"] > 0.9
    assert first["top"][0]["label"] == "red"
    assert all(message.key.decode() == p["source"] for message, p in zip(messages, found, strict=True))

    dead = await node.read("dead", len(bad))
    reasons = collections.Counter(dict(message.headers)["ps-error"].decode() for message in dead)
    assert reasons == {
        "bad_image": 1,
        "unknown_image_type": 1,
        "no_camera_id": 1,
        "bad_shape": 1,
        "empty_value": 1,
    }
    assert {message.value for message in dead} == {value for _, value, _ in bad}


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_a_worker_that_is_killed_loses_no_frame(make_node: Any, delivery: str) -> None:
    node = make_node(delivery=delivery)
    cameras, each = 6, 150
    pictures = {colour: [picture(colour, noise=n) for n in range(1, 4)] for colour in COLOURS}
    names = list(COLOURS)
    wanted = {}
    frames = []
    for n in range(each):
        for camera in range(cameras):
            colour = names[(n * 7 + camera) % 3]
            wanted[camera, n] = colour
            frames.append((f"cam-{camera}", pictures[colour][n % 3], frame_headers("image/jpeg", 1.7e9 + n)))

    worker = node.start()

    async def publish() -> None:
        for start in range(0, len(frames), 45):
            await node.publish(frames[start : start + 45])
            await asyncio.sleep(0.15)

    async def disturb() -> None:
        nonlocal worker
        for pause_s in (4.5, 3.0):
            await asyncio.sleep(pause_s)
            node.kill(worker)
            worker = node.start()

    await asyncio.gather(publish(), disturb())
    messages = await node.read("predictions", len(frames), timeout_s=60, quiet_s=3)
    found = decoded(messages)
    answered: dict[tuple[int, int], set[str]] = collections.defaultdict(set)
    ids: dict[tuple[int, int], set[str]] = collections.defaultdict(set)
    for p in found:
        at = int(p["source"].removeprefix("cam-")), round(p["ts"] - 1.7e9)
        answered[at].add(p["label"])
        ids[at].add(p["id"])
    assert {at: {colour} for at, colour in wanted.items()} == dict(answered)
    # a frame that was answered again has the same id
    assert all(len(one) == 1 for one in ids.values())
    if delivery == "exactly_once":
        assert len(found) == len(frames)
        for camera in range(cameras):
            mine = [p["ts"] for p in found if p["source"] == f"cam-{camera}"]
            assert mine == sorted(mine)


@pytest.mark.slow
async def test_a_model_is_changed_under_load_and_no_prediction_is_dropped_or_mixed(make_node: Any) -> None:
    """Version 2 has its labels the other way round: a mixed one would show."""
    node = make_node()
    right = {"1": {c: c for c in COLOURS}, "2": dict(zip(COLOURS, reversed(list(COLOURS)), strict=True))}
    pictures = {colour: picture(colour) for colour in COLOURS}
    colours = list(COLOURS)
    node.start()
    frames = 0
    stop = asyncio.Event()

    async def publish() -> None:
        nonlocal frames
        while not stop.is_set():
            await node.publish(
                [
                    (f"cam-{n % 4}", pictures[colours[n % 3]], frame_headers("image/jpeg", 1.7e9 + n))
                    for n in range(frames, frames + 24)
                ]
            )
            frames += 24
            await asyncio.sleep(0.08)

    async def change() -> None:
        try:
            await node.read("predictions", 100)
            add_colour_model(node.models, "2", labels=list(reversed(colours)))
            for words in (
                ("promote", "colours@2"),
                ("rollback", "colours"),
                ("canary", "colours@2", "--part", "0.5"),
                ("promote", "colours@2", "--keep-previous"),
                ("rollback", "colours"),
                ("unload", "colours"),
                ("promote", "colours@2"),
            ):
                done = await asyncio.to_thread(node.cli.spawn, "models", *words)
                assert done.returncode == 0, done.stderr
                await asyncio.sleep(1.5)
        finally:
            stop.set()

    await asyncio.gather(publish(), change())
    found = decoded(await node.read("predictions", frames, quiet_s=1))
    assert len(found) == frames
    assert sorted(round(p["ts"] - 1.7e9) for p in found) == list(range(frames))
    for p in found:
        n = round(p["ts"] - 1.7e9)
        assert p["label"] == right[p["version"]][colours[n % 3]]
    for camera in range(4):
        mine = [p for p in found if p["source"] == f"cam-{camera}"]
        assert [p["ts"] for p in mine] == sorted(p["ts"] for p in mine)
    assert {p["version"] for p in found} == {"1", "2"}
    assert len({p["sha256"] for p in found}) == 1  # the labels are no part of model.onnx
    assert found[-1]["version"] == "2"


@pytest.mark.slow
async def test_ensembles_cascades_shadows_and_the_cache_answer_frames(make_node: Any) -> None:
    node = make_node()
    reversed_labels = list(reversed(list(COLOURS)))
    add_colour_model(node.models, "1", name="other")
    add_colour_model(node.models, "2", labels=reversed_labels)
    config = node.cli.folder / "polarstream.toml"
    config.write_text(
        config.read_text()
        + "".join(
            f'[[frames]]\nname = "{name}"\ntopic = "{node.prefix}{name}"\nmodel = "{model}"\n'
            f"partitions = 1\n{more}\n"
            for name, model, more in (
                ("both", "pair", ""),
                ("guard", "steps", ""),
                ("still", "colours@1", "cache_ttl_s = 60"),
            )
        )
    )
    for words in (
        ("promote", "colours@1"),
        ("promote", "other@1"),
        ("ensemble", "pair", "colours", "other"),
        ("cascade", "steps", "colours", "other", "--label", "red"),
        ("shadow", "colours@2"),
    ):
        done = await asyncio.to_thread(node.cli.spawn, "models", *words)
        assert done.returncode == 0, done.stderr
    worker = node.start()
    await node.publish([("cam", picture(c), []) for c in COLOURS], topic="both")
    await node.publish([("cam", picture(c), []) for c in COLOURS], topic="guard")
    still = [("cam", picture("blue", noise=n % 5 + 1), []) for n in range(120)]
    await node.publish(still[:1], topic="still")
    await node.read("predictions", 7)
    await node.publish(still[1:], topic="still")
    await node.publish([("cam", picture("red"), []) for _ in range(30)])
    found = decoded(await node.read("predictions", 7 + 119 + 30))
    by_stream: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for p in found:
        by_stream[p["stream"]].append(p)

    counts = {name: len(some) for name, some in by_stream.items()}
    assert counts == {"both": 3, "guard": 3, "still": 120, "gate": 30}
    both = by_stream["both"]
    assert [(p["label"], p["model"], p["version"]) for p in both] == [
        (colour, "pair", "colours@1+other@1") for colour in COLOURS
    ]
    assert [p["version"] for p in by_stream["guard"]] == ["colours@1+other@1", "colours@1", "colours@1"]
    assert [p["label"] for p in by_stream["guard"]] == list(COLOURS)
    cached = [p for p in by_stream["still"] if p["device"] == "cache"]
    assert {p["label"] for p in by_stream["still"]} == {"blue"}
    assert len(cached) >= 0.85 * 119
    # the shadow's labels are the other way round; only green stands in the middle of both
    assert {p["label"] for p in by_stream["gate"]} == {"red"}
    status = await asyncio.to_thread(node.cli.spawn, "status", "--json")
    (running,) = msgspec.json.decode(status.stdout)["workers"]
    agreement = 1.0
    deadline = time.monotonic() + 20
    while agreement > 0.5 and time.monotonic() < deadline:
        # who looks on is never waited for, and may leave frames out
        await node.publish([("cam", picture("red"), [])])
        metrics = await asyncio.to_thread(lambda: urllib.request.urlopen(running["metrics"]).read().decode())
        found_it = re.search(r'trial_agreement\{model="colours",version="2"\} (\S+)', metrics)
        agreement = float(found_it[1]) if found_it else 1.0
    assert agreement <= 0.5
    assert worker.poll() is None
