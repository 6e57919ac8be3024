"""NumPy references of the kernels: slow, obvious, and what the tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.conv_shape import ConvShape, round_up


def to_nhwc4(x: NDArray[Any]) -> NDArray[Any]:
    """[n, c, h, w] to [n, h, w, c4] with zeros in the padding channels."""
    n, c, h, w = x.shape
    out = np.zeros((n, h, w, round_up(c, 4)), x.dtype)
    out[..., :c] = x.transpose(0, 2, 3, 1)
    return out


def convolution(x: NDArray[Any], weights: NDArray[np.float32], shape: ConvShape) -> NDArray[np.float32]:
    """[n, c, h, w] and [o, c/groups, kh, kw] to [n, oh, ow, o], summed in float64."""
    s = shape
    rows, columns = s.h + s.pt + s.pb, s.w + s.pl + s.pr
    padded = np.zeros((s.n, s.groups, s.cg, max(rows, s.h), max(columns, s.w)))
    padded[..., max(s.pt, 0) : max(s.pt, 0) + s.h, max(s.pl, 0) : max(s.pl, 0) + s.w] = x.reshape(
        s.n, s.groups, s.cg, s.h, s.w
    )
    w = weights.astype(np.float64).reshape(s.groups, s.og, s.cg, s.kh, s.kw)
    out = np.zeros((s.n, s.oh, s.ow, s.groups, s.og))
    for ky in range(s.kh):
        for kx in range(s.kw):
            y0, x0 = ky * s.dh - min(s.pt, 0), kx * s.dw - min(s.pl, 0)
            taps = padded[..., y0 : y0 + (s.oh - 1) * s.sh + 1 : s.sh, x0 : x0 + (s.ow - 1) * s.sw + 1 : s.sw]
            out += np.einsum("ngchw,goc->nhwgo", taps, w[..., ky, kx], optimize=True)
    return out.reshape(s.n, s.oh, s.ow, s.o).astype(np.float32)
