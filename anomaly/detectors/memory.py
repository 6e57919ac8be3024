"""What a sensor remembers: its last 2,944 values in 6.3 KB, so that a detector can compare with all of them.

Values are kept in blocks of 128. The newest block holds 32-bit numbers; when it is full it is squeezed into
16-bit codes between its smallest and largest value, over the oldest block. The error of a value is at most
1/131,070 of the range of its block, so an outlier blurs its own block alone. A scan first unfolds the blocks
into a line, oldest first; that and a pass over the line are simple loops for the vector unit, about 0.1 us
each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly.compiled import compiled, compiled_any_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Line = NDArray[np.float32]

BLOCK = 128
#: Squeezed blocks.
BLOCKS = 22
#: Values remembered at most.
HORIZON = BLOCK * (BLOCKS + 1)
LEVELS = 65_535.0
#: Values that settle the scale; if they are all alike, the first others do.
SETTLED = 128

#: The scale of a sensor's values, in the field's unit: settled once, so that distances of today and of last
#: month compare. Scaled by a spread that moves, the same distances told less (NAB's development part: 68 for
#: 73).
SCALE: np.dtype[Any] = np.dtype(
    [
        ("seen", "<i4"),  # values it is made of
        ("mean", "<f8"),
        ("spread", "<f8"),  # mean distance from the mean so far
    ]
)
MEMORY: np.dtype[Any] = np.dtype(
    [
        ("seen", "<i4"),  # values ever, up to 2^30
        ("filled", "<i4"),  # values in the newest block
        ("blocks", "<i4"),  # squeezed blocks ever, up to 2^30
        ("scale", SCALE),
        ("low", "<f4", (BLOCKS,)),
        ("step", "<f4", (BLOCKS,)),
        ("newest", "<f4", (BLOCK,)),
        ("codes", "<u2", (BLOCKS, BLOCK)),
    ]
)
#: The raw score where a sensor that never moved moves.
FAR = 1024.0
#: 32-bit numbers end here; squares of differences of values must stay finite too.
LARGEST = 1e18


@compiled
def clip(x: float) -> float:
    """Return x within what the memory can hold."""
    return min(max(x, -LARGEST), LARGEST)


@compiled
def settle(scale: Any, x: float) -> None:
    """Learn the scale from a value, while it is not settled."""
    if scale.seen >= SETTLED and scale.spread > 0.0:
        return
    if scale.seen < 1 << 30:
        scale.seen += 1
    scale.spread += (abs(x - scale.mean) - scale.spread) / scale.seen
    scale.mean += (x - scale.mean) / scale.seen


@compiled
def relative(distance: float, scale: Any) -> float:
    """Return a distance in spreads; FAR where values were all alike so far."""
    if distance <= 0.0:
        return 0.0
    return min(distance / scale.spread, FAR) if scale.spread > 0.0 else FAR


@compiled
def remember(memory: Any, x: float) -> None:
    """Store a value, at most LARGEST in size."""
    settle(memory.scale, x)
    if memory.seen < 1 << 30:
        memory.seen += 1
    newest = memory.newest
    newest[memory.filled] = x
    memory.filled += 1
    if memory.filled < BLOCK:
        return
    low, high = newest[0], newest[0]
    for i in range(BLOCK):
        low, high = min(low, newest[i]), max(high, newest[i])
    at = memory.blocks % BLOCKS
    step = (high - low) / LEVELS
    memory.low[at], memory.step[at] = low, step
    codes = memory.codes[at]
    for i in range(BLOCK):
        codes[i] = int((newest[i] - low) / step + 0.5) if step > 0.0 else 0
    memory.filled = 0
    # keeps the order of blocks and stays small
    memory.blocks = memory.blocks + 1 if memory.blocks < 2 * BLOCKS - 1 else BLOCKS


@compiled_any_order
def unfold(memory: Any, line: Line) -> int:
    """Write the remembered values into `line`, float32 [HORIZON], oldest first; return how many there are."""
    n = 0
    kept = min(memory.blocks, BLOCKS)
    for b in range(memory.blocks - kept, memory.blocks):
        at = b % BLOCKS
        low, step = memory.low[at], memory.step[at]
        codes = memory.codes[at]
        for i in range(BLOCK):
            line[n + i] = low + step * np.float32(codes[i])
        n += BLOCK
    newest = memory.newest
    filled = memory.filled
    for i in range(filled):
        line[n + i] = newest[i]
    return int(n + filled)


@compiled_any_order
def smallest(work: Line, n: int) -> float:
    """Return the smallest of the first n numbers, n at least 1, which it overwrites.

    Halves are folded onto each other, which vector units can do. A running minimum they can't: it took 2.8 us
    for 2,944 numbers, this 0.5 with making the numbers.
    """
    while n > 1:
        half = (n + 1) // 2
        for i in range(n - half):
            other = work[i + half]
            work[i] = other if other < work[i] else work[i]
        n = half
    return float(work[0])
