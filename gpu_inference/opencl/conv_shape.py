"""What a convolution is, before anyone decides how to compute it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.tile import Tile
from gpu_inference.opencl.weights import WeightType, weight_bytes

if TYPE_CHECKING:
    from gpu_inference.opencl.launch import Buf, Launch

Algorithm = Literal["tile", "direct", "depthwise", "stem", "uniform", "winograd2", "winograd4"]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def ceil_div(value: int, divisor: int) -> int:
    """`value / divisor`, rounded up."""
    return -(-value // divisor)


@dataclass(frozen=True, slots=True)
class ConvShape:
    """A 2-D convolution of an NHWC tensor (1-D: h = kh = 1), all sizes concrete.

    Attributes:
        n: images.
        h: input rows.
        w: input columns.
        c: input channels, unpadded.
        o: output channels, unpadded.
        kh: filter rows.
        kw: filter columns.
        sh: vertical stride.
        sw: horizontal stride.
        pt: padding above, may be negative (a crop).
        pl: padding on the left.
        pb: padding below.
        pr: padding on the right.
        dh: vertical dilation.
        dw: horizontal dilation.
        groups: divides c and o.
        nchw: the input is plain NCHW instead of NHWC-C4 (only the stem algorithm can read it).
        weights: how the filters are stored on the card.
        halves: input, residual and result are stored as float16.
    """

    n: int
    h: int
    w: int
    c: int
    o: int
    kh: int = 1
    kw: int = 1
    sh: int = 1
    sw: int = 1
    pt: int = 0
    pl: int = 0
    pb: int = 0
    pr: int = 0
    dh: int = 1
    dw: int = 1
    groups: int = 1
    nchw: bool = False
    weights: WeightType = "fp32"
    halves: bool = False

    @property
    def oh(self) -> int:
        """Output rows."""
        return (self.h + self.pt + self.pb - (self.kh - 1) * self.dh - 1) // self.sh + 1

    @property
    def ow(self) -> int:
        """Output columns."""
        return (self.w + self.pl + self.pr - (self.kw - 1) * self.dw - 1) // self.sw + 1

    @property
    def m(self) -> int:
        """Output pixels of all images."""
        return self.n * self.oh * self.ow

    @property
    def c4(self) -> int:
        """Input channels as they lie in memory."""
        return round_up(self.c, 4)

    @property
    def o4(self) -> int:
        """Output channels as they lie in memory."""
        return round_up(self.o, 4)

    @property
    def cg(self) -> int:
        """Input channels of a group."""
        return self.c // self.groups

    @property
    def og(self) -> int:
        """Output channels of a group."""
        return self.o // self.groups

    @property
    def flops(self) -> float:
        """Multiply-adds count two."""
        return 2.0 * self.m * self.o * self.cg * self.kh * self.kw

    @property
    def bytes(self) -> float:
        """Input, weights and output once each."""
        x = self.n * self.h * self.w * (self.c if self.nchw else self.c4)
        filters = self.o * self.cg * self.kh * self.kw
        return self.itemsize * (x + self.m * self.o4) + weight_bytes(self.weights) * filters

    @property
    def itemsize(self) -> float:
        """Bytes of an element of input and result."""
        return 2.0 if self.halves else 4.0

    @property
    def pointwise(self) -> bool:
        """A 1x1 filter that reads each pixel once, in order: rows of x are rows of the product."""
        unpadded = self.pt == self.pl == self.pb == self.pr == 0
        return self.kh == self.kw == self.sh == self.sw == 1 and unpadded

    @property
    def depthwise(self) -> bool:
        """One filter a channel."""
        return self.groups > 1 and self.groups == self.c == self.o


@dataclass(frozen=True, slots=True)
class Pitches:
    """Where the tensors lie when they are slices of channels of wider ones (concat in place).

    A pitch is the floats from one pixel to the next (0: the tensor's own padded channels), an offset the
    floats before the first; both are multiples of 4.
    """

    x: int = 0
    x_offset: int = 0
    y: int = 0
    y_offset: int = 0
    residual: int = 0
    residual_offset: int = 0


@dataclass(frozen=True, slots=True)
class ConvChoice:
    """How to compute a convolution: the algorithm and its parameters.

    Attributes:
        algorithm: which kernel.
        tile: of the tiled product (tile, stem, winograd2, winograd4).
        split: parts of the inner dimension, added by a second kernel (tile, uniform).
        px: pixels of a work-item (direct, depthwise: neighbours; uniform: 64 apart).
        py: rows of pixels of a work-item (depthwise).
        vector: floats a work-item handles at once along channels (direct, depthwise, uniform, Winograd).
    """

    algorithm: Algorithm
    tile: Tile | None = None
    split: int = 1
    px: int = 1
    py: int = 1
    vector: int = 4

    @property
    def label(self) -> str:
        """Short and unique among the candidates of a shape; the tuner's cache stores it."""
        text: str = self.algorithm
        if self.tile is not None:
            text += f" {self.tile.label}"
        if self.split > 1:
            text += f" split{self.split}"
        if self.algorithm in ("direct", "depthwise", "uniform"):
            text += f" {self.py}x{self.px}"
        if self.algorithm not in ("tile", "stem"):
            text += f" v{self.vector}"
        return text


class ConvPlan(Protocol):
    """One convolution, decided: what to pack, what to allocate, what to launch."""

    @property
    def shape(self) -> ConvShape:
        """What is computed."""
        ...

    @property
    def epilogue(self) -> Epilogue:
        """What is fused into it."""
        ...

    @property
    def choice(self) -> ConvChoice:
        """How it is computed."""
        ...

    @property
    def packing(self) -> str:
        """Names the layout that `pack` makes: same name and shape.weights, same packed weights."""
        ...

    @property
    def workspace_bytes(self) -> int:
        """Scratch that the launches need while they run; mostly 0."""
        ...

    def pack(self, weights: NDArray[np.float32]) -> NDArray[Any]:
        """Weights float32 [o, c/groups, kh, kw] as the kernel reads them: weights.store, 1-D."""
        ...

    def launches(
        self,
        x: Buf,
        weights: Buf,
        bias: Buf | None,
        residual: Buf | None,
        y: Buf,
        workspace: Buf | None = None,
        pitches: Pitches | None = None,
    ) -> list[Launch]:
        """The launches in order.

        Args:
            x: float [n, h, w, c4] (plain [n, c, h, w] with shape.nchw); half, as are the residual and y, with
                shape.halves.
            weights: what `pack` made.
            bias: what `pack_bias` made; exactly when epilogue.bias.
            residual: float [n, oh, ow, o4]; exactly when epilogue.residual isn't "none".
            y: float [n, oh, ow, o4]. May be the residual's buffer, must not be x's.
            workspace: at least workspace_bytes; needed when that isn't 0.
            pitches: where x, y and the residual are slices of wider tensors.
        """
        ...


def pack_bias(bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bias [o] padded with zeros to a multiple of 16, for every algorithm."""
    out = np.zeros(round_up(bias.size, 16), np.float32)
    out[: bias.size] = bias.reshape(-1)
    return out
