"""A manifest held against the model that it describes, before the model takes any input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_inference.errors import ManifestError
from gpu_inference.graph.ir import TensorInfo
from gpu_inference.models.manifest import (
    Classification,
    Detection,
    ImageInput,
    Manifest,
    Segmentation,
    SeriesInput,
)


@dataclass(frozen=True, slots=True)
class Binding:
    """How a model is fed.

    Attributes:
        input: name of the model's input.
        shape: of one input in the batch.
        dtype: of it.
        fixed_batch: the only batch that the model runs, smaller ones are padded to it; None: any.
        max_batch: `limits.max_batch`, or the fixed batch.
    """

    input: str
    shape: tuple[int, ...]
    dtype: str
    fixed_batch: int | None
    max_batch: int


def bind(
    manifest: Manifest,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    labels: Sequence[str] = (),
) -> Binding:
    """Compares a manifest with a loaded model.

    Args:
        manifest: of the model.
        inputs: of its session.
        outputs: of its session.
        labels: as read from their file; none are not compared.

    Raises:
        ManifestError: they disagree, every fault with the path in `model.toml`.
    """
    faults: list[str] = []
    known = [info.name for info in inputs]
    wanted = manifest.input.name
    if wanted is None and len(known) != 1:
        raise ManifestError([f"input.name: the model has the inputs {', '.join(known)}: choose one"])
    if wanted is not None and wanted not in known:
        raise ManifestError([f"input.name: the model has no input {wanted!r}: use {', '.join(known)}"])
    info = next(one for one in inputs if wanted in (None, one.name))
    others = [name for name in known if name != info.name]
    if others:
        faults.append(f"input.name: the model also wants {', '.join(others)}: export it with one input")
    if info.dtype.name != manifest.input.dtype:
        told = manifest.input.dtype
        faults.append(f"input.dtype: {told} is not the model's: use {info.dtype.name!r}")
    shape = input_shape(manifest)
    fixed = None
    if info.shape is not None:
        if len(info.shape) != len(shape) + 1 or any(
            there not in (None, told) for there, told in zip(info.shape[1:], shape, strict=True)
        ):
            dims = ", ".join("any" if side is None else str(side) for side in info.shape)
            setting = {ImageInput: "size", SeriesInput: "window"}.get(type(manifest.input), "shape")
            layout = getattr(manifest.input, "layout", "")
            faults.append(
                f"input.{setting}: [batch, {', '.join(map(str, shape))}] {layout} does not fit the model's "
                f"[{dims}]: change it, the layout or the channels"
            )
        elif info.shape[0] is not None:
            fixed = info.shape[0]
    names = [one.name for one in outputs]
    faults += [
        f"output.names[{index}]: the model has no output {name!r}: use {', '.join(names)}"
        for index, name in enumerate(manifest.output.names)
        if name not in names
    ]
    classes = _classes(manifest, outputs)
    if labels and classes is not None and classes != len(labels):
        faults.append(f"output.labels: there are {len(labels)} for {classes} classes: write one for each")
    if faults:
        raise ManifestError(faults)
    return Binding(info.name, shape, info.dtype.name, fixed, fixed or manifest.limits.max_batch)


def _classes(manifest: Manifest, outputs: Sequence[TensorInfo]) -> int | None:
    """How many classes the model tells, where its outputs' shapes say so."""
    output, known = manifest.output, {info.name: info.shape for info in outputs}
    shapes = [known.get(name) for name in output.names] if output.names else list(known.values())
    match output:
        case Classification() if shapes and shapes[0] and len(shapes[0]) >= 2:
            return shapes[0][1]
        case Segmentation() if shapes and shapes[0] and len(shapes[0]) == 4:
            classes = shapes[0][1 if output.layout == "NCHW" else 3]
            return None if classes == 1 else classes
        case Detection(format="split") if len(shapes) > 1 and shapes[1] and shapes[1][-1] is not None:
            return shapes[1][-1] - (output.activation == "softmax")
        case Detection(format="yolo" | "yolo-objectness") if shapes and shapes[0] and len(shapes[0]) == 3:
            sides = [side for side in shapes[0][1:] if side is not None]
            return min(sides) - (5 if output.format == "yolo-objectness" else 4) if len(sides) == 2 else None
    return None


def input_shape(manifest: Manifest) -> tuple[int, ...]:
    """The shape of one input, without the batch."""
    match manifest.input:
        case ImageInput() as image:
            channels = 1 if image.channels == "gray" else 3
            return (channels, *image.size) if image.layout == "NCHW" else (*image.size, channels)
        case SeriesInput() as series:
            fields = len(series.fields)
            return (series.window, fields) if series.layout == "NWF" else (fields, series.window)
        case tensor:
            return tensor.shape
