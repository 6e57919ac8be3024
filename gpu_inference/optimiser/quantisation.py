"""Integer arithmetic by onnxruntime's own quantiser: int8 weights and activations.

Dynamic: the ranges of activations are measured at each run. Static: they are measured once, on given data.
Weights take 7 bits: processors without VNNI add two products in 16 bits, which overflow with 8.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto

from gpu_inference.errors import ModelError
from gpu_inference.graph.exporter import checked

if TYPE_CHECKING:
    from gpu_inference.graph.ir import Array


def quantise_dynamic(model: ModelProto) -> ModelProto:
    """Convolutions and products in integers, ranges measured at each run.

    Raises:
        ModelError: onnxruntime's quantiser can't.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # onnxruntime's ConvInteger takes unsigned weights only
    return _quantised(
        model, lambda source, target: quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
    )


def quantise_static(model: ModelProto, pieces: Sequence[dict[str, Array]]) -> ModelProto:
    """The whole model in integers, ranges measured on `pieces`; weights have a scale for each channel.

    Args:
        model: in float32.
        pieces: the inputs of some runs.

    Raises:
        ModelError: onnxruntime's quantiser can't.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._left = iter(pieces)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._left, None)

    return _quantised(
        model,
        lambda source, target: quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        ),
    )


def _quantised(model: ModelProto, run: Callable[[Any, str], None]) -> ModelProto:
    # tensors without a known type stay float
    typed = onnx.shape_inference.infer_shapes(model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantised.onnx"
        try:
            run(typed, str(target))
            result = onnx.load_model(target)
        except Exception as error:
            raise ModelError(
                f"onnxruntime's quantiser failed ({error}): take int8, which quantises weights only"
            ) from error
    result.graph.ClearField("value_info")
    return checked(result)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises passes that were run already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
