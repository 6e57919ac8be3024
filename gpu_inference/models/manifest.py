"""`model.toml`: what a model wants as input, what its outputs mean, and what it may take.

Everything has a default; a classification model needs three lines:

    input.size = [224, 224]
    output.task = "classification"
    output.labels = "labels.txt"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gpu_inference.errors import ManifestError
from gpu_inference.models.faults import Note, convert

PositiveInt: TypeAlias = Annotated[int, Meta(ge=1)]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
NonNegative: TypeAlias = Annotated[float, Meta(ge=0)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Activation: TypeAlias = Literal["none", "softmax", "sigmoid"]
#: The name of a file beside the manifest, or the labels themselves.
Labels: TypeAlias = str | tuple[str, ...]

#: Larger inputs are a slip; a staging batch of 32 such frames would take 6 GB.
MAX_SIDE: Final = 8192


class ImageInput(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag_field="kind", tag="image"
):
    """One picture: brought to a size, then `(pixel * scale - mean) / std` for each channel."""

    #: The model's input; unset for a model that has only one.
    name: str | None = None
    #: Height and width in pixels.
    size: tuple[PositiveInt, PositiveInt] = (224, 224)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    #: Applied to pixels of 0 to 255, before mean and std.
    scale: float = 1 / 255
    #: One number, or one a channel, in the model's order of channels.
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Positive, ...] = (1.0,)
    #: How another aspect ratio is met; unset: crop, for boxes and masks letterbox.
    fit: Literal["crop", "letterbox", "stretch"] | None = None
    #: The part of the largest fitting rectangle that a crop keeps.
    crop: Annotated[float, Meta(gt=0, le=1)] = 1.0
    #: The grey of a letterbox's bars.
    pad: Annotated[int, Meta(ge=0, le=255)] = 114


class SeriesInput(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag_field="kind", tag="series"
):
    """The last readings of a sensor: `(value - mean) / std` for each field."""

    fields: Annotated[tuple[str, ...], Meta(min_length=1)]
    #: Readings in a window.
    window: PositiveInt
    name: str | None = None
    #: W stands for the readings of the window, oldest first, F for the fields.
    layout: Literal["NWF", "NFW"] = "NWF"
    dtype: Literal["float32", "float16"] = "float32"
    #: One number, or one a field.
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Positive, ...] = (1.0,)
    #: New readings of a sensor between two windows.
    stride: PositiveInt = 1


class TensorInput(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag_field="kind", tag="tensor"
):
    """Numbers that are handed on as they are, for requests."""

    name: str | None = None
    #: Of one input, without the batch.
    shape: tuple[PositiveInt, ...] = ()
    dtype: Literal["float32", "float16", "float64", "int8", "uint8", "int32", "int64"] = "float32"


class _Output(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag_field="task"):
    """What the outputs of every task have."""

    #: The model's outputs in the order that the task wants; empty: the model's own order.
    names: tuple[str, ...] = ()


class Classification(_Output, kw_only=True, frozen=True, tag="classification"):
    """One array [n, classes]."""

    labels: Labels = ()
    activation: Activation = "softmax"
    top_k: PositiveInt = 5
    #: Classes below this score are left out, except the first one.
    min_score: Fraction = 0.0


class Detection(_Output, kw_only=True, frozen=True, tag="detection"):
    """Boxes with a class and a score; `format` says in which arrays."""

    labels: Labels = ()
    #: yolo: [n, 4 + classes, boxes]. yolo-objectness: the same with an objectness before the classes.
    #: split: [n, boxes, 4], [n, boxes, classes]. rows: [n, boxes, 6] of box, score, class.
    #: final: [n, boxes, 4], scores [n, boxes], classes [n, boxes], and perhaps counts [n].
    format: Literal["yolo", "yolo-objectness", "split", "rows", "final"] = "yolo"
    #: What the four numbers of a box are; unset: cxcywh for yolo, xyxy for the others.
    box: Literal["cxcywh", "xyxy", "yxyx", "xywh"] | None = None
    #: Pixels of the input, or fractions of its sides.
    unit: Literal["pixel", "fraction"] = "pixel"
    #: Made of class scores; softmax has one more class at the end: nothing there.
    activation: Activation = "none"
    min_score: Fraction = 0.25
    #: Of two boxes of one class that overlap by more, the better one stays; unset: 0.45, and no suppression
    #: for rows and final.
    max_overlap: Fraction | None = None
    max_boxes: PositiveInt = 100


class Segmentation(_Output, kw_only=True, frozen=True, tag="segmentation"):
    """One array of class scores [n, classes, h, w], or of class numbers [n, h, w] or [n, 1, h, w]."""

    labels: Labels = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    #: Classes without a mask in the answer, by number.
    ignore: tuple[Annotated[int, Meta(ge=0)], ...] = (0,)
    #: With one channel: a pixel is of class 1 from this probability on.
    threshold: Fraction = 0.5
    activation: Literal["none", "sigmoid"] = "none"
    #: Masks of fewer pixels of the source are left out.
    min_pixels: PositiveInt = 1


class Embedding(_Output, kw_only=True, frozen=True, tag="embedding"):
    """One array [n, dimensions]."""

    #: Scale each to length 1.
    unit_norm: bool = True
    #: list: numbers. float16 and float32: base64 of little-endian numbers.
    encoding: Literal["list", "float16", "float32"] = "list"


class Regression(_Output, kw_only=True, frozen=True, tag="regression"):
    """One array [n] or [n, values], or one for each value."""

    #: Names of the values; empty: value_0 and so on.
    values: tuple[str, ...] = ()
    #: One unit a value, "" for none.
    units: tuple[str, ...] = ()
    #: The answer is `output * scale + offset`.
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)


class Series(_Output, kw_only=True, frozen=True, tag="series"):
    """One array [n, steps, fields] or [n, steps]: values to come, in the unit of the input's fields."""

    #: The fields that are told; empty: those of the input.
    fields: tuple[str, ...] = ()
    #: The outputs are in the scale of the normalised input: undo its mean and std.
    normalised: bool = False


class Raw(_Output, kw_only=True, frozen=True, tag="raw"):
    """Any arrays whose first dimension is the batch, as they are; `names` chooses among them."""


Input: TypeAlias = ImageInput | SeriesInput | TensorInput
Output: TypeAlias = Classification | Detection | Segmentation | Embedding | Regression | Series | Raw


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What the model may take."""

    max_batch: Annotated[int, Meta(ge=1, le=4096)] = 32
    #: How long a first input waits for others.
    max_delay_ms: NonNegative = 5.0
    #: An input that is older is not run; unset: however old.
    max_age_ms: Positive | None = None
    #: A run that takes longer counts as a hanging device.
    max_run_ms: Positive = 10_000.0
    #: Device memory; unset: as much as it takes.
    max_memory_bytes: PositiveInt | None = None


class About(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What is known about the model; the choice among candidates reads it."""

    description: str = ""
    #: Between 0 and 1, by the measure that is usual for the task, the same for all candidates.
    accuracy: Fraction | None = None
    #: Data that it was made for, as streams name theirs: "thermal", "x-ray".
    data: tuple[str, ...] = ()
    license: str = ""
    source: str = ""


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One `model.toml`."""

    input: Input = ImageInput()
    output: Output = Classification()
    limits: Limits = Limits()
    meta: About = About()


def parse(text: str) -> Manifest:
    """Reads a manifest.

    Args:
        text: TOML.

    Raises:
        ManifestError: what is wrong, every fault with its path.

    Example:
        >>> manifest = parse('input.size = [240, 320]\\noutput.task = "detection"')
        >>> manifest.input.size, fit_of(manifest)
        ((240, 320), 'letterbox')
        >>> parse('input.sise = [240, 320]')
        Traceback (most recent call last):
        ...
        gpu_inference.errors.ManifestError: input.sise: is not a setting of kind 'image': did you mean 'size'?
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError([f"no TOML: {error}"]) from error
    faults: list[str] = []

    def note(path: str, message: str) -> None:
        faults.append(f"{path}: {message}")

    manifest = convert(Manifest, raw, "", note)
    if manifest is not None:
        _check_input(manifest.input, note)
        _check_output(manifest, note)
    if faults:
        raise ManifestError(faults)
    assert isinstance(manifest, Manifest)
    return manifest


def read(path: Path) -> Manifest:
    """Reads the manifest at a path.

    Raises:
        ManifestError: it can't be read, or is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError([f"can't be read ({error}): write a UTF-8 file {path}"]) from error
    return parse(text)


def fit_of(manifest: Manifest) -> Literal["crop", "letterbox", "stretch"]:
    """How pictures are brought to the input's size, the default being the task's."""
    if isinstance(manifest.input, ImageInput) and manifest.input.fit is not None:
        return manifest.input.fit
    return "letterbox" if isinstance(manifest.output, (Detection, Segmentation)) else "crop"


def labels_of(manifest: Manifest, folder: Path | None = None) -> tuple[str, ...]:
    """The labels, from the file beside the manifest where that is named: one a line.

    Args:
        manifest: of the model.
        folder: where it lies; None if there are no files.

    Raises:
        ManifestError: the file can't be read.
    """
    labels = getattr(manifest.output, "labels", ())
    if not isinstance(labels, str):
        return tuple(labels)
    if folder is None:
        raise ManifestError([f"output.labels: there is no file {labels!r} without a folder: write a list"])
    try:
        lines = (folder / labels).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(
            [f"output.labels: {labels!r} can't be read ({error}): write one label a line"]
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)


def _check_input(given: Input, note: Note) -> None:
    if isinstance(given, ImageInput):
        channels = 1 if given.channels == "gray" else 3
        _check_counts(given, channels, "channels", note)
        for index, side in enumerate(given.size):
            if side > MAX_SIDE:
                note(f"input.size[{index}]", f"{side} is above {MAX_SIDE}: use a smaller input")
        changed = [
            n for n, d in (("scale", 1 / 255), ("mean", (0.0,)), ("std", (1.0,))) if getattr(given, n) != d
        ]
        if given.dtype == "uint8" and changed:
            note(
                f"input.{changed[0]}",
                "has no meaning for dtype uint8, whose pixels stay as they are: remove it",
            )
    elif isinstance(given, SeriesInput):
        _check_counts(given, len(given.fields), "fields", note)
        if len(set(given.fields)) < len(given.fields):
            note("input.fields", "names a field twice: name each once")


def _check_counts(given: ImageInput | SeriesInput, count: int, what: str, note: Note) -> None:
    for name in ("mean", "std"):
        if len(getattr(given, name)) not in (1, count):
            have = len(getattr(given, name))
            note(f"input.{name}", f"has {have} numbers for {count} {what}: write one, or {count}")


def _check_output(manifest: Manifest, note: Note) -> None:
    output = manifest.output
    task = str(output.__struct_config__.tag)
    if isinstance(output, (Detection, Segmentation)) and not isinstance(manifest.input, ImageInput):
        note("output.task", f"{task} needs pictures: set input.kind to 'image'")
    if isinstance(output, Series) and not isinstance(manifest.input, SeriesInput):
        note("output.task", "series needs readings: set input.kind to 'series'")
    if isinstance(output, Series) and isinstance(manifest.input, SeriesInput):
        unknown = [name for name in output.fields if name not in manifest.input.fields]
        if unknown:
            known = ", ".join(manifest.input.fields)
            note("output.fields", f"{unknown[0]!r} is no field of the input: use {known}")
    if isinstance(output, Detection) and output.format in ("rows", "final") and output.activation != "none":
        note(
            "output.activation",
            f"has no meaning for format {output.format}, which has final scores: remove it",
        )
    if isinstance(output, Regression):
        if output.units and len(output.units) != len(output.values):
            have, want = len(output.units), len(output.values)
            note("output.units", f"has {have} units for {want} values: write one a value, '' for none")
        for name in ("scale", "offset"):
            have = len(getattr(output, name))
            if have != 1 and have != len(output.values):
                note(
                    f"output.{name}",
                    f"has {have} numbers for {len(output.values)} values: write one, or one a value",
                )
    labels = getattr(output, "labels", ())
    if isinstance(labels, str) and (not labels or "/" in labels or "\\" in labels or labels.startswith(".")):
        note("output.labels", f"{labels!r} is no name of a file beside model.toml: write one, or a list")
