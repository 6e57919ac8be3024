"""Publishes at a steady pace and takes the time until each reading comes back as a prediction.

It runs in the environment of the confluent loop, since librdkafka takes little CPU from what is measured.
Each reading carries in `ts` the time at which it was published, and every contestant hands `ts` on; so the
age of a prediction when it is read is the latency. One clock, one machine.

Prints JSON lines: `{"event": "measuring"}` when the warm-up is over, `{"event": "done", ...}` at the end.

Usage: probe.py BOOTSTRAP SOURCE TARGET RATE WARM_S MEASURE_S SENSORS ISOLATION
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time

import msgspec
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

PARTITIONS = 4
READY_S = 60.0
DRAIN_S = 10.0


class Stamped(msgspec.Struct, gc=False):
    ts: float


class Probe:
    def __init__(self, argv: list[str]) -> None:
        self.bootstrap, self.source, self.target = argv[:3]
        self.rate, self.warm_s, self.measure_s = (float(a) for a in argv[3:6])
        self.sensors = int(argv[6])
        self.isolation = argv[7]
        self.sent: list[float] = []
        self.lateness: list[float] = []
        self.got: list[tuple[float, float]] = []
        self.first_output = threading.Event()
        self.stop_reading = threading.Event()
        self.subscribed = threading.Event()

    def read(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "probe",
                "enable.auto.commit": False,
                "isolation.level": self.isolation,
            }
        )
        consumer.assign([TopicPartition(self.target, p, OFFSET_END) for p in range(PARTITIONS)])
        for p in range(PARTITIONS):
            consumer.get_watermark_offsets(TopicPartition(self.target, p))
        consumer.poll(0.5)
        self.subscribed.set()
        decode = msgspec.json.Decoder(Stamped).decode
        while not self.stop_reading.is_set():
            message = consumer.poll(0.1)
            if message is None:
                continue
            now = time.time()
            if message.error():
                raise SystemExit(str(message.error()))
            self.got.append((decode(message.value()).ts, now))
            self.first_output.set()
        consumer.close()

    def publish(self, seconds: float) -> None:
        """At fixed times, whatever became of the readings before: a slow worker slows nothing down."""
        rng = random.Random(7)
        ids = [f"sensor-{i:06d}" for i in range(self.sensors)]
        start = time.perf_counter()
        n = 0
        while True:
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return
            while n < elapsed * self.rate:
                sensor = ids[rng.randrange(self.sensors)]
                ts = time.time()
                value = (
                    f'{{"sensor_id":"{sensor}","ts":{ts!r},"temperature":{rng.gauss(22, 1):.2f},'
                    f'"humidity":{rng.gauss(45, 2):.2f},"pressure":{rng.gauss(1013, 3):.2f}}}'
                )
                self.producer.produce(self.source, value, sensor)
                self.sent.append(ts)
                self.lateness.append(time.perf_counter() - start - n / self.rate)
                n += 1
            self.producer.poll(0)
            time.sleep(max(0.0, n / self.rate - (time.perf_counter() - start)))

    def run(self) -> None:
        self.producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "linger.ms": 0,
                "acks": 1,
                "partitioner": "murmur2_random",
            }
        )
        reader = threading.Thread(target=self.read, daemon=True)
        reader.start()
        if not self.subscribed.wait(READY_S):
            raise SystemExit("the reader of the probe got no partitions")
        ready_at = time.monotonic() + READY_S
        while not self.first_output.is_set():
            if time.monotonic() > ready_at:
                raise SystemExit(f"no output within {READY_S:.0f} s")
            self.publish(0.5)
        self.publish(self.warm_s)
        print(json.dumps({"event": "measuring"}), flush=True)
        self.lateness.clear()
        begin = time.time()
        first = len(self.sent)
        self.publish(self.measure_s)
        end = time.time()
        wanted = len(self.sent) - first
        print(json.dumps({"event": "measured"}), flush=True)
        self.producer.flush(DRAIN_S)
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until:
            measured = [now - ts for ts, now in list(self.got) if begin <= ts <= end]
            if len(measured) >= wanted:
                break
            time.sleep(0.1)
        self.stop_reading.set()
        reader.join(5)
        measured = sorted(now - ts for ts, now in self.got if begin <= ts <= end)
        self.lateness.sort()
        print(
            json.dumps(
                {
                    "event": "done",
                    "sent": wanted,
                    "received": len(measured),
                    "ms": {
                        name: 1000.0 * at(measured, q)
                        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
                    },
                    "lateness_p99_ms": 1000.0 * at(self.lateness, 0.99),
                }
            ),
            flush=True,
        )


def at(ordered: list[float], quantile: float) -> float:
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else float("nan")


if __name__ == "__main__":
    Probe(sys.argv[1:]).run()
