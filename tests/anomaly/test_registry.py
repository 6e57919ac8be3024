from __future__ import annotations

import importlib.metadata

import pytest

from anomaly import BadDetector, EwzDetector, build_detector


def faults(config: dict[str, object], thresholds: dict[str, float | None] | None = None) -> dict[str, str]:
    with pytest.raises(BadDetector) as caught:
        build_detector(config, ["a", "b"], thresholds)
    return {fault.path: fault.message for fault in caught.value.faults}


def test_auto_is_what_no_type_means() -> None:
    assert build_detector({}, ["a"]).name == "auto"


def test_parameters_and_thresholds_reach_the_detector() -> None:
    detector = build_detector({"type": "ewz", "alpha": 0.1}, ["a", "b"], {"a": None, "b": 4})
    assert isinstance(detector, EwzDetector)
    assert detector.config.alpha == 0.1
    assert detector.fields == ("a", "b")
    assert detector.thresholds.tolist() == [6.0, 4.0]


def test_every_fault_is_told_with_its_path() -> None:
    found = faults({"type": "ewz", "alpa": 1, "warmup": "many", "min_sd": []}, {"a": -1.0})
    assert set(found) == {"alpa", "warmup", "min_sd", "fields.a.threshold"}
    assert "alpha" in found["alpa"]
    assert found["warmup"] == "'many': expected `int`, got `str`"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("alpha", 0), ("alpha", 1.5), ("warmup", 0), ("threshold", 0), ("min_sd", 0), ("alpha", float("nan"))],
)
def test_values_out_of_range_are_refused_with_the_value(parameter: str, value: float) -> None:
    found = faults({"type": "ewz", parameter: value})
    assert set(found) == {parameter}
    assert str(value) in found[parameter]


def test_an_unknown_detector_is_refused_with_those_there_are() -> None:
    assert "ewz" in faults({"type": "crystal ball"})["type"]


def test_another_package_adds_a_detector_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint(
        "theirs", "anomaly.detectors.ewz:EwzDetector", "polarstream.detectors"
    )
    points = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points.select(group=group))
    assert isinstance(build_detector({"type": "theirs"}, ["a"]), EwzDetector)
    assert "theirs" in faults({"type": "nobody's"})["type"]
