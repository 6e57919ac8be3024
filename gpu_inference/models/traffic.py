"""Which of several targets a source goes to: by weight, and the same one every time, without any state.

Weighted rendezvous hashing: each target draws a number from the hash of alias, source and target, and the
lowest `-ln(number) / weight` wins (D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit
rates", 1998). When a weight grows, sources only move to that target; when a target goes, only its own move.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

_STEPS: Final = float(1 << 53)


def draw(*names: str) -> float:
    """A number in (0, 1) that depends on the names alone, the same on every machine."""
    text = "\0".join(names).encode("utf-8", "surrogatepass")
    digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return ((digest >> 11) + 0.5) / _STEPS


def choose(salt: str, source: str, targets: Sequence[tuple[str, float]]) -> int:
    """The index of the target for a source.

    Args:
        salt: of the alias: two aliases split their sources independently.
        source: of the input.
        targets: name and weight of each.
    """
    if len(targets) == 1:
        return 0
    ranks = [-math.log(draw(salt, source, name)) / weight for name, weight in targets]
    return ranks.index(min(ranks))
