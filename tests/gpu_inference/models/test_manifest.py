"""model.toml: short where the defaults hold, every fault with its path where they don't."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_inference.errors import ManifestError
from gpu_inference.models.manifest import (
    Classification,
    Detection,
    ImageInput,
    Regression,
    SeriesInput,
    fit_of,
    labels_of,
    parse,
    read,
)


def faults_of(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    return caught.value.faults


def test_a_classification_model_needs_three_lines(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n dog \n\n", encoding="utf-8")
    manifest = parse(
        'input.size = [240, 320]\noutput.task = "classification"\noutput.labels = "labels.txt"\n'
    )
    assert manifest.input == ImageInput(size=(240, 320))
    assert isinstance(manifest.output, Classification)
    assert (manifest.limits.max_batch, fit_of(manifest)) == (32, "crop")
    assert labels_of(manifest, tmp_path) == ("cat", "dog")


def test_an_empty_manifest_is_a_classification_of_pictures() -> None:
    manifest = parse("")
    assert isinstance(manifest.input, ImageInput)
    assert isinstance(manifest.output, Classification)


def test_boxes_and_masks_keep_the_whole_picture_unless_told_otherwise() -> None:
    assert fit_of(parse('output.task = "detection"')) == "letterbox"
    assert fit_of(parse('output.task = "segmentation"')) == "letterbox"
    assert fit_of(parse('output.task = "detection"\ninput.fit = "stretch"')) == "stretch"


def test_series_and_their_task_are_read() -> None:
    manifest = parse("""
        [input]
        kind = "series"
        fields = ["temperature", "vibration"]
        window = 64
        mean = [20, 0.5]
        [output]
        task = "regression"
        values = ["hours_left"]
        units = ["h"]
    """)
    assert manifest.input == SeriesInput(fields=("temperature", "vibration"), window=64, mean=(20.0, 0.5))
    assert manifest.output == Regression(values=("hours_left",), units=("h",))


def test_every_fault_is_told_with_its_path() -> None:
    faults = faults_of("""
        [input]
        size = [0, "wide"]
        layout = "NWHC"
        stdd = [1]
        pad = 300
        [output]
        task = "detection"
        min_score = 1.5
        top_k = 3
        [limits]
        max_batch = 0
        max_delay_ms = inf
        [metta]
    """)
    assert {fault.partition(":")[0] for fault in faults} == {
        "input.size[0]",
        "input.layout",
        "input.stdd",
        "input.pad",
        "output.min_score",
        "output.top_k",
        "limits.max_batch",
        "limits.max_delay_ms",
        "metta",
    }
    by_path = dict(fault.split(": ", 1) for fault in faults)
    assert by_path["input.layout"] == "there is no 'NWHC': did you mean 'NHWC'?"
    assert by_path["output.top_k"].startswith(
        "is not a setting of task 'detection': use one of names, labels"
    )
    assert by_path["metta"] == "is not a setting: did you mean 'meta'?"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("input.mean = [1, 2]", "input.mean: has 2 numbers for 3 channels: write one, or 3"),
        ('input.channels = "gray"\ninput.std = [1, 2, 3]', "input.std: has 3 numbers for 1 channels"),
        ("input.std = [0]", "input.std[0]: expected `float` > 0.0"),
        ("input.mean = [nan]", "input.mean: [nan] is not finite"),
        ("input.size = [9000, 10]", "input.size[0]: 9000 is above 8192"),
        ("input.size = [10]", "input.size: expected `array` of length 2"),
        ('input.dtype = "uint8"\ninput.mean = [3]', "input.mean: has no meaning for dtype uint8"),
        ('input = {kind = "series", window = 3}', "input.fields: is missing: set it"),
        ('input.kind = "video"', "input.kind: there is no 'video': use one of image, series, tensor"),
        ("input = 3", "input: 3 is not a table"),
        ('output.task = "tracking"', "output.task: there is no 'tracking': use one of classification"),
        ('output.task = "series"', "output.task: series needs readings"),
        (
            'input = {kind = "series", fields = ["a"], window = 2}\noutput.task = "detection"',
            "output.task: detection needs pictures",
        ),
        (
            'input = {kind = "series", fields = ["a", "a"], window = 2}\noutput.task = "regression"',
            "input.fields: names a field twice",
        ),
        (
            'input = {kind = "series", fields = ["a"], window = 2}\n'
            'output = {task = "series", fields = ["b"]}',
            "output.fields: 'b' is no field of the input: use a",
        ),
        (
            'output = {task = "detection", format = "rows", activation = "sigmoid"}',
            "output.activation: has no meaning for format rows",
        ),
        (
            'output = {task = "regression", values = ["a", "b"], units = ["m"]}',
            "output.units: has 1 units for 2 values",
        ),
        (
            'output = {task = "regression", values = ["a", "b"], scale = [1, 2, 3]}',
            "output.scale: has 3 numbers for 2 values",
        ),
        ('output.labels = "../secrets.txt"', "output.labels: '../secrets.txt' is no name of a file"),
        ("input.size = ", "no TOML:"),
    ],
)
def test_a_fault_names_its_setting(text: str, fault: str) -> None:
    (told,) = faults_of(text)
    assert told.startswith(fault)


def test_a_missing_file_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="write a UTF-8 file"):
        read(tmp_path / "model.toml")
    with pytest.raises(ManifestError, match="one label a line"):
        labels_of(parse('output.labels = "names.txt"'), tmp_path)
    with pytest.raises(ManifestError, match="without a folder"):
        labels_of(parse('output.labels = "names.txt"'))
    assert labels_of(parse('output = {task = "embedding"}')) == ()
    assert isinstance(parse('output = {task = "detection", labels = ["a"]}').output, Detection)
