from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from connectors.errors import BadInput
from connectors.source import Message
from polarstream.replay import Pacer, ReplayPlan, replay


class Sink:
    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def publish(self, topic: str, messages: Iterable[Message]) -> int:
        new = list(messages)
        self.messages += new
        return len(new)

    async def flush(self) -> None:
        pass

    @property
    def values(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(m.value) for m in self.messages]


def plan(path: Path, **more: object) -> ReplayPlan:
    settings = {"topic": "t", "id_field": "sensor_id", "time_field": "ts", "speed": None, **more}
    return ReplayPlan(path=path, **settings)  # type: ignore[arg-type]


def test_pacer_keeps_the_distance_of_the_records() -> None:
    pacer = Pacer(10.0, start=100.0)
    assert pacer.delay_s(5000.0, 100.0) == 0
    assert pacer.delay_s(5020.0, 100.0) == 2.0
    assert pacer.delay_s(5020.0, 101.5) == 0.5
    assert pacer.delay_s(5010.0, 101.5) == 0  # late already, or out of order
    assert Pacer(None, 0.0).delay_s(1e9, 0.0) == 0


async def test_flat_out_sends_every_row_in_order(tmp_path: Path) -> None:
    path, sink, moves = tmp_path / "pump-7.csv", Sink(), []
    path.write_text("timestamp,value\n" + "".join(f"2025-01-21 00:00:{i:02d},{i}\n" for i in range(60)))
    result = await replay(plan(path), sink, lambda *a: moves.append(a))  # type: ignore[arg-type]
    assert (result.readings, result.recorded_s) == (60, 59.0)
    assert [v["value"] for v in sink.values] == list(range(60))
    assert sink.values[1] == {"sensor_id": "pump-7", "ts": 1737417601.0, "value": 1}
    assert sink.messages[0].key == b"pump-7"
    assert moves[-1] == (path.stat().st_size, path.stat().st_size, 60)


async def test_speed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ts,x\n1,1\n3,2\n5,3\n")
    result = await replay(plan(path, speed=10.0), Sink())  # type: ignore[arg-type]
    assert result.elapsed_s >= 0.4


async def test_times_can_be_moved_to_now(tmp_path: Path) -> None:
    path, sink = tmp_path / "a.csv", Sink()
    path.write_text("sensor_id;Zeit;x\na;1000;1\nb;1002.5;2\n")
    await replay(plan(path, time_column="Zeit", rewrite_time=True), sink)  # type: ignore[arg-type]
    first, second = sink.values
    assert float(str(first["ts"])) > 1.7e9
    assert float(str(second["ts"])) - float(str(first["ts"])) == pytest.approx(2.5, abs=1e-5)
    assert [m.key for m in sink.messages] == [b"a", b"b"]


async def test_the_rows_before_a_bad_one_are_sent(tmp_path: Path) -> None:
    path, sink = tmp_path / "a.csv", Sink()
    path.write_text("ts,x\n1,1\n2,2\nsoon,3\n")
    with pytest.raises(BadInput, match="line 4, column 'ts'"):
        await replay(plan(path), sink)  # type: ignore[arg-type]
    assert [v["x"] for v in sink.values] == [1, 2]


async def test_columns_of_id_and_time_can_be_named(tmp_path: Path) -> None:
    path, sink = tmp_path / "a.csv", Sink()
    path.write_text("machine,at,x\nfan,7,1\n")
    await replay(plan(path, id_column="machine", time_column="at"), sink)  # type: ignore[arg-type]
    assert sink.values == [{"sensor_id": "fan", "ts": 7.0, "x": 1}]


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("", {}, "is empty"),
        ("a,b\n1,2\n", {}, "no column of .* looks like a time"),
        ("ts,b\n1,2\n", {"time_column": "zeit"}, "--time-column: there is no column 'zeit', only ts, b"),
        ("ts,b\n1,2\n", {"id_column": "id"}, "--id-column: there is no column 'id'"),
        ("ts,b\n,2\n", {}, "line 2 has no time"),
        ("ts,b\nx,2\n", {}, "line 2, column 'ts': 'x' is no time"),
    ],
)
async def test_a_file_that_does_not_fit_says_why(
    tmp_path: Path, text: str, more: dict[str, object], words: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=words):
        await replay(plan(path, **more), Sink())  # type: ignore[arg-type]


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        await replay(plan(tmp_path / "none.csv"), Sink())  # type: ignore[arg-type]
