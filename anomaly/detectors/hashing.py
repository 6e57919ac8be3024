"""Chance without a generator: the n-th number of a seed, whoever asks and whenever.

Detectors that need random choices take them from a counter, so that the same input always gives the same
scores and no generator has to be kept with the state. Source: G. Steele, D. Lea, C. Flood, "Fast splittable
pseudorandom number generators" (OOPSLA 2014), SplitMix64.
"""

from __future__ import annotations

import numpy as np

from anomaly.compiled import compiled

# in numba, an unsigned number and a plain one make a float: so every constant is unsigned
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)


@compiled
def hashed(seed: int, counter: int) -> np.uint64:
    """Return the number that SplitMix64 gives after `counter` others, from a seed; both taken modulo 2^64."""
    z = np.uint64(seed) + (np.uint64(counter) + _ONE) * _STEP
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@compiled
def uniform(seed: int, counter: int) -> float:
    """Return the same as a number in [0, 1)."""
    return float(hashed(seed, counter) >> np.uint64(11)) * 2.0**-53
