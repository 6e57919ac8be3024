from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.throughput import rates
from benchmarks.verification import Checker, Verdict
from benchmarks.workload import FIELDS, THRESHOLD, Workload

SOURCE = "readings"


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(6_000, sensors=40)


def right_outputs(workload: Workload) -> list[list[dict[str, object]]]:
    """For each partition what a faultless contestant writes."""
    scores = workload.scores()
    outputs: list[list[dict[str, object]]] = [[] for _ in range(workload.partitions)]
    for i in range(workload.readings):
        partition = int(workload.partition[i])
        outputs[partition].append(
            {
                "id": f"{SOURCE}/{partition}/{workload.offset[i]}/ewz",
                "source": workload.sensor_ids[workload.sensor[i]],
                "stream": "bench",
                "ts": float(workload.ts[i]),
                "model": "ewz",
                "version": "1",
                "score": float(scores[i].max()),
                "field": FIELDS[int(scores[i].argmax())],
                "is_anomaly": bool(scores[i].max() > THRESHOLD),
                "latency_ms": 1.5,
            }
        )
    return outputs


def judge(workload: Workload, outputs: list[list[dict[str, object]]]) -> Verdict:
    checker = Checker(SOURCE, workload)
    for partition, mine in enumerate(outputs):
        for start in range(0, len(mine), 700):
            part = mine[start : start + 700]
            checker.add(
                partition,
                [str(p["source"]).encode() for p in part],
                [json.dumps(p).encode() for p in part],
                [1000] * len(part),
            )
    return checker.verdict()


def test_a_shorter_workload_is_a_prefix_of_a_longer_one(workload: Workload) -> None:
    longer = Workload(9_000, sensors=40)
    np.testing.assert_array_equal(longer.values[:6_000], workload.values)
    np.testing.assert_array_equal(longer.scores()[:6_000], workload.scores())
    assert list(longer.payloads(0, 50)) == list(workload.payloads(0, 50))


def test_the_two_references_agree(workload: Workload) -> None:
    workload.check_reference(range(40))
    assert (workload.scores() > THRESHOLD).any()


def test_right_outputs_pass(workload: Workload) -> None:
    verdict = judge(workload, right_outputs(workload))
    assert verdict.right, verdict.summary()
    assert verdict.outputs == workload.readings


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"score": 0.123456}, "wrong score"),
        ({"ts": 1.0}, "wrong ts"),
        ({"source": "sensor-999999"}, "wrong source"),
        ({"stream": "other"}, "wrong source"),
        ({"field": "colour"}, "wrong field"),
        ({"latency_ms": None}, "undecodable"),
        ({"id": "elsewhere/0/1/ewz"}, "wrong id"),
        ({"id": f"{SOURCE}/0/999999/ewz"}, "no such reading"),
    ],
)
def test_one_wrong_output_is_found(workload: Workload, change: dict[str, object], kind: str) -> None:
    outputs = right_outputs(workload)
    assert float(str(outputs[1][-1]["score"])) > 0
    outputs[1][-1].update(change)
    verdict = judge(workload, outputs)
    assert not verdict.right
    assert kind in verdict.wrong


def test_a_flag_that_contradicts_the_score_is_found(workload: Workload) -> None:
    outputs = right_outputs(workload)
    outputs[0][5]["is_anomaly"] = not outputs[0][5]["is_anomaly"]
    assert judge(workload, outputs).wrong == {"wrong flag": 1}


def test_a_score_within_a_millionth_passes(workload: Workload) -> None:
    outputs = right_outputs(workload)
    for output in outputs[2]:
        output["score"] = float(str(output["score"])) * (1 + 5e-7)
    assert judge(workload, outputs).right


def test_missing_and_duplicated_outputs_are_counted(workload: Workload) -> None:
    outputs = right_outputs(workload)
    outputs[0].append(dict(outputs[0][-1]))
    del outputs[1][7]
    verdict = judge(workload, outputs)
    assert (verdict.missing, verdict.duplicated, verdict.wrong) == (1, 1, {})
    assert not verdict.right


def test_two_outputs_of_one_sensor_in_the_wrong_order_are_found(workload: Workload) -> None:
    outputs = right_outputs(workload)
    mine = outputs[3]
    second = next(i for i in range(1, len(mine)) if mine[i]["source"] == mine[0]["source"])
    mine[0], mine[second] = mine[second], mine[0]
    assert "out of order" in judge(workload, outputs).wrong


def test_a_sensor_in_two_output_partitions_is_found(workload: Workload) -> None:
    outputs = right_outputs(workload)
    outputs[3].append(outputs[0].pop())
    assert "key in two partitions" in judge(workload, outputs).wrong


def test_rates_come_from_the_append_times() -> None:
    verdict = Verdict(outputs=101, appended_ms=np.arange(101) * 10 + 5_000)
    whole, steady, first = rates(verdict, 101, started_s=3.0)
    assert whole == pytest.approx(101 / 3.0)
    assert steady == pytest.approx(100.0)
    assert first == pytest.approx(2.0)


def test_a_batch_counts_for_the_readings_in_it() -> None:
    verdict = Verdict(outputs=101, appended_ms=np.arange(101) * 10 + 5_000)
    assert rates(verdict, 101_000, started_s=3.0)[1] == pytest.approx(100_000.0)
