"""Answers that are given again: to the same bytes, and to a picture of which nothing but its noise is new.

The second kind compares the means of blocks of the decoded picture with those of pictures of the same source
that were answered. A mean over 64 pixels or more hardly feels the sensor's noise, and a small new object
changes the means of its blocks; one block that differs by more than the tolerance is enough to run the model.
The usual perceptual hashes are no good for this: dHash has 64 bits for the whole picture, so that noise turns
bits where the scene is flat, and what is small turns none.

Measured on generated scenes of 320 x 240, as the sensor gives them or through JPEG: with noise of 5 levels
(standard deviation) 99.7% of a still scene's pictures are answered, 98% at JPEG quality 60 and 57% at 30; of
200 scenes with a new object of 8 x 8 pixels that is 30 levels lighter or darker, or one of 24 x 24 and 20
levels, none is. A signature of 640 x 480 takes 0.1 ms.

What it can't see: a change that leaves all block means alone, or one of less than the tolerance over a block.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpu_inference.compiled import compiled
from gpu_inference.tasks.answers import Answer

Model: TypeAlias = tuple[str, str]

#: Blocks along the longer side of a large picture; a block has at least 8 x 8 pixels.
MOST_BLOCKS: Final = 64
LEAST_SIDE: Final = 8
#: Red, green, blue to brightness, blue and red difference (ITU-R BT.601), which JPEG rounds each by itself.
#: In red, green and blue its steps add up, and few pictures of a still scene at quality 60 would be alike.
_YCBCR: Final = np.array(
    [[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]], np.float32
)
#: What Python takes for an entry and its indices, about.
_ENTRY_BYTES: Final = 1000


@dataclass(slots=True)
class _Entry:
    model: Model
    source: str
    digest: bytes | None
    means: NDArray[np.float32] | None
    size: tuple[int, ...]
    answer: Answer
    at_s: float
    size_bytes: int


@dataclass(slots=True)
class CacheCounts:
    """What a cache has done; the hit rate is hits by hits and stored.

    Attributes:
        exact: answers to bytes seen before.
        similar: answers to pictures alike.
        stored: answers that had to be computed.
        evicted: answers dropped for room.
        expired: answers dropped for their age.
    """

    exact: int = 0
    similar: int = 0
    stored: int = 0
    evicted: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class Signature:
    """What is compared of a picture.

    Attributes:
        means: float32 [rows, columns, channels], of blocks; colours as brightness, blue and red difference.
        size: of the picture.
    """

    means: NDArray[np.float32]
    size: tuple[int, ...]


class ResultCache:
    """Keeps answers by model version. Time is an argument: seconds, monotonic.

    Args:
        max_entries: answers kept at most, the longest unused go first.
        max_bytes: what they take at most.
        ttl_s: how old an answer may be.
        tolerance: by how much the mean of a block may differ, in levels of 0 to 255.
        per_source: pictures of a source that a new one is compared with.

    Attributes:
        counts: see CacheCounts.
        size_bytes: what is taken now.
    """

    def __init__(
        self,
        max_entries: int = 10_000,
        max_bytes: int = 64 << 20,
        ttl_s: float = 60.0,
        tolerance: float = 5.0,
        per_source: int = 4,
    ) -> None:
        self._max_entries, self._max_bytes, self._ttl_s = max_entries, max_bytes, ttl_s
        self._tolerance, self._per_source = tolerance, per_source
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._exact: dict[tuple[Model, bytes], int] = {}
        self._similar: dict[tuple[Model, str], list[int]] = {}
        self._next = 0
        self.counts = CacheCounts()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def exact(self, model: Model, digest: bytes, now_s: float) -> Answer | None:
        """The answer to the same bytes, whatever their source; ask before decoding.

        Args:
            model: name and version.
            digest: of `digest_of`.
            now_s: the time.

        Returns:
            The answer, which isn't to be changed; None if there is none.
        """
        number = self._exact.get((model, digest))
        if number is None or not self._fresh(number, now_s):
            return None
        self.counts.exact += 1
        return self._entries[number].answer

    def similar(self, model: Model, source: str, signature: Signature, now_s: float) -> Answer | None:
        """The answer to a picture of the same source that looks the same.

        Args:
            model: name and version.
            source: of the picture.
            signature: of `signature_of`.
            now_s: the time.

        Returns:
            The answer, which isn't to be changed; None if there is none.
        """
        for number in reversed(self._similar.get((model, source), ())):
            entry = self._entries[number]
            if entry.size != signature.size or entry.means is None:
                continue
            if np.abs(entry.means - signature.means).max() > self._tolerance:
                continue
            if not self._fresh(number, now_s):
                return None
            self.counts.similar += 1
            return entry.answer
        return None

    def put(
        self,
        model: Model,
        source: str,
        answer: Answer,
        now_s: float,
        digest: bytes | None = None,
        signature: Signature | None = None,
    ) -> None:
        """Keeps an answer that was computed; one with an error is only counted.

        Args:
            model: name and version.
            source: of the input.
            answer: to it.
            now_s: the time of the answer.
            digest: of its bytes; None: not for `exact`.
            signature: of the picture; None: not for `similar`.
        """
        self.counts.stored += 1
        if "error" in answer:
            return
        if digest is not None and (model, digest) in self._exact:
            self._drop(self._exact[model, digest])
        means = None if signature is None else signature.means
        size = len(msgspec.json.encode(answer)) + (0 if means is None else means.nbytes) + _ENTRY_BYTES
        entry = _Entry(model, source, digest, means, signature.size if signature else (), answer, now_s, size)
        number, self._next = self._next, self._next + 1
        self._entries[number] = entry
        self.size_bytes += size
        if digest is not None:
            self._exact[model, digest] = number
        if means is not None:
            alike = self._similar.setdefault((model, source), [])
            alike.append(number)
            if len(alike) > self._per_source:
                self._drop(alike[0])
        while len(self._entries) > self._max_entries or self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self.counts.evicted += 1

    def forget(self, model: Model) -> None:
        """Drops the answers of a version that was unloaded."""
        for number in [number for number, entry in self._entries.items() if entry.model == model]:
            self._drop(number)

    def _fresh(self, number: int, now_s: float) -> bool:
        """Whether an entry may be used, which makes it the last used; an old one is dropped."""
        if now_s - self._entries[number].at_s > self._ttl_s:
            self._drop(number)
            self.counts.expired += 1
            return False
        self._entries.move_to_end(number)
        return True

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.size_bytes -= entry.size_bytes
        if entry.digest is not None:
            del self._exact[entry.model, entry.digest]
        if entry.means is not None:
            alike = self._similar[entry.model, entry.source]
            alike.remove(number)
            if not alike:
                del self._similar[entry.model, entry.source]


def digest_of(data: bytes | memoryview) -> bytes:
    """BLAKE2b of an input's bytes, 16 bytes long."""
    return hashlib.blake2b(data, digest_size=16).digest()


def signature_of(image: NDArray[np.uint8]) -> Signature:
    """What `similar` compares.

    Args:
        image: uint8 [h, w] or [h, w, c], decoded, in whatever size: all pictures of a source in the same one.
    """
    pixels = np.ascontiguousarray(image.reshape(*image.shape[:2], -1))
    h, w, channels = pixels.shape
    side = max(LEAST_SIDE, -(-max(h, w) // MOST_BLOCKS))
    rows, columns = max(1, h // side), max(1, w // side)
    means = np.empty((rows, columns, channels), np.float32)
    _block_means(pixels.reshape(h, w * channels), channels, side, means)
    if channels == 3:
        means = means @ _YCBCR
    return Signature(means, (h, w, channels))


@compiled
def _block_means(pixels: Any, channels: int, side: int, means: Any) -> None:
    # the last row and column of blocks take what is left over
    rows, columns = means.shape[0], means.shape[1]
    height, width = pixels.shape[0], pixels.shape[1] // channels
    sums = np.empty(pixels.shape[1], np.uint32)
    for row in range(rows):
        top, bottom = row * side, height if row == rows - 1 else (row + 1) * side
        sums[:] = 0
        for y in range(top, bottom):
            line = pixels[y]
            for x in range(np.uint32(pixels.shape[1])):
                sums[x] += line[x]
        for column in range(columns):
            left, right = column * side, width if column == columns - 1 else (column + 1) * side
            for c in range(channels):
                total = np.int64(0)
                for x in range(left, right):
                    total += sums[x * channels + c]
                means[row, column, c] = total / ((bottom - top) * (right - left))
