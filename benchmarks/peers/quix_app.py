"""The same job in Quix Streams: a stateful apply, state in RocksDB with its changelog topic, as by default.

Usage: quix_app.py BOOTSTRAP SOURCE TARGET GROUP FOLDER
"""

from __future__ import annotations

import sys
import time
from typing import Any

import ewz
from quixstreams import Application, State, message_context
from quixstreams.models import TopicConfig


def main() -> None:
    bootstrap, source, target, group, folder = sys.argv[1:]
    app = Application(
        broker_address=bootstrap,
        consumer_group=group,
        auto_offset_reset="earliest",
        state_dir=f"{folder}/state",
        loglevel="WARNING",
    )
    config = TopicConfig(num_partitions=4, replication_factor=1)
    readings = app.topic(source, value_deserializer="json", key_deserializer="str", config=config)
    predictions = app.topic(target, value_serializer="json", key_serializer="str", config=config)

    def score(value: dict[str, Any], key: Any, timestamp: int, headers: Any, state: State) -> dict[str, Any]:
        updated, worst, field = ewz.update(
            state.get("ewz", ewz.NEW), value["temperature"], value["humidity"], value["pressure"]
        )
        state.set("ewz", updated)
        origin = message_context()
        return {
            "id": f"{source}/{origin.partition}/{origin.offset}/ewz",
            "source": value["sensor_id"],
            "stream": "bench",
            "ts": value["ts"],
            "model": "ewz",
            "version": "1",
            "score": worst,
            "field": field,
            "is_anomaly": worst > ewz.THRESHOLD,
            "latency_ms": time.time() * 1000.0 - timestamp,
        }

    scored = app.dataframe(readings).apply(score, stateful=True, metadata=True)
    scored.to_topic(predictions)
    app.run()


if __name__ == "__main__":
    main()
