"""What a client is given, as a request's value and headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from connectors.errors import BadInput
from streams.frames import RAW, content_type_of
from streams.requests import DTYPES, READINGS, TENSOR, Payload

#: A JPEG, PNG or WebP file; a tensor; readings, oldest first, with a number for each field; or a payload.
Input: TypeAlias = bytes | NDArray[Any] | Sequence[Mapping[str, float] | Sequence[float]] | Payload


def payload_of(given: Input) -> Payload:
    """Make the payload of an input.

    Raises:
        BadInput: it is no input.
    """
    if isinstance(given, Payload):
        return given
    if isinstance(given, (bytes, bytearray, memoryview)):
        data = bytes(given)
        kind = content_type_of(data)
        if kind is None:
            raise BadInput(f"{data[:8]!r}... is no JPEG, PNG or WebP file: send one, or an array")
        return Payload(kind, data)
    if isinstance(given, np.ndarray):
        if given.dtype.name not in DTYPES:
            raise BadInput(f"an array of {given.dtype} can't be sent: send {', '.join(DTYPES)}")
        little = given.astype(given.dtype.newbyteorder("<"), copy=False)
        return Payload(TENSOR, little.tobytes(), given.shape, given.dtype.name)
    try:
        return Payload(READINGS, msgspec.json.encode(list(given)))
    except TypeError as error:
        raise BadInput(
            f"{type(given).__name__} is no input ({error}): send bytes, an array or readings"
        ) from error


def raw_picture(pixels: NDArray[np.uint8]) -> Payload:
    """Pixels as a picture, and not as a tensor.

    Args:
        pixels: uint8 [h, w], [h, w, 1] or [h, w, 3] in RGB.

    Raises:
        BadInput: they are something else.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise BadInput(f"{pixels.dtype} {list(pixels.shape)} is no picture: send uint8 [h, w, 3] or [h, w]")
    return Payload(RAW, pixels.tobytes(), pixels.shape)
