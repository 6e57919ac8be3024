from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from connectors.plant import PlantSource
from connectors.source import SOURCES, Message, build_source, feed
from streams.errors import RetryLater, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


def test_sources_are_built_by_their_type() -> None:
    assert isinstance(build_source({"type": "plant", "sensors": 3}), PlantSource)
    assert set(SOURCES) == {"camera", "host", "plant"}
    for name in SOURCES:
        assert hasattr(build_source({"type": name}), "batches")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "moon"}, "there is no source 'moon': choose one of camera, host, plant"),
        ({}, "there is no source 'None'"),
        ({"type": "plant", "sensors": "many"}, "source 'plant': Expected `int`"),
        ({"type": "plant", "colour": 1}, "unknown field `colour`"),
    ],
)
def test_a_wrong_source_says_what_is_right(config: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_source(config)


class Three:
    async def batches(self) -> AsyncIterator[list[Message]]:
        for n in range(3):
            yield [Message(None, str(n).encode())]


class FlakyPublisher:
    failed = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.calls = 0

    async def publish(self, topic: str, messages: Iterable[Message]) -> int:
        self.calls += 1
        if self.calls == 2:
            self.failed += 1
            raise RetryLater("broker away")
        self.sent += [m.value for m in messages]
        return 1


async def test_a_feed_outlives_an_outage_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    publisher = FlakyPublisher()
    await feed(Three(), publisher, "t")  # type: ignore[arg-type]
    assert publisher.sent == [b"0", b"2"]
    assert [r.getMessage() for r in caplog.records] == [
        "readings for 't' are being lost: broker away",
        "readings for 't' flow again; 1 were lost so far",
    ]
