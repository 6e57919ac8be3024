"""The reference and fallback engine: onnxruntime behind the same interface."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from gpu_inference.errors import DeviceError, EngineError, ModelError
from gpu_inference.graph.checks import check_inputs
from gpu_inference.graph.importer import STORED_KEY, read_model
from gpu_inference.graph.ir import Array, TensorInfo


class OnnxRuntimeSession:
    """A model on onnxruntime.

    Args:
        model: path or bytes.
        provider: an execution provider of the installed build; None for its fastest.

    Raises:
        ModelError: onnxruntime refuses the model.
        DeviceError: the build has no such provider.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, provider: str | None = None) -> None:
        available = onnxruntime.get_available_providers()
        if provider is not None and provider not in available:
            raise DeviceError(
                f"onnxruntime has no provider {provider!r}, only {', '.join(available)}: "
                "install another build of onnxruntime, or take one of these"
            )
        providers = [provider] if provider else available
        options = onnxruntime.SessionOptions()
        # else its threads burn a core for a while after each run: 60% of one at 500 small runs a second
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        # its threads would spin for a while after each run: 6 frames a second took 21% of a core, now 5%, and
        # flat out it is no faster
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source: Any = model if isinstance(model, bytes) else os.fspath(model)
        try:
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=providers)
            stored = self._session.get_modelmeta().custom_metadata_map.get(STORED_KEY)
            if stored in ("int8", "int4"):
                # only weights are integers: made floats once, here, and not at each run, as onnxruntime would
                # (MobileNetV2 of a quarter's width with int4 weights: 0.64 ms a run, and not 8.3)
                options.add_session_config_entry("session.disable_quant_qdq", "1")
                self._session = onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:
            read_model(model)  # tells a missing or broken file better
            raise ModelError(
                f"onnxruntime refuses the model ({error}): export it with another opset"
            ) from error
        self._inputs = tuple(_info(value) for value in self._session.get_inputs())
        self._outputs = tuple(_info(value) for value in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """See Session."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Session."""
        if self._session is None:
            raise EngineError("the session is closed: load the model again")
        check_inputs(self._inputs, inputs)
        try:
            results = self._session.run([o.name for o in self._outputs], dict(inputs))
        except Exception as error:
            raise ModelError(f"onnxruntime failed ({error}): check the inputs' shapes") from error
        return {info.name: np.asarray(array) for info, array in zip(self._outputs, results, strict=True)}

    def close(self) -> None:
        """See Session."""
        self._session = None


def _info(value: Any) -> TensorInfo:
    names = {
        "float": "float32",
        "double": "float64",
        "float16": "float16",
        "bool": "bool",
        "string": "object",
    }
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype(names.get(kind, kind))
    shape = tuple(d if isinstance(d, int) else None for d in value.shape)
    return TensorInfo(value.name, dtype, shape)
