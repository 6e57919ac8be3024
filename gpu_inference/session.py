"""The one public entry: a model in, a session out, whatever engine runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from gpu_inference.errors import EngineError
from gpu_inference.opencl.weights import ACTIVATION_TYPES, WEIGHT_TYPES, ActivationType, WeightType

if TYPE_CHECKING:
    from gpu_inference.graph.ir import Array, TensorInfo

EngineName: TypeAlias = Literal["opencl", "onnxruntime"]


class Session(Protocol):
    """A loaded model. One thread at a time may use it."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What `run` wants."""
        ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What `run` returns."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the model once.

        Args:
            inputs: an array for each of `inputs`, with its dtype; the batch is the first dimension.

        Returns:
            An array for each of `outputs`.

        Raises:
            ModelError: an input is missing, unknown, or of the wrong dtype or shape.
            DeviceError: the device has too little memory.
        """
        ...

    def close(self) -> None:
        """Gives all memory back; the session can't run afterwards. Closing twice is fine."""
        ...


def load(
    model: str | os.PathLike[str] | bytes,
    engine: EngineName = "opencl",
    device: str | int | None = None,
    fallback: bool = True,
    max_batch: int | None = None,
    weights: WeightType | None = None,
    activations: ActivationType = "fp32",
) -> Session:
    """Loads an ONNX model.

    Args:
        model: path of an .onnx file, or its bytes.
        engine: "opencl" for ours, "onnxruntime" for that one.
        device: OpenCL device by index or by part of its name or vendor, None for the best one; for
            onnxruntime the name of an execution provider.
        fallback: nodes that our engine lacks run on onnxruntime, announced once; False raises instead.
        max_batch: the largest size that free dimensions will have: the memory that our engine takes for it
            is logged, and refused where the device has too little, before any of it is taken. None leaves
            that to the first run.
        weights: how our engine stores the weights of convolutions and products on the card: "fp32", "fp16",
            "int8" or "int4" (one scale for each output channel). It computes in fp32 whatever they are.
            None stores them as the model's metadata says (`polarstream optimize` writes it), or as the model
            has them: fp16, or else fp32. `polarstream accuracy` says what each costs.
        activations: "fp16" stores tensors between convolutions as halves, which takes half their memory and
            traffic; they are computed in fp32 all the same.

    Raises:
        ModelError: the model is broken or asks for what the engine lacks.
        DeviceError: no such device, no driver, or too little memory.
        EngineError: no such engine or type of weights, or one that the engine lacks.

    Example:
        >>> import numpy as np, gpu_inference
        >>> session = gpu_inference.load("model.onnx")  # doctest: +SKIP
        >>> session.run({"x": np.zeros((1, 3, 224, 224), np.float32)})  # doctest: +SKIP
    """
    if weights is not None and weights not in WEIGHT_TYPES:
        raise EngineError(f"no weights of type {weights!r}: take {', '.join(WEIGHT_TYPES)}")
    if activations not in ACTIVATION_TYPES:
        raise EngineError(f"no activations of type {activations!r}: take {', '.join(ACTIVATION_TYPES)}")
    match engine:
        case "opencl":
            from gpu_inference.opencl.session import OpenCLSession

            return OpenCLSession(
                model,
                device,
                fallback=fallback,
                max_batch=max_batch,
                weights=weights,
                activations=activations,
            )
        case "onnxruntime":
            if weights is not None or activations != "fp32":
                raise EngineError(
                    f"onnxruntime can't store weights as {weights} and activations as {activations}: "
                    "take engine='opencl', or leave them out"
                )
            from gpu_inference.onnxruntime_engine import OnnxRuntimeSession

            return OnnxRuntimeSession(model, None if device is None else str(device))
    raise EngineError(f"no engine {engine!r}: take 'opencl' or 'onnxruntime'")
