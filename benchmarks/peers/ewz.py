"""The score that every peer computes, one reading at a time, unrolled over the three fields.

A state is a tuple: readings seen, then mean and variance of each field. Tuples and local names are the
fastest form that we found in plain Python: 0.85 µs a reading, against 1.28 for a list changed in place.
"""

from __future__ import annotations

from math import sqrt

ALPHA = 0.02
WARMUP = 30
MIN_SD = 1e-9
THRESHOLD = 6.0
FIELDS = ("temperature", "humidity", "pressure")

State = tuple[int, float, float, float, float, float, float]

#: Of a sensor that was never seen.
NEW: State = (0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def update(state: State, a: float, b: float, c: float) -> tuple[State, float, str]:
    """Scores one reading against the state before it, then takes it into the state.

    Returns:
        The new state, the largest z-score of the three fields, and that field's name.
    """
    n, ma, va, mb, vb, mc, vc = state
    da = a - ma
    db = b - mb
    dc = c - mc
    score = 0.0
    field = "temperature"
    if n >= WARMUP:
        sa = sqrt(va)
        sb = sqrt(vb)
        sc = sqrt(vc)
        score = abs(da) / (sa if sa > MIN_SD else MIN_SD)
        z = abs(db) / (sb if sb > MIN_SD else MIN_SD)
        if z > score:
            score = z
            field = "humidity"
        z = abs(dc) / (sc if sc > MIN_SD else MIN_SD)
        if z > score:
            score = z
            field = "pressure"
    n += 1
    w = 1.0 / n
    if w < ALPHA:
        w = ALPHA
    u = 1.0 - w
    wa = w * da
    wb = w * db
    wc = w * dc
    new = (n, ma + wa, u * (va + wa * da), mb + wb, u * (vb + wb * db), mc + wc, u * (vc + wc * dc))
    return new, score, field
