"""The Faust table whose changelog carries state: shards of rows and blobs, by key, for each partition.

Faust assigns the changelog's partitions together with the input's, reads them back after a rebalance or a
restart and keeps standbys current. The table holds what the changelog holds, in memory, as bytes; agents
build their columns from it (`streams.state`), and checkpoints write through `note_written`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import faust
from faust.types import TP

from streams.state import last_offset
from streams.topics import ChunkTopic

#: A changelog is read whole at a restart, so it is compacted often and in small pieces.
CHANGELOG_CONFIG = {
    "cleanup.policy": "compact",
    "segment.bytes": str(64 << 20),
    "segment.ms": str(600_000),
    "min.cleanable.dirty.ratio": "0.3",
    "delete.retention.ms": str(600_000),
}


class ChangelogTable(faust.Table):  # type: ignore[misc]
    """State by partition: `{key: value}` as it stands in the changelog."""

    def __init__(self, app: Any, *, name: str, **kwargs: Any) -> None:
        topic = ChunkTopic(
            app,
            topics=[f"{app.conf.id}-{name}-changelog"],
            internal=True,
            acks=False,
            partitions=kwargs.get("partitions"),
            compacting=True,
            config=CHANGELOG_CONFIG,
        )
        super().__init__(app, name=name, changelog_topic=topic, recovery_buffer_size=1, **kwargs)
        self._changelog: dict[int, dict[bytes, bytes]] = {}
        self._written: dict[TP, int] = {}

    def contents(self, partition: int) -> Mapping[bytes, bytes]:
        """What the changelog holds for one partition, newest value by key."""
        return self._changelog.get(partition, {})

    def note_written(self, partition: int, items: Iterable[tuple[bytes, bytes]], last_offset: int) -> None:
        """Note what a checkpoint has written, up to an offset of the changelog."""
        self._changelog.setdefault(partition, {}).update(items)
        self._written[TP(self.changelog_topic_name, partition)] = last_offset

    def persisted_offset(self, tp: TP) -> int | None:
        """The changelog offset up to which memory is current; recovery reads from there."""
        return self._written.get(tp)

    def apply_changelog_batch(self, batch: list[Any]) -> None:
        """Take what recovery has read: events whose values are chunks."""
        for event in batch:
            chunk = event.message.value
            contents = self._changelog.setdefault(chunk.partition, {})
            for key, value in zip(chunk.keys, chunk.values, strict=True):
                if value is None:
                    contents.pop(key, None)
                # what a worker wrote after it had been given up is older than it looks
                elif key not in contents or last_offset(value) >= last_offset(contents[key]):
                    contents[key] = value
            self._written[TP(chunk.topic, chunk.partition)] = chunk.last_offset

    async def on_changelog_event(self, event: Any) -> None:
        """Do nothing: chunks are applied in `apply_changelog_batch`."""

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Forget partitions that another worker has now."""
        for tp in revoked:
            if tp.topic == self.changelog_topic_name:
                self._changelog.pop(tp.partition, None)
                self._written.pop(tp, None)

    def reset_state(self) -> None:
        """Forget everything."""
        self._changelog.clear()
        self._written.clear()
