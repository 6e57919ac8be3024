"""Inputs of requests, prepared for the models that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from agents.pictures import PictureDecoder
from gpu_inference.errors import ModelError
from gpu_inference.tasks.numbers import SeriesPreprocessor, TensorPreprocessor
from gpu_inference.tasks.preprocessing import Preprocessor
from streams.errors import BadRecord, MissingExtra
from streams.frames import Frame
from streams.requests import READINGS, TENSOR, InferenceRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.model_server import AnyPreprocessor, Fitted

_KINDS = {Preprocessor: "a picture", TensorPreprocessor: f"a tensor ({TENSOR})"}


class InputReader:
    """Turns the inputs of requests into what models take. Threads may share it.

    Args:
        max_pixels: of a picture.
    """

    def __init__(self, max_pixels: int) -> None:
        self._decoder: PictureDecoder | None = None
        self._why = ""
        try:
            self._decoder = PictureDecoder(max_pixels)
        except MissingExtra as error:
            self._why = str(error)

    def fit(self, request: InferenceRequest, preprocessors: Sequence[AnyPreprocessor]) -> list[Fitted]:
        """Prepare an input for models of one kind of input.

        Raises:
            BadRecord: it is none that they take.
        """
        payload, first = request.input, preprocessors[0]
        reason = "wrong_input"
        try:
            if payload.content_type == TENSOR and isinstance(first, TensorPreprocessor):
                reason = "bad_tensor"
                dtype = np.dtype(payload.dtype).newbyteorder("<")
                array = np.frombuffer(payload.data, dtype).reshape(payload.shape or ())
                array = array.astype(dtype.newbyteorder("="), copy=False)
                return [
                    (one.fit(array), None) for one in preprocessors if isinstance(one, TensorPreprocessor)
                ]
            if payload.content_type == READINGS and isinstance(first, SeriesPreprocessor):
                reason = "bad_window"
                readings = _readings(payload.data)
                return [
                    (one.fit(readings), None) for one in preprocessors if isinstance(one, SeriesPreprocessor)
                ]
            if payload.content_type not in (TENSOR, READINGS) and isinstance(first, Preprocessor):
                return self._fit_picture(request, preprocessors)
        except ModelError as error:
            raise BadRecord(reason, str(error)) from error
        wanted = _KINDS.get(type(first), f"a list of readings ({READINGS})")
        raise BadRecord("wrong_input", f"{request.model} takes no {payload.content_type}: send {wanted}")

    def _fit_picture(
        self, request: InferenceRequest, preprocessors: Sequence[AnyPreprocessor]
    ) -> list[Fitted]:
        if self._decoder is None:
            raise BadRecord("wrong_input", f"the worker decodes no pictures: {self._why}")
        payload = request.input
        frame = Frame(
            source=request.id,
            ts=request.published,
            published=request.published,
            offset=request.offset,
            content_type=payload.content_type,
            data=payload.data,
            shape=payload.shape,  # type: ignore[arg-type]
        )
        return self._decoder.fit(frame, preprocessors)  # type: ignore[arg-type]


def _readings(data: bytes) -> list[Any]:
    try:
        return msgspec.json.decode(data, type=list[Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRecord("bad_window", f"no JSON list ({error}): send readings, oldest first") from error
