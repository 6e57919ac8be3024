from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console

from polarstream.live import Board, CameraView, plain_line, render

NOW = 1_750_000_000.0


def prediction(source: str, score: float | None, **more: Any) -> bytes:
    return msgspec.json.encode(
        {"id": "x", "source": source, "ts": NOW, "score": score, "latency_ms": 5.0, "field": "value", **more}
    )


def alert(identity: str, state: str, ts: float = NOW, **more: Any) -> bytes:
    fields = {"id": identity, "state": state, "source": "pump-1", "ts": ts, "started_at": NOW, "score": 9.0}
    return msgspec.json.encode({**fields, **more})


def test_rate_and_latency_are_those_of_the_last_seconds() -> None:
    board = Board()
    board.add_predictions([prediction("a", 1.0)] * 100, NOW - 10)
    board.add_predictions([prediction("a", 1.0, latency_ms=7.0)] * 50, NOW - 1)
    summary = board.summary(NOW)
    assert (summary.predictions, summary.predictions_per_s) == (150, 10.0)
    assert summary.latency_ms_p50 == 5.0


def test_the_worst_score_of_a_sensor_is_shown_for_a_minute() -> None:
    board = Board()
    board.add_predictions([prediction("a", 50.0), prediction("a", 1.0), prediction("b", 3.0)], NOW)
    assert [(p.source, p.score) for p in board.worst(5, NOW + 1)] == [("a", 50.0), ("b", 3.0)]
    board.add_predictions([prediction("a", 2.0)], NOW + 61)
    assert [(p.source, p.score) for p in board.worst(5, NOW + 62)] == [("a", 2.0)]


def frame(camera: str, label: str | None, **more: Any) -> bytes:
    return prediction(camera, 0.9, label=label, device="cpu", **more)


def test_cameras_have_their_newest_answer_and_their_rate_and_are_no_sensors() -> None:
    board = Board()
    board.add_predictions([frame("gate", "dog"), frame("gate", "cat", latency_ms=30.0)], NOW)
    board.add_predictions([frame("gate", "cat"), frame("yard", None)], NOW + 1)
    board.add_predictions([frame("gate", "tabby", latency_ms=21.0), prediction("a", 1.0)], NOW + 2)
    gate, yard = board.cameras(NOW + 2)
    assert gate == CameraView("gate", "tabby", 0.9, 21.0, "cpu", 0.8)
    assert (yard.camera, yard.label, yard.frames_per_s) == ("yard", None, 0.2)
    assert [p.source for p in board.worst(9, NOW + 2)] == ["a"]
    assert board.sensors == 1
    # none came for a while: the rate falls, after a minute the camera is gone
    assert [c.frames_per_s for c in board.cameras(NOW + 5.5)] == [0.4, 0.2]
    assert [c.frames_per_s for c in board.cameras(NOW + 30)] == [0.0, 0.0]
    assert [c.camera for c in board.cameras(NOW + 61.5)] == ["gate"]
    assert [c.camera for c in board.summary(NOW + 2).cameras] == ["gate", "yard"]


def test_open_alerts_stand_first_and_a_resolved_one_is_the_same_alert() -> None:
    board = Board()
    board.add_alerts([alert("1", "firing"), alert("2", "firing", NOW + 1)])
    assert board.open_alerts == 2
    board.add_alerts([alert("2", "resolved", NOW + 5)])
    assert board.open_alerts == 1
    assert [(a.id, a.state) for a in board.alerts(9)] == [("1", "firing"), ("2", "resolved")]
    assert board.summary(NOW).alerts == 3


def test_memory_is_bounded() -> None:
    board = Board()
    board.add_predictions([prediction(f"s{n}", 1.0) for n in range(6000)], NOW)
    board.add_alerts([alert(f"a{n}", "firing") for n in range(300)])
    assert board.sensors == 5000
    assert len(board.alerts(1000)) == 200
    for second in range(3000):
        board.add_predictions([frame(f"c{second % 1500}", "cat")] * 2, NOW + second)
    assert len(board._cameras) == 1000
    assert sum(len(camera.arrivals) for camera in board._cameras.values()) == 1000


def test_what_cannot_be_decoded_is_counted() -> None:
    board = Board()
    board.add_predictions([b"nonsense", None, prediction("a", None)], NOW)
    board.add_alerts([b"{}", None])
    assert board.undecodable == 4
    assert board.predictions == 3


def test_plain_line_says_all_in_one_line() -> None:
    board = Board()
    line = plain_line(board.summary(NOW))
    assert "predictions 0 (0/s, p50 -) anomalies 0 alerts 0 (0 open)" in line
    board.add_predictions([prediction("a", 9.0, is_anomaly=True)], NOW)
    board.add_alerts([alert("1", "firing", field="temperature")])
    line = plain_line(board.summary(NOW))
    assert "predictions 1 " in line
    assert "anomalies 1 alerts 1 (1 open) | last: firing pump-1 temperature score 9.0" in line
    assert "\n" not in line
    board.add_predictions([frame("gate", "tabby"), frame("yard", None)], NOW)
    assert plain_line(board.summary(NOW)).endswith("score 9.0 | gate: tabby 0.90 | yard: - 0.90")


def test_the_table_fits_any_terminal_and_shows_markup_as_it_is() -> None:
    board = Board()
    board.add_predictions([prediction(f"[red]s{n}[/]", float(n)) for n in range(100)], NOW)
    board.add_alerts([alert(str(n), "firing") for n in range(100)])
    board.add_predictions([frame(f"cam-{n}", "[b]cat[/]") for n in range(10)], NOW)
    board.say("worker ended [sic]", NOW)
    for width, height in ((200, 60), (80, 24), (40, 14), (40, 12)):
        console = Console(width=width, height=height, record=True, force_terminal=True)
        with console.capture() as capture:
            console.print(render(board, "polarstream", ["note"], NOW, height))
        assert len(capture.get().rstrip("\n").splitlines()) == height
        shown = capture.get()
        assert "[red]s99[/]" in shown or width == 40
        assert ("[b]cat[/]" in shown) == (height > 14), shown
        assert ("Cameras: 4 of 10" in shown) == (height > 14)
        assert "cam-5" not in shown
        assert "note" in shown or width == 40  # the head wraps
