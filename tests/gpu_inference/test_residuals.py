"""The sum of a residual block overwrites the residual, where nobody else reads that."""

from __future__ import annotations

import numpy as np
import pytest

import gpu_inference
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.session import OpenCLSession
from gpu_inference.standard_models import Network, resnet


def blocks(*, keep: bool, twice: bool = False) -> bytes:
    """Residual blocks; `keep` reads their inputs again at the end, `twice` adds another tensor."""
    net = Network((1, 8, 9, 9))
    x, kept = net.conv("x", 8, 8, norm=False), []
    for _ in range(3):
        kept.append(x)
        h = net.conv(x, 8, 8, 3, norm=False)
        x = net.conv(h, 8, 8, norm=False, residual=h if twice else x)
    for other in kept if keep else ():
        x = net.add("Add", x, net.add("Tanh", other))
    return net.model(net.conv(x, 8, 4, norm=False))


@pytest.mark.parametrize(("keep", "twice"), [(False, False), (True, False), (False, True)])
def test_residual_blocks_agree_with_onnxruntime(keep: bool, twice: bool) -> None:
    model = blocks(keep=keep, twice=twice)
    x = {"x": np.random.default_rng(0).standard_normal((2, 8, 9, 9)).astype(np.float32)}
    ours, theirs = OpenCLSession(model, fallback=False), gpu_inference.load(model, engine="onnxruntime")
    (want,) = theirs.run(x).values()
    for _ in range(2):
        (got,) = ours.run(x).values()
        np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()), rtol=0)
    ours.close()
    theirs.close()


def test_a_resnets_arena_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    def arena() -> int:
        session = OpenCLSession(resnet((3, 4, 6, 3), bottleneck=True, width=16))
        session.run({"x": np.zeros((1, 3, 64, 64), np.float32)})
        size = session.report.arena_bytes
        session.close()
        return size

    over = arena()
    monkeypatch.setattr(Builder, "output_over", lambda *_: None)
    assert over <= 0.8 * arena()
