"""A model over windows of readings: found to fit, and run in batches of one size.

How a window is laid out is found by the model's shape (`LAYOUTS`). Batches have one fixed size, padded with
zeros: engines keep one plan, and a window's bits don't depend on how many others came with it. That its
place and its neighbours don't matter either is tried when the model is loaded; where they do, windows are run
one by one. Another engine, driver or processor gives other last bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import gpu_inference
from anomaly.errors import BadDetector
from gpu_inference import DeviceError, EngineError
from streams.errors import Fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agents.onnx_detector import OnnxConfig
    from anomaly.detector import FloatArray


@dataclass(frozen=True, slots=True)
class Layout:
    """A shape of a model's input after the batch: how a window of w readings of q fields is laid out."""

    text: str
    together: bool
    #: What becomes of [n, w, q]: its axes in this order, ...
    axes: tuple[int, ...]
    #: ... then without the last axis, of size 1.
    flat: bool = False

    def shape(self, window: int, fields: int) -> tuple[int, ...]:
        """Return the shape without the batch."""
        q = fields if self.together else 1
        shape = tuple((0, window, q)[axis] for axis in self.axes[1:])
        return shape[:-1] if self.flat else shape

    def lay(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 [n, w, q] as the model wants it."""
        laid = windows.transpose(self.axes)
        return np.ascontiguousarray(laid[..., 0] if self.flat else laid)

    def unlay(self, laid: NDArray[Any], window: int, q: int) -> NDArray[Any]:
        """Return an array as the model's input as [n, w, q] again."""
        n = len(laid)
        shaped = laid.reshape(n, *[(0, window, q)[axis] for axis in self.axes[1:]])
        return np.ascontiguousarray(shaped.transpose(np.argsort(self.axes)))


#: In the order in which they are tried.
LAYOUTS: Final = (
    Layout("[n, window]", together=False, axes=(0, 1, 2), flat=True),
    Layout("[n, window, 1]", together=False, axes=(0, 1, 2)),
    Layout("[n, 1, window]", together=False, axes=(0, 2, 1)),
    Layout("[n, window, fields]", together=True, axes=(0, 1, 2)),
    Layout("[n, fields, window]", together=True, axes=(0, 2, 1)),
)


class WindowModel:
    """A loaded model with the layout that fits it.

    Args:
        config: of the detector.
        fields: of the stream.

    Raises:
        BadDetector: the model is missing, broken or of another shape, or there is no such device.

    Attributes:
        fields: values in one step of a window.
        window: readings that it wants.
        layout: how they are laid out.
        together: whether all fields go in together.
        batch: windows in one run.
        sha256: of the file, in hex.
    """

    def __init__(self, config: OnnxConfig, fields: int) -> None:
        path = Path(config.model).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise BadDetector(
                [Fault("model", f"'{path}' can't be read ({why}): name an .onnx file")]
            ) from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._forecasts = config.kind == "forecaster"
        try:
            # by its path: large models keep their weights beside them
            self._session = gpu_inference.load(path, config.engine, config.device)
        except DeviceError as error:
            raise BadDetector([Fault("device", str(error))]) from error
        except EngineError as error:
            raise BadDetector([Fault("model", f"'{path}': {error}")]) from error
        try:
            self._fit(config, fields)
        except BadDetector:
            self._session.close()
            raise

    def _fit(self, config: OnnxConfig, fields: int) -> None:
        def refused(message: str) -> BadDetector:
            return BadDetector([Fault("model", f"'{config.model}' {message}")])

        if len(self._session.inputs) != 1:
            names = ", ".join(info.name for info in self._session.inputs)
            raise refused(f"has the inputs {names}, not one: export it with the window as its only input")
        (info,) = self._session.inputs
        self._input, self._output = info.name, self._session.outputs[0].name
        shape = info.shape
        if info.dtype != np.float32 or shape is None or len(shape) not in (2, 3):
            raise refused(f"wants {info.dtype} {_text(shape)}: export it with float32 {_texts(LAYOUTS)}")
        if config.window is None and None in shape[1:]:
            raise BadDetector(
                [Fault("window", f"is missing: the model takes {_text(shape)}, so say how many")]
            )
        tried = []
        for layout in LAYOUTS:
            if len(layout.shape(1, 1)) != len(shape) - 1:
                continue
            place = 1 + layout.shape(-1, 1).index(-1)
            window = config.window or shape[place]
            assert window is not None
            wanted = layout.shape(window, fields)
            if all(have in (None, want) for have, want in zip(shape[1:], wanted, strict=True)):
                self.layout, self.window = layout, window
                self.together = layout.together
                self.fields = fields if layout.together else 1
                why = self._try(config.batch, shape[0])
                if why is None:
                    return
                tried.append(f"{layout.text}: {why}")
        said = "; ".join(tried) or (
            f"wants {_text(shape)}, but there are {fields} fields"
            + (f" and window = {config.window}" if config.window else "")
            + f": it must be one of {_texts(LAYOUTS)}"
        )
        raise refused(said)

    def _try(self, batch: int, fixed: int | None) -> str | None:
        """Run the model; returns what is wrong with it, and settles how many windows it gets at once.

        Args:
            batch: as wished.
            fixed: as the model has it.
        """
        self.batch = fixed or batch
        rng = np.random.default_rng(0)
        windows = rng.normal(0, 1, (self.batch, self.window, self.fields)).astype(np.float32)
        try:
            first = self._outputs(windows)
        except EngineError as error:
            return str(error)
        wanted = self.fields if self._forecasts else self.window * self.fields
        if first.size != self.batch * wanted or first.shape[:1] != (self.batch,):
            what = "one value a field" if self._forecasts else "as many values as it takes"
            return f"it gives {list(first.shape)} for {self.batch} windows: a model of this kind gives {what}"
        if first.dtype.kind != "f":
            return f"it gives {first.dtype}: export it with float32"
        if self.batch > 1 and not self._places_are_alike(windows, first):
            if fixed is not None:
                return f"its {self.batch} windows change one another's results: export it with a free batch"
            self.batch = 1
        return None

    def _places_are_alike(self, windows: NDArray[np.float32], first: NDArray[Any]) -> bool:
        """Whether a window gives the same bits wherever it is in a batch, and whatever is beside it."""
        others = [np.roll(windows, shift, axis=0) for shift in (1, self.batch // 2)]
        same = [
            np.array_equal(self._outputs(other), np.roll(first, shift, axis=0), equal_nan=True)
            for other, shift in zip(others, (1, self.batch // 2), strict=True)
        ]
        for place in (0, self.batch // 2, self.batch - 1):
            alone = np.zeros_like(windows)
            alone[place] = windows[0]
            same.append(np.array_equal(self._outputs(alone)[place], first[0], equal_nan=True))
        return all(same)

    def _outputs(self, windows: NDArray[np.float32]) -> NDArray[Any]:
        return self._session.run({self._input: self.layout.lay(windows)})[self._output]

    def run(self, windows: NDArray[np.float32]) -> FloatArray:
        """Return what the model makes of windows.

        Args:
            windows: float32 [n, window, fields].

        Returns:
            float64 [n, window, fields], or [n, 1, fields] of a forecaster.
        """
        n, steps = len(windows), 1 if self._forecasts else self.window
        made = np.empty((n, steps, self.fields))
        for begin in range(0, n, self.batch):
            part = windows[begin : begin + self.batch]
            count = len(part)
            if count < self.batch:
                padded = np.zeros((self.batch, *part.shape[1:]), np.float32)
                padded[:count] = part
                part = padded
            found = self._outputs(part)[:count]
            made[begin : begin + count] = (
                found.reshape(count, 1, self.fields)
                if self._forecasts
                else self.layout.unlay(found, self.window, self.fields)
            )
        return made


def _text(shape: tuple[int | None, ...] | None) -> str:
    return (
        "any shape" if shape is None else "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
    )


def _texts(layouts: tuple[Layout, ...]) -> str:
    return ", ".join(layout.text for layout in layouts)
