"""How far two answers to one input say the same."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.tasks.answers import Answer
from gpu_inference.tasks.raw import unpack

#: Boxes of one class that overlap by so much are the same object.
SAME_BOX = 0.5


def agreement(a: Answer, b: Answer, tolerance: float = 0.05) -> tuple[float, float | None]:
    """Compares two answers of one task.

    Args:
        a: the answer that counts.
        b: the other one.
        tolerance: by which part numbers of regressions and series may differ; embeddings may differ by it in
            the cosine.

    Returns:
        From 0 to 1: same class or not; boxes found by both (F1); mean intersection over union of masks; the
        part of values within the tolerance; same direction or not. And by how much b's scores are higher (for
        numbers: their mean relative difference), None where nothing can be compared.
    """
    if "error" in a or "error" in b:
        return float(("error" in a) == ("error" in b)), None
    if "boxes" in a:
        return _boxes(a["boxes"], b.get("boxes", []))
    if "masks" in a:
        return _masks(a["masks"], b.get("masks", [])), None
    if "embedding" in a:
        cosine = _cosine(_vector(a), _vector(b))
        return float(cosine >= 1 - tolerance), cosine - 1
    for kind in ("values", "forecast"):
        if kind in a:
            return _numbers(_flat(a[kind]), _flat(b.get(kind, {})), tolerance)
    if "outputs" in a:
        return _numbers(_unpacked(a["outputs"]), _unpacked(b.get("outputs", {})), tolerance)
    return float(a.get("label") == b.get("label")), float(b.get("score", 0)) - float(a.get("score", 0))


def overlaps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each box of a with each of b: [n, 4], [m, 4] to float64 [n, m]."""
    a, b = a.reshape(-1, 1, 4).astype(np.float64), b.reshape(1, -1, 4).astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.prod(np.maximum(sides, 0), axis=2)
    areas = [np.prod(np.maximum(box[..., 2:] - box[..., :2], 0), axis=2) for box in (a, b)]
    union = areas[0] + areas[1] - common
    found: NDArray[np.float64] = common / np.where(union > 0, union, 1)
    return found


def _boxes(a: list[Answer], b: list[Answer]) -> tuple[float, float | None]:
    if not a and not b:
        return 1.0, None
    if not a or not b:
        return 0.0, None
    grid = overlaps(np.array([one["box"] for one in a]), np.array([one["box"] for one in b]))
    same = np.array([[one["label"] == other["label"] for other in b] for one in a])
    grid = np.where(same, grid, 0)
    shifts = []
    while grid.max() >= SAME_BOX:  # the best pair first
        i, j = np.unravel_index(int(grid.argmax()), grid.shape)
        shifts.append(b[j]["score"] - a[i]["score"])
        grid[i, :] = grid[:, j] = 0
    return 2 * len(shifts) / (len(a) + len(b)), float(np.mean(shifts)) if shifts else None


def _masks(a: list[Answer], b: list[Answer]) -> float:
    first, second = ({one["label"]: one["rle"] for one in masks} for masks in (a, b))
    labels = first.keys() | second.keys()
    if not labels:
        return 1.0
    shared = [
        label for label in first.keys() & second.keys() if first[label]["size"] == second[label]["size"]
    ]
    return sum(_overlap_of_runs(first[one]["counts"], second[one]["counts"]) for one in shared) / len(labels)


def _overlap_of_runs(a: list[int], b: list[int]) -> float:
    edges = [np.cumsum(counts) for counts in (a, b)]
    all_edges = np.union1d(*edges)
    lengths = np.diff(all_edges, prepend=0)
    # the run that ends at or after an edge; odd runs are inside
    inside = [np.searchsorted(one, all_edges, side="left") % 2 == 1 for one in edges]
    union = lengths[inside[0] | inside[1]].sum()
    return float(lengths[inside[0] & inside[1]].sum() / union) if union else 1.0


def _vector(answer: Answer) -> NDArray[np.float64]:
    held = answer.get("embedding", [])
    if isinstance(held, str):
        packed = np.frombuffer(base64.b64decode(held), "<f2" if answer["encoding"] == "float16" else "<f4")
        return packed.astype(np.float64)
    return np.array(held, np.float64)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.shape != b.shape:
        return -1.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float(np.array_equal(a, b))


def _flat(values: dict[str, Any]) -> dict[str, float]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, list):
            flat.update({f"{name}[{i}]": one for i, one in enumerate(value)})
        else:
            flat[name] = value
    return flat


def _unpacked(outputs: dict[str, Any]) -> dict[str, float]:
    return _flat({name: unpack(one).ravel().tolist() for name, one in outputs.items()})


def _numbers(a: dict[str, float], b: dict[str, float], tolerance: float) -> tuple[float, float | None]:
    names = a.keys() | b.keys()
    if not names:
        return 1.0, None
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return 0.0, None
    first, second = (np.array([values[name] for name in shared], np.float64) for values in (a, b))
    scale = np.maximum(np.abs(first), np.abs(second))
    relative = (second - first) / np.where(scale > 0, scale, 1)
    return float((np.abs(relative) <= tolerance).sum()) / len(names), float(relative.mean())
