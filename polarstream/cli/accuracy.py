"""`accuracy`: what weights of a smaller type cost a model."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from polarstream.cli.gpu import (
    ActivationsOption,
    BatchOption,
    DeviceOption,
    ModelArgument,
    activation_type,
    engine_errors,
    require_file,
    weight_type,
)
from polarstream.cli.options import JsonOption, examples
from polarstream.cli.output import print_json, print_table, progress_bar, size
from streams.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from gpu_inference.accuracy import WeightAccuracy


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "polarstream accuracy model.onnx",
            "polarstream accuracy model.onnx --inputs frames.npz --weights int8 --json",
        )
    )(accuracy)


def accuracy(
    model: ModelArgument,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE", help="fp16, int8 or int4; may be given more than once (default: all of them)."
        ),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz file with an array for each input (default: random ones).")
    ] = None,
    activations: ActivationsOption = "fp32",
    batch: BatchOption = 8,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Compare a model's outputs, bytes and time with its weights stored as fp32, fp16, int8 and int4.

    Everything is computed in fp32. Errors are relative to the largest, and to the mean, magnitude of an
    output with fp32 weights. Give real inputs: random ones say little of a trained model.
    """
    require_file(model)
    from gpu_inference.accuracy import compare_weights
    from gpu_inference.opencl.forecast import inputs_of
    from gpu_inference.opencl.weights import WEIGHT_TYPES
    from polarstream.gpu_report import example_inputs

    chosen = [weight_type(kind) for kind in weights or ()]
    kinds = [kind for kind in WEIGHT_TYPES if not chosen or kind in chosen]
    between = activation_type(activations)
    given = None if inputs is None else arrays_of(inputs)
    with engine_errors(), progress_bar("comparing", show=not json) as move:
        arrays = given if given is not None else example_inputs(inputs_of(model), batch)
        found = compare_weights(model, arrays, kinds, device, activations=between, progress=move)
    if json:
        print_json(
            {"model": str(model), "inputs": str(inputs or "random"), "types": [_document(f) for f in found]}
        )
        return
    print_table(
        ("WEIGHTS", "BETWEEN", "BYTES", "RATIO", "ARENA", "LARGEST ERROR", "MEAN ERROR", "AGREEMENT", "ms"),
        [
            (
                one.weights,
                one.activations,
                size(one.weight_bytes),
                f"{one.ratio:.3f}",
                size(one.arena_bytes),
                _number(one.max_error, ".1e"),
                _number(one.mean_error, ".1e"),
                _number(one.agreement, ".1%"),
                f"{one.time_ms:.2f}",
            )
            for one in found
        ],
    )
    if inputs is None:
        print("random inputs: give real ones with --inputs to know what a trained model loses")


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _document(found: WeightAccuracy) -> dict[str, Any]:
    worst = {name: getattr(found, name) for name in ("max_error", "mean_error", "agreement")}
    return {**msgspec.to_builtins(found), **worst}


def arrays_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file by name."""
    import numpy as np

    if not path.is_file():
        raise UsageError(f"there is no file '{path}': name an .npz file, as numpy.savez writes it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise UsageError(
            f"'{path}' is no .npz file of numbers ({error}): write it with numpy.savez"
        ) from error
