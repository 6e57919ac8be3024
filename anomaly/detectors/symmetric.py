"""Small symmetric matrices and the F distribution, compiled: numba's own need SciPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from anomaly.compiled import compiled

if TYPE_CHECKING:
    from anomaly.detector import FloatArray

#: Sweeps over all pairs; 8 x 8 needs about 6.
SWEEPS = 30
#: Steps of the continued fraction; about 20 do, unless degrees of freedom are in the thousands.
STEPS = 300


@compiled
def eigen(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the eigenvalues of a symmetric matrix and its eigenvectors, by Jacobi rotations.

    Args:
        matrix: float64 [p, p], finite; left as it is.

    Returns:
        float64 [p], largest first, and float64 [p, p], the vectors in its rows.

    Source: G. Golub, C. Van Loan, "Matrix Computations" (4th edition), section 8.5.
    """
    p = matrix.shape[0]
    a = matrix.copy()
    v = np.eye(p)
    for _ in range(SWEEPS):
        off = 0.0
        for i in range(p):
            for j in range(i + 1, p):
                off += a[i, j] * a[i, j]
        if off < 1e-24:
            break
        for i in range(p):
            for j in range(i + 1, p):
                if abs(a[i, j]) < 1e-300:
                    continue
                theta = (a[j, j] - a[i, i]) / (2.0 * a[i, j])
                t = 1.0 / (abs(theta) + math.sqrt(theta * theta + 1.0))
                if theta < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(t * t + 1.0)
                s = t * c
                for k in range(p):
                    x, y = a[k, i], a[k, j]
                    a[k, i], a[k, j] = c * x - s * y, s * x + c * y
                for k in range(p):
                    x, y = a[i, k], a[j, k]
                    a[i, k], a[j, k] = c * x - s * y, s * x + c * y
                    x, y = v[i, k], v[j, k]
                    v[i, k], v[j, k] = c * x - s * y, s * x + c * y
    values = np.empty(p)
    vectors = np.empty((p, p))
    taken = np.zeros(p)
    for k in range(p):
        best = -1
        for i in range(p):
            if taken[i] == 0.0 and (best < 0 or a[i, i] > a[best, best]):
                best = i
        taken[best] = 1.0
        values[k] = a[best, best]
        vectors[k] = v[best]
    return values, vectors


@compiled
def sweep(matrix: FloatArray, k: int) -> None:
    """Take field k of a correlation or covariance matrix as given, in place.

    Args:
        matrix: float64 [p, p], positive definite where nothing is swept yet. With the fields N swept,
            matrix[N, N] is the inverse of that part, matrix[N, j] the coefficients of the regression of field
            j on them, matrix[j, j] what is left of its variance; with all swept, it is the inverse.
        k: the field.

    Source: J. Goodnight, "A tutorial on the SWEEP operator" (The American Statistician 33, 1979).
    """
    p = matrix.shape[0]
    pivot = matrix[k, k]
    for j in range(p):
        matrix[k, j] /= pivot
    for i in range(p):
        if i != k:
            factor = matrix[i, k]
            for j in range(p):
                matrix[i, j] -= factor * matrix[k, j]
            matrix[i, k] = -factor / pivot
    matrix[k, k] = 1.0 / pivot


@compiled
def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c = 1.0
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    h = d
    for m in range(1, STEPS):
        for half in range(2):
            if half == 0:
                n = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
            else:
                n = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
            d = 1.0 + n * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + n / c
            c = c if abs(c) > tiny else tiny
            h *= d * c
        if abs(d * c - 1.0) < 1e-12:
            break
    return h


@compiled
def f_beyond(f: float, over: float, under: float) -> float:
    """Return P(F >= f) of the F distribution with `over` and `under` degrees of freedom.

    By the continued fraction of the incomplete beta function (NIST Handbook, 8.17.22), whose value is
    I_x(under/2, over/2) at x = under / (under + over f).
    """
    if f <= 0.0:
        return 1.0
    a, b = 0.5 * under, 0.5 * over
    x = under / (under + over * f)
    y = over * f / (under + over * f)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(max(x, 1e-300)) + b * math.log(max(y, 1e-300))
    if x < (a + 1.0) / (a + b + 2.0):
        return min(math.exp(front) * _fraction(a, b, x) / a, 1.0)
    return max(1.0 - math.exp(front) * _fraction(b, a, y) / b, 0.0)
