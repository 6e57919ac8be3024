"""Concatenations of channels are computed in place: no copies, the same results, less memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpu_inference
from gpu_inference.graph.importer import import_graph, read_model
from gpu_inference.opencl import plan
from gpu_inference.opencl.placement import Place, concatenation_places
from gpu_inference.opencl.session import OpenCLSession
from gpu_inference.standard_models import Network
from tests.gpu_inference import networks

SIZE = 10


def fire() -> bytes:
    net = Network((1, 8, SIZE, SIZE))
    x, c = "x", 8
    for squeeze, expand in ((4, 8), (8, 12)):
        s = net.conv(x, c, squeeze, norm=False)
        left, right = net.conv(s, squeeze, expand, norm=False), net.conv(s, squeeze, expand, 3, norm=False)
        x, c = net.add("Concat", left, right, axis=1), 2 * expand
    return net.model(net.conv(x, c, 4, norm=False))


def dense(nested: bool) -> bytes:
    """Pre-activation layers that each read all before them, in the form of PyTorch or of Keras."""
    net = Network((1, 8, SIZE, SIZE))
    x, c = net.conv("x", 8, 8, norm=False), 8
    parts = [x]
    for _ in range(3):
        h = net.add("Relu", net.add("Mul", x, net.normal(1, c, 1, 1)))
        parts.append(net.conv(net.conv(h, c, 16, norm=False), 16, 4, 3, norm=False, act=None))
        x, c = net.add("Concat", *([x, parts[-1]] if nested else parts), axis=1), c + 4
    x = net.add("AveragePool", net.conv(x, c, 8, norm=False), kernel_shape=[2, 2], strides=[2, 2])
    return net.model(x)


def pyramid() -> bytes:
    """A U-Net's skip connections: what is concatenated is pooled, resized, and read again."""
    net = Network((1, 4, 8, 8))
    skip = net.conv("x", 4, 8, 3)
    deep = net.conv(net.add("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2]), 8, 16, 3)
    up = net.add("Resize", deep, "", net.constant(np.float32([1, 1, 2, 2])), mode="nearest")
    x = net.add("Concat", net.conv(up, 16, 8), skip, axis=1)
    return net.model(net.conv(x, 16, 4, norm=False, act=None), skip)


def mixed() -> bytes:
    """Pooled, elementwise, the model's own, the same one twice: some can be in place, some can't."""
    net = Network((1, 8, SIZE, SIZE))
    a = net.conv("x", 8, 8, norm=False)
    pooled = net.add("MaxPool", a, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    sine = net.add("Sin", net.add("Add", a, pooled))
    b = net.add("Concat", a, pooled, sine, "x", a, axis=1)
    c = net.conv(net.add("Concat", a, net.conv(b, 40, 12), axis=1), 20, 8)
    added = net.add("Add", c, net.conv(a, 8, 8, act=None, norm=False))
    return net.model(net.add("Concat", added, a, axis=1), a)


def inception() -> bytes:
    """Channel counts that are no multiple of 4 aren't in place; those that are, are."""
    net = Network((1, 8, SIZE, SIZE))
    odd = net.add("Concat", net.conv("x", 8, 6), net.conv("x", 8, 10), axis=1)
    even = net.add("Concat", net.conv(odd, 16, 4), net.conv(odd, 16, 8, 3), axis=-3)
    return net.model(net.add("GlobalAveragePool", even))


# name: model, input channels and size, copies that are left, launches that in-place concatenation saves.
# A copy brings each output into its plain layout.
NETWORKS = {
    "fire": (fire(), (8, SIZE, SIZE), 1, 4),
    "dense, nested": (dense(nested=True), (8, SIZE, SIZE), 1, 6),
    "dense, flat": (dense(nested=False), (8, SIZE, SIZE), 1, 9),
    "pyramid": (pyramid(), (4, 8, 8), 2, 2),
    "mixed": (mixed(), (8, SIZE, SIZE), 6, 7),
    "inception": (inception(), (8, SIZE, SIZE), 2, 2),
    "squeezenet": (networks.squeezenet(), (3, 64, 64), 0, 16),
}


def agree(model: bytes, inputs: dict[str, np.ndarray], tolerance: float = 1e-5) -> list[str]:
    """The kernels of one run, which must give what onnxruntime gives."""
    ours, theirs = OpenCLSession(model, fallback=False), gpu_inference.load(model, engine="onnxruntime")
    want = theirs.run(inputs)
    for _ in range(2):
        for name, array in ours.run(inputs).items():
            scale = float(np.abs(want[name]).max())
            np.testing.assert_allclose(array, want[name], atol=tolerance * scale, rtol=0)
    kernels = [launch.kernel for launch in ours.profile(inputs, 1)]
    ours.close()
    theirs.close()
    return kernels


def frames(batch: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).standard_normal((batch, *shape)).astype(np.float32)}


@pytest.mark.parametrize("name", NETWORKS)
def test_in_place_gives_the_same_with_fewer_launches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape, copies, saved = NETWORKS[name]
    kernels = agree(model, frames(2, shape))
    assert kernels.count("strided_copy") == copies
    monkeypatch.setattr(plan, "concatenation_places", lambda graph: {})
    assert len(agree(model, frames(2, shape))) - len(kernels) == saved


def places(model: bytes) -> dict[str, Place]:
    return concatenation_places(import_graph(read_model(model)))


def test_parts_of_a_dense_block_share_the_last_concatenation() -> None:
    for nested in (True, False):
        found = places(dense(nested))
        roots = {place.root for place in found.values()}
        assert len(roots) == 1
        (root,) = roots
        assert sorted((p.offset, p.channels) for p in found.values()) == [
            (0, 8),
            (0, 12),
            (0, 16),
            (0, 20),
            (8, 4),
            (12, 4),
            (16, 4),
        ]
        assert found[root].total == 20


def test_dense_blocks_take_less_memory_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def arena() -> int:
        session = OpenCLSession(dense(nested=False))
        session.run(frames(4, (8, SIZE, SIZE)))
        size = session.report.arena_bytes
        session.close()
        return size

    in_place = arena()
    monkeypatch.setattr(plan, "concatenation_places", lambda graph: {})
    assert in_place < arena()


@st.composite
def graphs(draw: st.DrawFn) -> bytes:
    """A few convolutions, poolings, sums and concatenations of whatever there is."""
    net = Network((1, 4, 5, 6))
    tensors = [("x", 4)]
    for _ in range(draw(st.integers(3, 7))):
        x, c = draw(st.sampled_from(tensors))
        kind = draw(st.sampled_from(["conv", "conv", "pool", "relu", "add", "concat", "concat", "concat"]))
        if kind == "conv":
            o = draw(st.sampled_from([4, 8]))
            tensors.append((net.conv(x, c, o, draw(st.sampled_from([1, 3])), norm=False, act=None), o))
        elif kind == "pool":
            tensors.append((net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c))
        elif kind == "relu":
            tensors.append((net.add("Relu", x), c))
        elif kind == "add":
            same = [name for name, channels in tensors if channels == c]
            tensors.append((net.add("Add", x, draw(st.sampled_from(same))), c))
        else:
            parts = draw(st.lists(st.sampled_from(tensors), min_size=2, max_size=3))
            joined = net.add("Concat", *(name for name, _ in parts), axis=1)
            tensors.append((joined, sum(channels for _, channels in parts)))
    chosen = draw(st.lists(st.sampled_from(tensors[1:]), max_size=2, unique=True))
    last, c = tensors[-1]
    return net.model(net.conv(last, c, 4, norm=False), *(name for name, _ in chosen))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(model=graphs())
def test_random_graphs_of_concatenations_agree_with_onnxruntime(model: bytes) -> None:
    agree(model, frames(2, (4, 5, 6)))
