"""Times every candidate of every convolution of a network, alone, and the chosen ones in a row.

    python -m benchmarks.engine_kernels --network resnet50 mobilenet_v2 --batch 1 8 32 --json sweep.json

Device time by OpenCL events (median), from the first launch's start to the last one's end. `model` is what
the cost model would have chosen without tuning, `tuned` the fastest candidate; `in a row` runs the tuned
plans of all layers one after the other, each with its own weights, as a network would.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.engine_networks import NETWORKS, Layer
from gpu_inference.opencl.conv import candidates, default_choice, plan_conv
from gpu_inference.opencl.conv_shape import ConvChoice, ConvPlan, round_up
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.gemm import GemmChoice, GemmShape, plan_gemm
from gpu_inference.opencl.gemm import candidates as gemm_candidates
from gpu_inference.opencl.gemm import default_choice as gemm_default
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.timing import LaunchTimer

GEMMS = (
    GemmShape(4096, 4096, 4096, constant_b=True),
    GemmShape(1024, 1024, 1024, constant_b=True),
    GemmShape(197, 3072, 768, constant_b=True),
    GemmShape(1, 1000, 2048, constant_b=True, trans_b=True),
    GemmShape(8, 1000, 2048, constant_b=True, trans_b=True),
    GemmShape(32, 1000, 2048, constant_b=True, trans_b=True),
    GemmShape(1, 1000, 1280, constant_b=True, trans_b=True),
)


def open_timer(index: int = 0) -> LaunchTimer:
    """The first GPU, or what there is."""
    import pyopencl as cl

    devices = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    devices.sort(key=lambda device: not device.type & cl.device_type.GPU)
    return LaunchTimer(cl.Context([devices[index]]))


def conv_launches(plan: ConvPlan, prefix: str = "") -> list[Launch]:
    e = plan.epilogue
    return plan.launches(
        Buf("x"),
        Buf(prefix + "w"),
        Buf("bias") if e.bias else None,
        Buf("res") if e.residual != "none" else None,
        Buf("y"),
        Buf("ws") if plan.workspace_bytes else None,
    )


def prebuild(kernels: Iterable[Kernel], workers: int) -> None:
    """Fills the driver's compile cache from several processes."""
    todo = list(dict.fromkeys(kernels))
    if workers > 1 and todo:
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers) as pool:
            pool.map(_build_some, [todo[i::workers] for i in range(workers)], chunksize=1)


def _build_some(kernels: list[Kernel]) -> int:
    timer = open_timer()
    for kernel in kernels:
        timer.build(kernel)
    return len(kernels)


class Bench:
    """Buffers large enough for every layer, and timing of plans in them."""

    def __init__(self, timer: LaunchTimer, plans: Sequence[ConvPlan]) -> None:
        self.timer = timer
        rng = np.random.default_rng(0)
        x = max(p.shape.n * p.shape.h * p.shape.w * p.shape.c4 for p in plans)
        y = max(p.shape.m * p.shape.o4 for p in plans)
        w = max(self._weight_floats(p) for p in plans)
        self.buffers: dict[str, Any] = {
            "x": timer.upload(rng.standard_normal(x, np.float32)),
            "res": timer.upload(rng.standard_normal(y, np.float32)),
            "y": timer.empty(4 * y),
            "bias": timer.upload(rng.standard_normal(4096, np.float32)),
            "w": timer.upload(rng.standard_normal(w, np.float32)),
            "ws": timer.empty(max(p.workspace_bytes for p in plans)),
        }

    @staticmethod
    def _weight_floats(plan: ConvPlan) -> int:
        s = plan.shape
        taps = {"winograd2": 16, "winograd4": 36}.get(plan.choice.algorithm, s.kh * s.kw)
        return taps * round_up(s.cg, 64) * round_up(s.o, 64) + 4096

    def time(self, plan: ConvPlan, repeats: int) -> float:
        return self.timer.time_us(conv_launches(plan), self.buffers, repeats=repeats)

    def row(self, plans: Sequence[ConvPlan], repeats: int) -> tuple[float, float, int]:
        """(span, sum of kernels, launches) of all plans one after the other, µs."""
        launches: list[Launch] = []
        for i, plan in enumerate(plans):
            key = f"{i}:w"
            self.buffers[key] = self.timer.upload(np.ones(self._weight_floats(plan), np.float32))
            launches += conv_launches(plan, f"{i}:")
        bound = self.timer.bind(launches, self.buffers)
        rounds = [self.timer.enqueue(bound) for _ in range(repeats + 2)][2:]
        rounds[-1][-1].wait()
        span = statistics.median(1e-3 * (r[-1].profile.end - r[0].profile.start) for r in rounds)
        busy = statistics.median(sum(1e-3 * (e.profile.end - e.profile.start) for e in r) for r in rounds)
        for i in range(len(plans)):
            del self.buffers[f"{i}:w"]
        return span, busy, len(launches)


def sweep_network(timer: LaunchTimer, name: str, batch: int, repeats: int, verbose: bool) -> dict[str, Any]:
    layers: list[Layer] = NETWORKS[name](batch)
    unique = list(dict.fromkeys((layer.shape, layer.epilogue) for layer in layers))
    device = timer.traits
    plans = {
        key: [plan_conv(*key, device, choice) for choice in candidates(key[0], device)] for key in unique
    }
    bench = Bench(timer, [plan for some in plans.values() for plan in some])
    tuned: dict[Any, ConvChoice] = {}
    times: dict[Any, dict[str, float]] = {}
    for key, some in plans.items():
        times[key] = {plan.choice.label: bench.time(plan, repeats) for plan in some}
        best = min(some, key=lambda plan: times[key][plan.choice.label])
        tuned[key] = best.choice
    model = {key: default_choice(key[0], device) for key in unique}
    total = {"tuned": 0.0, "model": 0.0}
    rows = []
    for layer in layers:
        key = (layer.shape, layer.epilogue)
        best, chosen = times[key][tuned[key].label], times[key][model[key].label]
        total["tuned"] += best
        total["model"] += chosen
        rows.append((layer.name, best, chosen, tuned[key].label, model[key].label))
    if verbose:
        for layer, (label, best, chosen, tuned_label, model_label) in zip(layers, rows, strict=True):
            tflops = layer.shape.flops / best / 1e6
            print(
                f"  {label:12s} {best:8.1f} us {tflops:5.1f} TF  {tuned_label:32s}"
                f" model {chosen:8.1f} {model_label}"
            )
    span, busy, launches = bench.row([plan_conv(*key, device, tuned[key]) for key in _keys(layers)], repeats)
    span_model, _, _ = bench.row([plan_conv(*key, device, model[key]) for key in _keys(layers)], repeats)
    print(
        f"{name} b{batch}: tuned {total['tuned'] / 1e3:.3f} ms, model {total['model'] / 1e3:.3f} ms "
        f"(+{100 * (total['model'] / total['tuned'] - 1):.0f}%); in a row {span / 1e3:.3f} ms "
        f"(kernels {busy / 1e3:.3f}, {launches} launches), model's {span_model / 1e3:.3f} ms",
        flush=True,
    )
    return {
        "network": name,
        "batch": batch,
        "row_us": span,
        "row_model_us": span_model,
        "layers": [
            {
                "name": layer.name,
                "shape": _fields(layer.shape),
                "times_us": times[layer.shape, layer.epilogue],
            }
            for layer in layers
        ],
    }


def _keys(layers: Sequence[Layer]) -> list[tuple[Any, Epilogue]]:
    return [(layer.shape, layer.epilogue) for layer in layers]


def _fields(shape: Any) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in shape.__dataclass_fields__}


def sweep_gemm(timer: LaunchTimer, repeats: int) -> list[dict[str, Any]]:
    out = []
    rng = np.random.default_rng(0)
    for shape in GEMMS:
        epilogue = Epilogue(bias=True)
        plans = [plan_gemm(shape, epilogue, timer.traits, c) for c in gemm_candidates(shape, timer.traits)]
        floats = round_up(shape.n, 4) * round_up(shape.k, 4)
        buffers = {
            "a": timer.upload(rng.standard_normal(shape.m * shape.k, np.float32)),
            "b": timer.upload(rng.standard_normal(floats, np.float32)),
            "bias": timer.upload(rng.standard_normal(shape.n, np.float32)),
            "c": timer.empty(4 * shape.m * shape.n),
            "ws": timer.empty(max(plan.workspace_bytes for plan in plans)),
        }
        times = {}
        for plan in plans:
            launches = plan.launches(Buf("a"), Buf("b"), Buf("bias"), None, Buf("c"), Buf("ws"))
            times[plan.choice.label] = timer.time_us(launches, buffers, repeats=repeats)
        order = sorted(times, key=times.__getitem__)
        chosen = gemm_default(shape, timer.traits).label
        text = ", ".join(f"{label} {shape.flops / times[label] / 1e6:.1f} TF" for label in order[:4])
        print(
            f"gemm {shape.m}x{shape.n}x{shape.k}: {times[order[0]]:.1f} us; {text}; "
            f"model {times[chosen]:.1f} us {chosen}",
            flush=True,
        )
        out.append({"shape": _fields(shape), "times_us": times})
    return out


def compare_uniform(timer: LaunchTimer, name: str, batch: int, repeats: int) -> None:
    """Each 1x1 layer's best kernel with wave-uniform weights beside its best tiled one, in turn, µs."""
    layers = [layer for layer in NETWORKS[name](batch) if layer.shape.pointwise]
    plans = {
        (layer.shape, layer.epilogue): [
            plan_conv(layer.shape, layer.epilogue, timer.traits, choice)
            for choice in candidates(layer.shape, timer.traits)
        ]
        for layer in layers
    }
    bench = Bench(timer, [plan for some in plans.values() for plan in some])
    best: dict[Any, dict[str, tuple[float, str]]] = {}
    for key, some in plans.items():
        best[key] = {}
        for plan in some:
            kind = "uniform" if plan.choice.algorithm == "uniform" else "tile"
            time_us = bench.time(plan, repeats)
            if time_us < best[key].get(kind, (float("inf"), ""))[0]:
                best[key][kind] = time_us, plan.choice.label
    print(f"{name} b{batch}: 1x1 layers, best of each kind")
    wins, total = 0, {"tile": 0.0, "both": 0.0}
    for layer in layers:
        found = best[layer.shape, layer.epilogue]
        tile, uniform = found["tile"], found.get("uniform", (float("inf"), "not offered"))
        wins += uniform[0] < tile[0]
        total["tile"] += tile[0]
        total["both"] += min(tile[0], uniform[0])
        print(f"  {layer.name:12s} tile {tile[0]:8.1f} {tile[1]:28s} uniform {uniform[0]:8.1f} {uniform[1]}")
    print(
        f"  uniform wins {wins} of {len(layers)}: {total['tile']:.0f} µs without, {total['both']:.0f} with",
        flush=True,
    )


def all_kernels(timer: LaunchTimer, networks: Sequence[str], batches: Sequence[int]) -> list[Kernel]:
    kernels = []
    for name in networks:
        for batch in batches:
            for layer in NETWORKS[name](batch):
                for choice in candidates(layer.shape, timer.traits):
                    plan = plan_conv(layer.shape, layer.epilogue, timer.traits, choice)
                    kernels += [launch.kernel for launch in conv_launches(plan)]
    for shape in GEMMS:
        gemm_choices: list[GemmChoice] = gemm_candidates(shape, timer.traits)
        for gemm_choice in gemm_choices:
            gemm_plan = plan_gemm(shape, Epilogue(bias=True), timer.traits, gemm_choice)
            launches = gemm_plan.launches(Buf("a"), Buf("b"), Buf("bias"), None, Buf("c"), Buf("ws"))
            kernels += [launch.kernel for launch in launches]
    return list(dict.fromkeys(kernels))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--gemm", action="store_true", help="also the matrix products")
    parser.add_argument("--uniform", action="store_true", help="only 1x1 layers, uniform beside tiled")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--workers", type=int, default=1, help="processes that compile beforehand")
    parser.add_argument("--json", help="file for every candidate's time")
    parser.add_argument("--quiet", action="store_true", help="no line a layer")
    args = parser.parse_args()
    timer = open_timer()
    print(timer.traits, flush=True)
    start = time.perf_counter()
    kernels = all_kernels(timer, args.network, args.batch)
    if args.workers > 1:
        prebuild(kernels, args.workers)
    for kernel in kernels:
        timer.build(kernel)
    print(f"{len(kernels)} kernels built in {time.perf_counter() - start:.1f} s", flush=True)
    if args.uniform:
        for name in args.network:
            for batch in args.batch:
                compare_uniform(timer, name, batch, args.repeats)
        return
    report: dict[str, Any] = {"device": timer.traits.name, "gemm": [], "networks": []}
    if args.gemm:
        report["gemm"] = sweep_gemm(timer, args.repeats)
    for name in args.network:
        for batch in args.batch:
            result = sweep_network(timer, name, batch, args.repeats, not args.quiet)
            report["networks"].append(result)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
