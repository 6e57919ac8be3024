"""Whole networks side by side on one GPU: `python -m benchmarks.engine`.

Prints milliseconds of ResNet-50 and MobileNetV2 (fp32, random weights, input and output on the card, median
of `--runs` runs) for our OpenCL engine and for whoever of these is installed:

- PyTorch CUDA: TF32 off, cudnn.benchmark, batch norm folded, channels first and last, each as a CUDA graph,
  and torch.compile; the best of them counts.
- tinygrad on OpenCL, with its JIT.

Ours also with the host's copies in and out, and before tuning. Contestants take turns over `--rounds` rounds.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gpu_inference import standard_models
from gpu_inference.opencl.session import OpenCLSession

NETWORKS: dict[str, Callable[[], bytes]] = {
    "ResNet-50": lambda: standard_models.resnet((3, 4, 6, 3), bottleneck=True, size=224),
    "MobileNetV2": lambda: standard_models.mobilenet_v2(size=224),
}

Step = Callable[[], None]
#: What a contestant is: something that enqueues one run, and something that waits.
Contestant = tuple[Step, Step]


def median_ms(step: Step, wait: Step, runs: int) -> float:
    """Median wall time of one run, the queue empty before each."""
    for _ in range(5):
        step()
    wait()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        step()
        wait()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def ours(model: bytes, batch: int, device: str | None) -> tuple[dict[str, Contestant], OpenCLSession, float]:
    """Our engine, tuned, with and without copies; and its untuned time in ms."""
    session = OpenCLSession(model, device, fallback=False)
    x = {"x": np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)}
    session.upload(x)
    untuned = median_ms(session.replay, session.finish, 50)
    session.tune(x)
    session.upload(x)

    def with_copies() -> None:
        session.run(x)

    return (
        {
            "polarstream": (session.replay, session.finish),
            "polarstream, host copies": (with_copies, lambda: None),
        },
        session,
        untuned,
    )


def pytorch(network: str, batch: int, compiled: bool) -> dict[str, Contestant]:
    """PyTorch in its fast forms, by name."""
    import torch
    import torch.fx.experimental.optimization
    import torchvision

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    make = {"ResNet-50": torchvision.models.resnet50, "MobileNetV2": torchvision.models.mobilenet_v2}[network]
    plain = torch.fx.experimental.optimization.fuse(make(weights=None).eval()).cuda()
    found: dict[str, Contestant] = {}
    wait = torch.cuda.synchronize
    for layout in (torch.contiguous_format, torch.channels_last):
        net = copy.deepcopy(plain).to(memory_format=layout)
        x = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=layout)
        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(5):
                    net(x)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                net(x)
        name = "channels last" if layout is torch.channels_last else "channels first"
        # what a graph reads must live as long as it does
        found[f"PyTorch graph, {name}"] = (functools.partial(_replay, graph, net, x), wait)
    if compiled:
        fast = torch.compile(plain, mode="reduce-overhead")

        def run_compiled() -> None:
            with torch.no_grad():
                fast(x)

        run_compiled()
        found["PyTorch compile"] = (run_compiled, wait)
    return found


def _replay(graph: Any, *_alive: Any) -> None:
    graph.replay()


def tinygrad(model: bytes, batch: int) -> dict[str, Contestant]:
    """The model by tinygrad on OpenCL, its JIT warmed up."""
    os.environ["DEV"] = "CL"
    from tinygrad import Device, Tensor, TinyJit
    from tinygrad.nn.onnx import OnnxRunner

    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(model)
        file.flush()
        runner = OnnxRunner(file.name)
        x = Tensor.randn(batch, 3, 224, 224).realize()
        (output, *_) = runner.graph_outputs
        step = TinyJit(lambda x: runner({"x": x})[output].realize())
        for _ in range(4):
            step(x)

    def run_once() -> None:
        step(x)

    return {"tinygrad CL": (run_once, Device[Device.DEFAULT].synchronize)}


def measure(network: str, batch: int, options: argparse.Namespace) -> dict[str, float]:
    """Medians of all contestants on one network, ms."""
    model = NETWORKS[network]()
    contestants, session, untuned = ours(model, batch, options.device)
    if "pytorch" in options.peers and importlib.util.find_spec("torch"):
        contestants |= pytorch(network, batch, "compile" in options.peers)
    if "tinygrad" in options.peers and importlib.util.find_spec("tinygrad"):
        try:
            contestants |= tinygrad(model, batch)
        except Exception as error:  # a peer that cannot run the model is told, not hidden
            print(f"tinygrad can't run {network}: {error}", file=sys.stderr)
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, (step, wait) in contestants.items():
            rounds[name].append(median_ms(step, wait, options.runs))
    session.close()
    return {"polarstream, untuned": untuned} | {n: statistics.median(t) for n, t in rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--device", help="OpenCL device (default: the best)")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument(
        "--peers", default="pytorch,compile,tinygrad", help="compile: torch.compile too (slow)"
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for network in options.networks.split(","):
        for batch in map(int, options.batches.split(",")):
            found = measure(network, batch, options)
            results[f"{network} b{batch}"] = found
            cells = ", ".join(f"{name} {ms:.3f}" for name, ms in found.items())
            print(f"{network} b{batch}: {cells}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
