"""A hand-written loop on confluent-kafka, as someone who cares about speed would write it.

At least once: offsets are committed after the outputs that they stand for were acknowledged. State lives in a
dict and is lost on a restart: no changelog.

Usage: confluent_loop.py BOOTSTRAP SOURCE TARGET GROUP FOLDER
"""

from __future__ import annotations

import signal
import sys
import time

import ewz
import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

CHUNK = 1_000  # larger ones only make the garbage collector work more
WAIT_S = 0.005
COMMIT_EVERY_S = 1.0


class Reading(msgspec.Struct, gc=False):
    sensor_id: str
    ts: float
    temperature: float
    humidity: float
    pressure: float


class Prediction(msgspec.Struct, gc=False):
    id: str
    source: str
    stream: str
    ts: float
    model: str
    version: str
    score: float
    field: str
    is_anomaly: bool
    latency_ms: float


def main() -> None:
    bootstrap, source, target, group, _ = sys.argv[1:]
    running = True

    def stop(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            # by default it waits for a second once 100,000 messages are queued, and the loop then runs dry
            "fetch.queue.backoff.ms": 10,
        }
    )
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 5, "queue.buffering.max.messages": 1_000_000}
    )
    consumer.subscribe([source])
    decode = msgspec.json.Decoder(Reading).decode
    encode = msgspec.json.Encoder().encode
    states: dict[str, ewz.State] = {}
    offsets: dict[int, int] = {}
    committed_at = time.monotonic()
    update, new, threshold, produce = ewz.update, ewz.NEW, ewz.THRESHOLD, producer.produce
    while running:
        messages = consumer.consume(CHUNK, WAIT_S)
        now = time.time()
        for message in messages:
            if message.error():
                raise SystemExit(str(message.error()))
            reading = decode(message.value())
            sensor = reading.sensor_id
            states[sensor], score, field = update(
                states.get(sensor, new), reading.temperature, reading.humidity, reading.pressure
            )
            partition, offset = message.partition(), message.offset()
            prediction = Prediction(
                f"{source}/{partition}/{offset}/ewz",
                sensor,
                "bench",
                reading.ts,
                "ewz",
                "1",
                score,
                field,
                score > threshold,
                now * 1000.0 - message.timestamp()[1],
            )
            produce(target, encode(prediction), message.key(), partition)
            offsets[partition] = offset + 1
        producer.poll(0)
        if offsets and time.monotonic() - committed_at >= COMMIT_EVERY_S:
            producer.flush()
            consumer.commit(
                offsets=[TopicPartition(source, p, o) for p, o in offsets.items()], asynchronous=True
            )
            offsets.clear()
            committed_at = time.monotonic()
    producer.flush(5)
    consumer.close()


if __name__ == "__main__":
    main()
