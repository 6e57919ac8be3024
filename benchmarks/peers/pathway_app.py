"""The same job in Pathway: group by sensor, a stateful reducer, its changes flattened into predictions.

Pathway hands a reducer the rows of a minibatch in no promised order, so the reducer sorts them by offset, and
the Kafka writer sorts its minibatch the same way. No persistence: state is lost on a restart.

Usage: pathway_app.py BOOTSTRAP SOURCE TARGET GROUP FOLDER
"""

from __future__ import annotations

import sys
import time

import ewz
import msgspec
import pathway as pw

MINIBATCH_MS = 200


class Reading(pw.Schema):
    sensor_id: str
    ts: float
    temperature: float
    humidity: float
    pressure: float


def main() -> None:
    bootstrap, source, target, group, _ = sys.argv[1:]
    encode = msgspec.json.Encoder().encode
    update, threshold = ewz.update, ewz.THRESHOLD

    @pw.reducers.stateful_many
    def score(
        previous: pw.PyObjectWrapper | None, rows: list[tuple[list[object], int]]
    ) -> pw.PyObjectWrapper:
        state = ewz.NEW if previous is None else previous.value[0]
        out = []
        now_ms = time.time() * 1000.0
        for offset, partition, published_ms, sensor, ts, a, b, c in sorted([row for row, _ in rows]):
            state, worst, field = update(state, a, b, c)
            prediction = {
                "id": f"{source}/{partition}/{offset}/ewz",
                "source": sensor,
                "stream": "bench",
                "ts": ts,
                "model": "ewz",
                "version": "1",
                "score": worst,
                "field": field,
                "is_anomaly": worst > threshold,
                "latency_ms": now_ms - published_ms,
            }
            out.append((offset, encode(prediction)))
        return pw.PyObjectWrapper((state, out))

    readings = pw.io.kafka.read(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
        },
        topic=source,
        schema=Reading,
        format="json",
        with_metadata=True,
        autocommit_duration_ms=MINIBATCH_MS,
    )
    meta = pw.this._metadata
    flat = readings.select(
        pw.this.sensor_id,
        pw.this.ts,
        pw.this.temperature,
        pw.this.humidity,
        pw.this.pressure,
        offset=meta["offset"].as_int(),
        partition=meta["partition"].as_int(),
        published_ms=meta["timestamp_millis"].as_int(),
    )
    states = flat.groupby(pw.this.sensor_id).reduce(
        pw.this.sensor_id,
        state=score(
            pw.this.offset,
            pw.this.partition,
            pw.this.published_ms,
            pw.this.sensor_id,
            pw.this.ts,
            pw.this.temperature,
            pw.this.humidity,
            pw.this.pressure,
        ),
    )
    unpack = pw.udf(lambda state: state.value[1], return_type=list[tuple[int, bytes]], deterministic=True)
    predictions = (
        states.to_stream()
        .select(pw.this.sensor_id, prediction=unpack(pw.this.state))
        .flatten(pw.this.prediction)
        .select(
            key=pw.this.sensor_id,
            offset=pw.this.prediction[0],
            value=pw.this.prediction[1],
        )
    )
    pw.io.kafka.write(
        predictions,
        {"bootstrap.servers": bootstrap, "linger.ms": "5"},
        target,
        format="raw",
        key=predictions.key,
        value=predictions.value,
        headers=[predictions.offset],  # only what is forwarded can be sorted by
        sort_by=[predictions.offset],
    )
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


if __name__ == "__main__":
    main()
