"""What a convolution or matrix product does to its result before storing it (kernels/epilogue.clh)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

ActivationKind = Literal[
    "none", "clip", "leaky_relu", "sigmoid", "silu", "hardswish", "hard_sigmoid", "tanh", "elu"
]
ResidualKind = Literal["none", "before", "after"]

_ACT: Final[dict[ActivationKind, int]] = {
    "none": 0,
    "clip": 1,
    "leaky_relu": 2,
    "sigmoid": 3,
    "silu": 4,
    "hardswish": 5,
    "hard_sigmoid": 6,
    "tanh": 7,
    "elu": 8,
}
_RES: Final[dict[ResidualKind, int]] = {"none": 0, "before": 1, "after": 2}


@dataclass(frozen=True, slots=True)
class Epilogue:
    """Bias, residual and activation, fused into the kernel that makes the result.

    Attributes:
        bias: add one float a channel.
        residual: add a tensor of the output's shape `before` or `after` the activation.
        activation: the function. ReLU is `clip` with (0, inf), ReLU6 `clip` with (0, 6): use `relu()`.
        p0: clip's lower bound; leaky_relu's and elu's slope; hard_sigmoid's factor.
        p1: clip's upper bound; hard_sigmoid's summand.
    """

    bias: bool = False
    residual: ResidualKind = "none"
    activation: ActivationKind = "none"
    p0: float = 0.0
    p1: float = 0.0

    @property
    def defines(self) -> dict[str, int | str]:
        """The -D options that kernels/epilogue.clh reads."""
        return {"BIAS": int(self.bias), "RES": _RES[self.residual], "ACT": _ACT[self.activation]}

    @property
    def parameters(self) -> tuple[np.float32, np.float32]:
        """The last two arguments of every kernel with an epilogue."""
        return np.float32(self.p0), np.float32(self.p1)


def relu(upper: float = math.inf, *, bias: bool = True, residual: ResidualKind = "none") -> Epilogue:
    """The usual epilogue: bias, perhaps a residual, ReLU up to `upper` (6 for ReLU6)."""
    return Epilogue(bias=bias, residual=residual, activation="clip", p0=0.0, p1=upper)


def reference(
    result: NDArray[np.float32],
    epilogue: Epilogue,
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """NumPy oracle: `epilogue` applied to `result` [..., channels]."""
    x = result + (bias if epilogue.bias and bias is not None else np.float32(0.0))
    if epilogue.residual == "before" and residual is not None:
        x = x + residual
    p0, p1 = epilogue.parameters
    match epilogue.activation:
        case "clip":
            x = np.minimum(np.maximum(x, p0), p1)
        case "leaky_relu":
            x = np.where(x >= 0, x, x * p0)
        case "sigmoid":
            x = 1 / (1 + np.exp(-x))
        case "silu":
            x = x / (1 + np.exp(-x))
        case "hardswish":
            x = x * np.clip(x / 6 + 0.5, 0, 1)
        case "hard_sigmoid":
            x = np.clip(x * p0 + p1, 0, 1)
        case "tanh":
            x = np.tanh(x)
        case "elu":
            x = np.where(x >= 0, x, p0 * np.expm1(x))
        case "none":
            pass
    if epilogue.residual == "after" and residual is not None:
        x = x + residual
    return np.asarray(x, dtype=np.float32)
