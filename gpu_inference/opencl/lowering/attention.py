"""Attention and RotaryEmbedding, each one kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.lowering.reductions import element_types
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.lowering.softmax import softmax_launch
from gpu_inference.opencl.strided import strided_copy
from gpu_inference.opencl.value import device_dtype, layout_strides

GROUP: Final = 64
QUERIES: Final = 4  # BQ of kernels/attention.cl
MAX_CHANNELS: Final = 512  # of a head: accumulators live in registers, queries in local memory
MASK, PAST, LENGTHS = 3, 4, 6  # inputs; the past's values are input 5


@dataclass(frozen=True, slots=True)
class Heads:
    """A tensor of heads where it lies.

    Attributes:
        shape: batch, heads, positions, channels.
        strides: of batch, head and position, in elements; channels are contiguous.
    """

    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int]


def _heads(shape: tuple[int, ...], count: int) -> Heads:
    """Of [b, h, l, d], or of [b, l, h * d] with `count` heads."""
    if len(shape) == 4:
        b, h, length, d = shape
        return Heads((b, h, length, d), (h * length * d, length * d, d))
    b, length, width = shape
    d = width // count
    return Heads((b, count, length, d), (length * width, d, width))


def _with_past(builder: Builder, index: int, heads: Heads) -> tuple[Buf, Heads]:
    """Keys (1) or values (2) after those of the past, as the output that presents them where it is wanted."""
    past, output = PAST + index - 1, index
    if not builder.has(past) and not builder.wants(output):
        return builder.buf(index), heads
    b, h, new, d = heads.shape
    old = builder.shape(past)[2] if builder.has(past) else 0
    joined = _heads((b, h, old + new, d), h)
    size = device_dtype(builder.dtype(index)).itemsize
    source, earlier = builder.buf(index), builder.buf(past) if old else None
    if builder.wants(output):
        y = builder.output(output, joined.shape, builder.dtype(index))
    else:
        y = builder.temporary(math.prod(joined.shape) * size)
    target = (*joined.strides, 1)
    if earlier is not None:
        part = (b, h, old, d)
        builder.launch(strided_copy(earlier, y, part, layout_strides(part, "plain"), target, size))
    copy = strided_copy(source, y, heads.shape, (*heads.strides, 1), target, size, 0, old * d)
    builder.launch(copy)
    return y, joined


@lowers("Attention")
def lower_attention(node: Node, builder: Builder) -> None:
    """softmax(q k^T) v with masks, a past, fewer heads of keys, and the scores as an output."""
    dtype = builder.dtype(0)
    if dtype.kind != "f" or any(builder.dtype(i) != dtype for i in (1, 2)):
        raise Unsupported(f"Attention of {[str(builder.dtype(i)) for i in range(3)]}")
    q = _heads(builder.shape(0), int(builder.attr("q_num_heads", 0)))
    kv_heads = int(builder.attr("kv_num_heads", 0))
    k, v = _heads(builder.shape(1), kv_heads), _heads(builder.shape(2), kv_heads)
    (b, h, queries, d), dv = q.shape, v.shape[3]
    if max(d, dv) > MAX_CHANNELS or h % k.shape[1]:
        raise Unsupported(f"Attention of {h} and {k.shape[1]} heads of {d} and {dv} channels")
    kind, mask_strides, mask_keys = _mask(builder, (b, h, queries))
    past = builder.shape(PAST)[2] if builder.has(PAST) else 0
    source = builder.buf(0)
    keys_buf, k = _with_past(builder, 1, k)
    values_buf, v = _with_past(builder, 2, v)
    keys = k.shape[2]
    mask = builder.buf(MASK) if kind else source
    lengths = builder.buf(LENGTHS) if builder.has(LENGTHS) else source
    wide = len(builder.shape(0)) == 4
    result = (b, h, queries, dv) if wide else (b, queries, h * dv)
    y = builder.output(0, result, dtype)
    mode = int(builder.attr("qk_matmul_output_mode", 0)) if builder.wants(3) else -1
    scores = builder.output(3, (b, h, queries, keys), dtype) if mode >= 0 else y
    storage = element_types(dtype)[0]
    cap = float(builder.attr("softcap", 0.0))
    defines: dict[str, int | str] = {
        "CAP": int(cap > 0.0),
        "CAUSAL": int(bool(builder.attr("is_causal", 0))),
        "DMAX": 1 << max(d - 1, 31).bit_length(),
        "HALF": int(storage == "half"),
        "LENGTHS": int(builder.has(LENGTHS)),
        "MASK": kind,
        "SCORES": min(mode, 2) + 1,
        "STEPS": -(-dv // GROUP),
        "T": storage,
        "TM": "uchar" if kind == 1 else storage,
    }
    numbers = [queries, keys, d, dv, h, h // k.shape[1], past, mask_keys, *q.strides, *k.strides]
    numbers += [*v.strides, *_heads(result, h).strides, *mask_strides]
    scale = float(builder.attr("scale", 1.0 / math.sqrt(d)))
    builder.launch(
        Launch(
            kernel=Kernel("attention.cl", "attention", tuple(sorted(defines.items()))),
            global_size=(-(-queries // QUERIES) * GROUP, b * h),
            local_size=(GROUP, 1),
            args=(
                *(source, keys_buf, values_buf, mask, lengths, y, scores),
                *map(np.int32, numbers),
                np.float32(scale),
                np.float32(cap),
            ),
            flops=2.0 * b * h * queries * keys * (d + dv),
            bytes=float(dtype.itemsize * (math.prod(q.shape) + math.prod(k.shape) + math.prod(v.shape))),
        )
    )
    if mode == 3:
        builder.launch(softmax_launch("SOFTMAX", scores, scores, b * h * queries, keys, 1, dtype))


def _mask(builder: Builder, shape: tuple[int, int, int]) -> tuple[int, tuple[int, int, int], int]:
    """Kind of the mask (0 none, 1 bool, 2 added), strides of batch, head and query, and its keys."""
    if not builder.has(MASK):
        return 0, (0, 0, 0), 0
    dtype, given = builder.dtype(MASK), builder.shape(MASK)
    if dtype.kind != "b" and dtype != builder.dtype(0):
        raise Unsupported(f"Attention of {builder.dtype(0)} with a mask of {dtype}")
    full = (1,) * (4 - len(given)) + given
    if any(have not in (1, want) for have, want in zip(full, shape, strict=False)):
        raise Unsupported(f"Attention with a mask of {given}")
    steps = layout_strides(full, "plain")
    b, h, q = (0 if size == 1 else step for size, step in zip(full[:3], steps, strict=False))
    return (1 if dtype.kind == "b" else 2), (b, h, q), full[3]


@lowers("RotaryEmbedding")
def lower_rotary(node: Node, builder: Builder) -> None:
    """Turns pairs of channels by their position."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    if dtype.kind != "f" or any(builder.dtype(i) != dtype for i in (1, 2)):
        raise Unsupported(f"RotaryEmbedding of {[str(builder.dtype(i)) for i in range(3)]}")
    heads = _heads(shape, int(builder.attr("num_heads", 0)) or 1)
    _, _, length, d = heads.shape
    turn = int(builder.attr("rotary_embedding_dim", 0)) or d
    storage = element_types(dtype)[0]
    x, cosines, sines = builder.buf(0), builder.buf(1), builder.buf(2)
    positions = builder.buf(3) if builder.has(3) else cosines
    y = builder.output(0, shape, dtype)
    total = math.prod(shape)
    defines: dict[str, int | str] = {
        "HALF": int(storage == "half"),
        "INTERLEAVED": int(bool(builder.attr("interleaved", 0))),
        "POSITIONS": int(builder.has(3)),
        "T": storage,
    }
    numbers = (total, length, heads.strides[2], heads.strides[0], d, turn)
    builder.launch(
        Launch(
            kernel=Kernel("rotary.cl", "rotary", tuple(sorted(defines.items()))),
            global_size=(-(-total // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=(x, cosines, sines, positions, y, *map(np.int32, numbers)),
            flops=3.0 * total,
            bytes=2.0 * total * dtype.itemsize,
        )
    )
