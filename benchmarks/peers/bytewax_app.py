"""The same job in Bytewax: Kafka source, a stateful map by sensor, Kafka sink.

No recovery store: state is lost on a restart.

Usage: python -m bytewax.run bytewax_app:flow, with BOOTSTRAP, SOURCE, TARGET in the environment
"""

from __future__ import annotations

import os
import time

import bytewax.operators as op
import ewz
import msgspec
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow

SOURCE = os.environ["SOURCE"]
BROKERS = [os.environ["BOOTSTRAP"]]


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


decode = msgspec.json.Decoder(Reading).decode
encode = msgspec.json.Encoder().encode

Parsed = tuple[Reading, KafkaSourceMessage[bytes, bytes]]


def parse(message: KafkaSourceMessage[bytes, bytes]) -> tuple[str, Parsed]:
    reading = decode(message.value)
    return reading.sensor_id, (reading, message)


def score(state: ewz.State | None, parsed: Parsed) -> tuple[ewz.State, KafkaSinkMessage[bytes, bytes]]:
    reading, message = parsed
    state, worst, field = ewz.update(
        state or ewz.NEW, reading.temperature, reading.humidity, reading.pressure
    )
    prediction = Prediction(
        f"{SOURCE}/{message.partition}/{message.offset}/ewz",
        reading.sensor_id,
        "bench",
        reading.ts,
        "ewz",
        "1",
        worst,
        field,
        worst > ewz.THRESHOLD,
        time.time() * 1000.0 - message.timestamp[1],
    )
    return state, KafkaSinkMessage(message.key, encode(prediction))


flow = Dataflow("bench")
source = kop.input("in", flow, brokers=BROKERS, topics=[SOURCE])
keyed = op.map("parse", source.oks, parse)
scored = op.stateful_map("score", keyed, score)
kop.output("out", op.key_rm("unkey", scored), brokers=BROKERS, topic=os.environ["TARGET"])
