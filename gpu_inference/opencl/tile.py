"""Tiles of the register-tiled product (kernels/tile.clh) and which a device is offered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpu_inference.opencl.traits import DeviceKind, DeviceTraits


@dataclass(frozen=True, slots=True)
class Tile:
    """A work-group's bm x bn tile in steps of bk; a work-item's tm x tn share of it.

    Attributes:
        ks: slices of the inner dimension within the group.
        unroll: of the loop over rows of a tile; 0 means all of it.
        swizzle: XOR the columns of the A tile instead of padding its rows.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    ks: int = 1
    unroll: int = 0
    swizzle: bool = False

    @property
    def threads(self) -> int:
        """Work-items of the group."""
        return (self.bm // self.tm) * (self.bn // self.tn) * self.ks

    @property
    def local_bytes(self) -> int:
        """Local memory of the group."""
        tiles = 2 * self.bk * (self.bm + self._pad + self.bn) * 4
        return max(tiles, (self.ks - 1) * self.bm * self.bn * 4)

    @property
    def _pad(self) -> int:
        return 0 if self.swizzle else 4

    @property
    def defines(self) -> dict[str, int | str]:
        """The -D options that kernels/tile.clh reads."""
        unroll = self.unroll or self.bk // self.ks
        return {
            "BM": self.bm,
            "BN": self.bn,
            "BK": self.bk,
            "TM": self.tm,
            "TN": self.tn,
            "KS": self.ks,
            "UNROLL": unroll,
            "UNROLL4": max(unroll // 4, 1),
            "SWIZZLE": int(self.swizzle),
            "PAD_A": self._pad,
        }

    @property
    def label(self) -> str:
        """Short and unique, for reports and the tuner's cache."""
        text = f"{self.bm}x{self.bn}x{self.bk}/{self.tm}x{self.tn}"
        text += f"k{self.ks}" if self.ks > 1 else ""
        text += f"u{self.unroll}" if self.unroll else ""
        return text + ("s" if self.swizzle else "")

    def check(self) -> None:
        """Refuses what tile.clh can't do.

        Raises:
            ValueError: naming the rule.
        """
        threads = self.threads
        rules = {
            "tm and tn are multiples of 4": self.tm % 4 == 0 and self.tn % 4 == 0,
            "the tile is whole work-item shares": self.bm % self.tm == 0 and self.bn % self.tn == 0,
            "work-items divide over the float4 of a row": threads % (self.bk // 4) == 0
            and threads % (self.bn // 4) == 0,
            "slices are whole float4 rows": self.bk % (4 * self.ks) == 0,
            "at most 256 work-items": threads <= 256,
            "the swizzle stays in its row": not self.swizzle or (self.bm & (self.bm - 1)) == 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ValueError(f"tile {self.label}: {'; '.join(broken)}")


def _wide(bm: int, bn: int, bk: int, tm: int, tn: int, ks: int = 1) -> Tile:
    return Tile(bm, bn, bk, tm, tn, ks=ks, swizzle=True)


# Fully unrolled, large to small. Of 60 tiles on an H200 these lose 0.4% over ResNet-50 and MobileNetV2 at
# batch 1, 8 and 32 against the best of all for each layer (benchmarks/engine_kernels.py). Small outputs gain
# most from slices (ks): ResNet-50's convolutions at batch 1 took 1.34 ms without, 0.73 ms with them.
_NVIDIA: Final = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 8, 8, 8),
    Tile(128, 64, 16, 8, 8),
    _wide(64, 128, 8, 8, 8),
    _wide(128, 32, 16, 8, 4),
    _wide(64, 64, 16, 8, 4),
    _wide(64, 64, 32, 8, 4, 2),
    _wide(32, 128, 32, 4, 8, 2),
    _wide(64, 32, 32, 4, 4, 2),
    _wide(32, 64, 32, 4, 4),
    _wide(32, 64, 32, 4, 4, 2),
    _wide(32, 32, 32, 4, 4, 2),
    _wide(32, 32, 64, 4, 4, 4),
    _wide(16, 32, 32, 4, 4, 4),
    _wide(16, 32, 64, 4, 4, 8),
    _wide(16, 16, 64, 4, 4, 8),
    _wide(16, 16, 64, 4, 4, 16),
)

# What clang makes of them (VGPRs, waves, share of mads in the loop) is held by tests/gpu_inference/gfx803.
# The small ones interleave 4 waves through the swizzle, which lets 4 rows be unrolled in 51 to 55 VGPRs; the
# 8x8 shares need half the local memory reads a mad and no more than one row unrolled.
_GFX803: Final = (
    Tile(128, 128, 8, 8, 8, unroll=1),
    Tile(128, 64, 8, 8, 8, unroll=1),
    Tile(64, 128, 16, 4, 8, unroll=1),
    Tile(64, 64, 32, 8, 4, ks=2, unroll=4, swizzle=True),
    Tile(64, 64, 16, 4, 4, unroll=4, swizzle=True),
    Tile(64, 32, 16, 4, 4, unroll=4),
    Tile(32, 64, 16, 4, 4, unroll=4),
    Tile(32, 32, 32, 4, 4, ks=4, unroll=4, swizzle=True),
    Tile(16, 32, 64, 4, 4, ks=8, unroll=4),
)

_CPU: Final = (Tile(32, 32, 16, 4, 8, unroll=4),)

_TILES: Final[dict[DeviceKind, tuple[Tile, ...]]] = {
    "nvidia": _NVIDIA,
    "gfx803": _GFX803,
    "other": _GFX803,
    "cpu": _CPU,
}


def tiles_for(device: DeviceTraits) -> tuple[Tile, ...]:
    """The tiles that fit the device's local memory and work-group size, large to small."""
    return tuple(
        tile
        for tile in _TILES[device.kind]
        if tile.local_bytes <= device.local_memory_bytes and tile.threads <= device.max_work_group
    )
