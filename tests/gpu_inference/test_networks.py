"""Whole networks on our engine agree with onnxruntime, whatever the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpu_inference
from gpu_inference import standard_models
from gpu_inference.opencl.session import OpenCLSession
from tests.gpu_inference import networks

NETWORKS = {
    "resnet18": (lambda: standard_models.resnet(width=16), (3, 64, 64)),
    "resnet50": (lambda: standard_models.resnet((3, 4, 6, 3), bottleneck=True, width=8), (3, 64, 64)),
    "mobilenet_v2": (lambda: standard_models.mobilenet_v2(width=0.5), (3, 64, 64)),
    "squeezenet": (networks.squeezenet, (3, 64, 64)),
    "unet": (networks.unet, (3, 48, 48)),
    "vit_block": (networks.vit_block, (50, 96)),
    "lstm_autoencoder": (networks.lstm_autoencoder, (12, 3)),
    "detector": (networks.detector, (3, 64, 64)),
}


def _agree(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        scale = max(float(np.abs(array).max(initial=0)), 1e-6)
        assert float(np.abs(got[name].astype(np.float64) - array).max(initial=0)) <= 1e-3 * scale


@pytest.mark.parametrize("name", NETWORKS)
def test_network_agrees_with_onnxruntime_for_every_batch(name: str) -> None:
    make, shape = NETWORKS[name]
    model = make()
    rng = np.random.default_rng(5)
    ours, theirs = gpu_inference.load(model), gpu_inference.load(model, engine="onnxruntime")
    # a larger batch moves buffers; the first plan must survive that
    for batch in (1, 3, 1):
        inputs = {"x": rng.standard_normal((batch, *shape)).astype(np.float32)}
        _agree(ours.run(inputs), theirs.run(inputs))
    ours.close()
    theirs.close()


def _launches(model: bytes, shape: tuple[int, ...]) -> int:
    session = OpenCLSession(model)
    session.run({"x": np.zeros((1, *shape), np.float32)})
    launches = session.report.launches
    session.close()
    return launches


def test_every_convolution_of_a_resnet_takes_in_norm_residual_and_activation() -> None:
    convolutions = 20  # of ResNet-18, with the three on shortcuts
    assert _launches(standard_models.resnet(width=16), (3, 64, 64)) <= convolutions + 7


def test_repeated_runs_give_the_same_bits() -> None:
    session = gpu_inference.load(networks.unet())
    x = np.random.default_rng(0).standard_normal((1, 3, 48, 48)).astype(np.float32)
    results = [next(iter(session.run({"x": x}).values())).tobytes() for _ in range(3)]
    session.close()
    assert all(a == b for a, b in itertools.pairwise(results))
