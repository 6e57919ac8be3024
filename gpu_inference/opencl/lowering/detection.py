"""Regions and boxes: RoiAlign on the device, NonMaxSuppression on the host."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpu_inference.graph.ir import Array, Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.lowering.per_element import element_type, index_type, per_element
from gpu_inference.opencl.lowering.registry import Unsupported, lowers


@lowers("RoiAlign")
def lower_roi_align(node: Node, builder: Builder) -> None:
    """Each region's bins, averaged or their maximum."""
    (_, channels, h, w), dtype = builder.shape(0), builder.dtype(0)
    if dtype.kind != "f" or builder.dtype(1) != dtype:
        raise Unsupported(f"RoiAlign of {dtype} with regions of {builder.dtype(1)}")
    regions = builder.shape(1)[0]
    ph, pw = int(builder.attr("output_height", 1)), int(builder.attr("output_width", 1))
    transformation = builder.attr("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "")
    x, rois, batch = builder.buf(0), builder.buf(1), builder.buf(2)
    y = builder.output(0, (regions, channels, ph, pw), dtype)
    count = regions * channels * ph * pw
    defines = [
        *element_type(dtype, "RoiAlign"),
        index_type(builder.dtype(2)),
        ("HALF_PIXEL", int(transformation == "half_pixel")),
        ("MAXIMUM", int(builder.attr("mode", "avg") == "max")),
    ]
    scale = np.float32(builder.attr("spatial_scale", 1.0))
    numbers = [count, channels, h, w, ph, pw, int(builder.attr("sampling_ratio", 0))]
    per_element(builder, ("roi_align.cl", "roi_align"), count, [x, rois, batch, y, *numbers, scale], defines)


def corners(boxes: NDArray[np.float32], center_point: bool) -> NDArray[np.float32]:
    """Boxes [..., 4] as low and high ends of both axes, whichever way their corners were given."""
    if center_point:  # x, y, width, height
        half = np.abs(boxes[..., 2:]) / 2
        return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32], most: int, overlap: float) -> list[int]:
    """Boxes to keep, best first: none overlaps a better one by more than `overlap` of their union.

    Args:
        boxes: [n, 4], low and high ends.
        scores: [n].
        most: how many at most.
        overlap: intersection over union, 0 to 1.
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        union = areas[best] + areas[order] - common
        order = order[common <= overlap * np.maximum(union, np.finfo(np.float32).tiny)]
    return kept


@lowers("NonMaxSuppression")
def lower_non_max_suppression(node: Node, builder: Builder) -> None:
    """How many boxes remain depends on the data, so that the host suppresses; it costs two copies."""
    center_point = bool(builder.attr("center_point_box", 0))

    def run(arrays: list[Array | None]) -> list[Array]:
        boxes = corners(np.asarray(arrays[0]), center_point)
        scores = np.asarray(arrays[1])
        limits = [None if a is None else np.asarray(a).reshape(-1)[0] for a in [*arrays[2:], *[None] * 3][:3]]
        most = int(limits[0] or 0)
        overlap = float(limits[1] or 0.0)
        chosen: list[tuple[int, int, int]] = []
        for batch, classes in enumerate(scores):
            for number, row in enumerate(classes):
                rows = np.arange(len(row)) if limits[2] is None else np.flatnonzero(row > limits[2])
                kept = suppress(boxes[batch][rows], row[rows], most, overlap)
                chosen += [(batch, number, int(rows[k])) for k in kept]
        return [np.asarray(chosen, np.int64).reshape(-1, 3)]

    if math.prod(builder.shape(0)) == 0:
        builder.set_host(0, np.zeros((0, 3), np.int64))
        return
    builder.host_call(run)
