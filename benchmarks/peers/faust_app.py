"""The same job in plain Faust: an agent, a table in memory with its changelog topic, at least once.

Usage: faust_app.py worker, with BOOTSTRAP, SOURCE, TARGET, GROUP, FOLDER in the environment
"""

from __future__ import annotations

import os
import time

import ewz
import faust

SOURCE = os.environ["SOURCE"]

app = faust.App(
    os.environ["GROUP"],
    broker=f"kafka://{os.environ['BOOTSTRAP']}",
    datadir=os.environ["FOLDER"],
    topic_partitions=4,
    web_enabled=False,
)
readings = app.topic(SOURCE, key_type=str, key_serializer="raw", value_serializer="json")
predictions = app.topic(os.environ["TARGET"], key_type=str, key_serializer="raw", value_serializer="json")
states = app.Table("ewz", partitions=4)


@app.agent(readings)
async def score(stream: faust.StreamT) -> None:
    async for event in stream.events():
        value, message = event.value, event.message
        sensor = value["sensor_id"]
        states[sensor], worst, field = ewz.update(
            states.get(sensor) or ewz.NEW, value["temperature"], value["humidity"], value["pressure"]
        )
        await predictions.send(
            key=sensor,
            value={
                "id": f"{SOURCE}/{message.partition}/{message.offset}/ewz",
                "source": sensor,
                "stream": "bench",
                "ts": value["ts"],
                "model": "ewz",
                "version": "1",
                "score": worst,
                "field": field,
                "is_anomaly": worst > ewz.THRESHOLD,
                "latency_ms": time.time() * 1000.0 - message.timestamp * 1000.0,
            },
        )


if __name__ == "__main__":
    app.main()
