"""Dynamic batching against batch 1, and two devices against one: `python -m benchmarks.batching`.

One model on a DevicePool. Frames lie in the staging batch already, as decoders leave them: neither decoding
nor Kafka is measured, copies to and from the card are.

- `batching`: Poisson arrivals through MicroBatcher. The highest rate whose p95 stays within a limit
  (`--p95-ms`, or 8 times what batch 1 takes), for batch 1 and for dynamic batches, each found by bisection,
  then run again in turn, and lowered until it holds. Latency counts from a frame's place in the schedule to
  its answer, so that a queue that builds up is seen. The bare loop (batch 1 back to back, no pool) tells
  what the pool costs.
- `devices`: full batches as fast as they go, by each device alone, then by all of them; then by all of them
  with the last one failing in mid-run, once for each of `--faults`. Every answer is counted and compared.

Needs numpy, onnx, and pyopencl or onnxruntime. `--devices 0,1` are OpenCL devices by index or part of a name,
for onnxruntime execution providers; naming one twice gives it two threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gpu_inference
from gpu_inference import Session, standard_models
from gpu_inference.devices import forget_device
from gpu_inference.serving import (
    Answer,
    Batch,
    DevicePool,
    DeviceSpec,
    Item,
    Limits,
    MicroBatcher,
    find_sensors,
)

MODELS: dict[str, Callable[[int], bytes]] = {
    "resnet50": lambda size: standard_models.resnet((3, 4, 6, 3), bottleneck=True, size=size),
    "resnet18": lambda size: standard_models.resnet(size=size),
    "mobilenet_v2": lambda size: standard_models.mobilenet_v2(size=size),
}
Result = dict[str, Any]


class FailingSession:
    """A session that raises, gives NaN or hangs for 5 s as long as `switch` names that fault."""

    def __init__(self, session: Session, switch: dict[str, str]) -> None:
        self._session, self._switch = session, switch
        self.inputs, self.outputs, self.close = session.inputs, session.outputs, session.close

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = self._session.run(inputs)
        match self._switch.get("fault"):
            case "error":
                raise RuntimeError("made to fail")
            case "nan":
                return {name: np.full_like(array, np.nan) for name, array in outputs.items()}
            case "hang":
                time.sleep(5)
        return outputs


class Bench:
    """The model, its inputs and its devices."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = MODELS[options.model](options.size)
        self.sizes = tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= options.max_batch)
        shape = (self.sizes[-1], 3, options.size, options.size)
        self.frames = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        self.switch: dict[str, str] = {}
        self.devices: dict[str, str | None] = {}
        names = options.devices.split(",") if options.devices else [None]
        for number, name in enumerate(names):
            again = "" if names.index(name) == number else f" ({number})"
            self.devices[f"{options.engine} {name or 'best'}{again}"] = name

    def load(self, label: str) -> Session:
        return gpu_inference.load(self.model, engine=self.options.engine, device=self.devices[label])

    def tune(self) -> None:
        """Times kernel candidates, as `polarstream tune` does, into a cache of this run."""
        for label in self.devices:
            session: Any = self.load(label)
            started, count = time.perf_counter(), 0
            for size in self.sizes:
                count += session.tune({"x": self.frames[:size]})
            print(f"tuned {label}: {count} problems in {time.perf_counter() - started:.0f} s", flush=True)
            session.close()

    def pool(self, labels: list[str], failing: str = "") -> DevicePool:
        def opener(label: str) -> Callable[[str], Session]:
            if label == failing:
                return lambda key: FailingSession(self.load(label), self.switch)
            return lambda key: self.load(label)

        def reset(label: str) -> None:
            if self.options.engine == "opencl":
                forget_device(self.devices[label])

        pool = DevicePool([DeviceSpec(label, opener(label), reset=partial(reset, label)) for label in labels])
        opened = pool.open("m", sizes=self.sizes, row={"x": self.frames[:1]}).result(600)
        if opened.refused:
            raise SystemExit(f"devices that don't serve the model: {opened.refused}")
        return pool

    def bare_hz(self, seconds: float) -> float:
        """Batch 1 back to back in a plain loop."""
        session = self.load(next(iter(self.devices)))
        x = {"x": self.frames[:1]}
        for _ in range(5):
            session.run(x)
        started, runs = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            session.run(x)
            runs += 1
        took = time.perf_counter() - started
        session.close()
        return runs / took


class Trial:
    """Poisson arrivals at one rate, through a batcher, into a pool.

    Args:
        bench: for the frames.
        pool: that has the model open.
        limits: of the batcher.
        rate_hz: of arrivals.
        seconds: for which they come.
        hopeless_s: a queue longer than so many seconds of arrivals ends the trial.
        seed: of the schedule.
    """

    def __init__(
        self,
        bench: Bench,
        pool: DevicePool,
        limits: Limits,
        rate_hz: float,
        seconds: float,
        hopeless_s: float,
        seed: int,
    ) -> None:
        rng = random.Random(seed)
        gaps = itertools.accumulate(rng.expovariate(rate_hz) for _ in itertools.count())
        self.arrivals = list(itertools.takewhile(lambda at_s: at_s < seconds, gaps))
        self.bench, self.pool = bench, pool
        self.batcher: MicroBatcher[None] = MicroBatcher(limits, pool.curve("m"))
        self.most = rate_hz * hopeless_s + 4 * limits.max_batch
        self.done: list[tuple[float, Batch[None], Future[Answer]]] = []
        self.latencies_s: list[float] = []
        self.batches = self.pending = 0
        self.last_s = 0.0
        self.news = threading.Event()
        self.start_s = time.perf_counter() + 0.005

    def now_s(self) -> float:
        return time.perf_counter() - self.start_s

    def told(self, batch: Batch[None], future: Future[Answer]) -> None:
        self.done.append((self.now_s(), batch, future))
        self.news.set()

    def run(self) -> Result:
        coming = iter([*self.arrivals, float("inf")])
        arrival_s = next(coming)
        number = 0
        while arrival_s < float("inf") or len(self.batcher) or self.pending:
            now_s = self.now_s()
            while arrival_s <= now_s:
                item = Item(f"camera-{number % 16}", number, arrival_s, None)
                self.batcher.offer(item, arrival_s)
                number, arrival_s = number + 1, next(coming)
            if len(self.batcher) > self.most:
                break
            self.collect()
            self.dispatch(now_s)
            self.sleep(arrival_s)
        hopeless = len(self.batcher) > 0
        while self.pending:
            self.news.wait(1)
            self.collect()
        latencies_ms = 1e3 * np.array([*self.latencies_s, *([np.inf] * len(self.batcher))])
        return {
            "offered_hz": len(self.arrivals) / self.arrivals[-1],
            "answered_hz": 0.0 if hopeless else len(self.latencies_s) / self.last_s,
            "p50_ms": float(np.percentile(latencies_ms, 50, method="higher")),
            "p95_ms": float(np.percentile(latencies_ms, 95, method="higher")),
            "p99_ms": float(np.percentile(latencies_ms, 99, method="higher")),
            "mean_batch": len(self.latencies_s) / max(1, self.batches),
        }

    def collect(self) -> None:
        while self.done:
            ended_s, batch, future = self.done.pop()
            future.result()  # a failed batch ends the benchmark
            self.pending -= 1
            self.last_s = max(self.last_s, ended_s)
            self.batcher.answered(batch, ended_s)
            self.latencies_s += [ended_s - item.created_s for item in batch.items]

    def dispatch(self, now_s: float) -> None:
        while (batch := self.batcher.take(now_s, *self.pool.free("m"))) is not None:
            self.batches += 1
            self.pending += 1
            future = self.pool.submit("m", {"x": self.bench.frames[: batch.size]})
            future.add_done_callback(partial(self.told, batch))

    def sleep(self, arrival_s: float) -> None:
        due_s = self.batcher.due_s() if self.pool.free("m")[0] else None
        until_s = min(arrival_s, float("inf") if due_s is None else due_s)
        pause_s = min(1.0, until_s - self.now_s())
        if pause_s > 0 and not self.done and (self.pending or until_s < float("inf")):
            self.news.wait(pause_s)
        self.news.clear()


def highest_rate(
    bench: Bench, pool: DevicePool, limits: Limits, limit_ms: float, seconds: float, steps: int
) -> float:
    """By bisection, up to twice what the measured curve promises at its best size."""
    curve = pool.curve("m")
    costs = [(n, curve.seconds(n)) for n in curve.sizes if n <= limits.max_batch]
    low, high = 0.0, 2 * max(n / cost for n, cost in costs if cost) * len(pool.status())
    for step in range(steps):
        rate_hz = (low + high) / 2
        result = Trial(bench, pool, limits, rate_hz, seconds, 4e-3 * limit_ms, step).run()
        fits = result["p95_ms"] <= limit_ms and result["answered_hz"] > 0.95 * result["offered_hz"]
        low, high = (rate_hz, high) if fits else (low, rate_hz)
        print(
            f"  {rate_hz:8.0f}/s  p95 {result['p95_ms']:8.2f} ms  batch {result['mean_batch']:5.1f}",
            flush=True,
        )
    if not low:
        raise SystemExit(f"no rate keeps p95 within {limit_ms:.2f} ms: allow more with --p95-ms")
    return low


def batching(bench: Bench) -> Result:
    options = bench.options
    bare_hz = bench.bare_hz(options.seconds)
    pool = bench.pool(list(bench.devices))
    curve = {n: pool.curve("m").seconds(n) or 0.0 for n in bench.sizes}
    limit_ms = options.p95_ms or 8e3 * curve[1]
    print("ms by batch size: " + ", ".join(f"{n}: {1e3 * cost:.2f}" for n, cost in curve.items()))
    print(f"bare loop of batch 1: {bare_hz:.0f}/s; limit of p95: {limit_ms:.2f} ms")
    delay_ms = limit_ms / 4 if options.max_delay_ms is None else options.max_delay_ms
    ways = {
        "batch 1": Limits(max_batch=1, max_delay_ms=0, max_queue=10**9),
        "dynamic": Limits(max_batch=bench.sizes[-1], max_delay_ms=delay_ms, max_queue=10**9, pad=True),
    }
    rates = {}
    for name, limits in ways.items():
        print(f"{name}, by bisection")
        rates[name] = highest_rate(bench, pool, limits, limit_ms, options.seconds, options.steps)
    found: dict[str, list[Result]] = {name: [] for name in ways}
    unsure = set(ways)
    while unsure:  # a rate counts once the median of its runs keeps the limit
        found |= {name: [] for name in unsure}
        for turn in range(options.rounds):
            for name in sorted(unsure):
                seconds = 2 * options.seconds
                trial = Trial(bench, pool, ways[name], rates[name], seconds, limit_ms / 1e3 * 4, 100 + turn)
                found[name].append(trial.run())
        for name in tuple(unsure):
            if np.median([result["p95_ms"] for result in found[name]]) <= limit_ms:
                unsure.remove(name)
            else:
                rates[name] *= 0.95
    pool.close()
    for name, results in found.items():
        for result in results:
            print(
                f"{name}: {result['answered_hz']:8.0f}/s  p50 {result['p50_ms']:6.2f}  "
                f"p95 {result['p95_ms']:6.2f}  p99 {result['p99_ms']:6.2f} ms  "
                f"mean batch {result['mean_batch']:5.1f}"
            )
    ratio = rates["dynamic"] / rates["batch 1"]
    print(f"dynamic batching: {ratio:.2f} times the rate of batch 1 at p95 <= {limit_ms:.2f} ms")
    print(f"                  {rates['dynamic'] / bare_hz:.2f} times the bare loop of batch 1")
    return {
        "curve_s": curve,
        "bare_hz": bare_hz,
        "p95_limit_ms": limit_ms,
        "rates_hz": rates,
        "runs": found,
        "ratio": ratio,
    }


def flood(bench: Bench, labels: list[str], seconds: float, fault: str = "") -> Result:
    """Full batches as fast as the devices take them; a fault of the last device in the middle third."""
    pool = bench.pool(labels, labels[-1] if fault else "")
    size, kinds = bench.sizes[-1], 4
    inputs = [np.roll(bench.frames, shift, axis=0) for shift in range(kinds)]
    wanted = pool.submit("m", {"x": inputs[0]}).result(60).outputs
    done: list[tuple[int, float, Future[Answer]]] = []
    news = threading.Event()

    def told(number: int, future: Future[Answer]) -> None:
        done.append((number, time.perf_counter(), future))
        news.set()

    times: dict[int, float] = {}
    answered: Counter[int] = Counter()
    used: Counter[str] = Counter()
    submitted = failed = wrong = moved = read = 0
    sensors = find_sensors()
    watts: dict[str, list[float]] = {f"{sensor.name} {sensor.address}": [] for sensor in sensors}
    sampled_s = 0.0
    started_s = time.perf_counter()
    while (now_s := time.perf_counter() - started_s) < seconds or len(answered) + failed < submitted:
        if fault:
            bench.switch["fault"] = fault if int(3 * now_s / seconds) == 1 else ""
        while now_s < seconds and submitted - len(answered) - failed < 2 * len(labels):
            future = pool.submit("m", {"x": inputs[submitted % kinds]})
            future.add_done_callback(partial(told, submitted))
            submitted += 1
        if now_s > sampled_s + 0.2:
            sampled_s = now_s
            for values, sensor in zip(watts.values(), sensors, strict=True):
                drawn = sensor.watts()
                values += [] if drawn is None else [drawn]
        news.wait(0.5)
        news.clear()
        while read < len(done):
            number, at_s, future = done[read]
            read += 1
            if future.exception() is not None:
                failed += 1
                print(f"lost: {future.exception()}", flush=True)
                continue
            answer = future.result()
            answered[number] += 1
            times[number] = at_s - started_s
            used[answer.device] += 1
            moved += bool(answer.failovers)
            for name, array in answer.outputs.items():
                right = np.roll(wanted[name], number % kinds, axis=0)
                wrong += not np.allclose(array, right, rtol=1e-2, atol=1e-2 * float(np.abs(right).max()))
    statuses = {status.name: status for status in pool.status()}
    bench.switch.clear()
    pool.close(20)
    thirds = [
        size * sum(t // (seconds / 3) == third for t in times.values()) / (seconds / 3) for third in range(3)
    ]
    return {
        "frames_hz": size * sum(t < seconds for t in times.values()) / seconds,
        "thirds_hz": thirds,
        "batches": submitted,
        "lost": submitted - len(answered),
        "doubled": sum(count > 1 for count in answered.values()),
        "wrong": wrong,
        "moved": moved,
        "by_device": dict(used),
        "device_ms_per_frame": {
            name: 1e3 * status.busy_s / status.batches / size
            for name, status in statuses.items()
            if status.batches
        },
        "watts": {name: float(np.mean(values)) for name, values in watts.items() if values},
        "failures": {name: status.failures for name, status in statuses.items() if status.failures},
        "states": {name: str(status.state) for name, status in statuses.items()},
    }


def devices(bench: Bench) -> Result:
    options, labels = bench.options, list(bench.devices)
    found: Result = {}
    single: dict[str, list[float]] = {label: [] for label in labels}
    together: list[float] = []
    last: Result = {}
    for _ in range(options.rounds):
        for label in labels:
            single[label].append(flood(bench, [label], options.seconds)["frames_hz"])
        last = flood(bench, labels, options.seconds)
        together.append(last["frames_hz"])
    for label, rates in single.items():
        print(f"{label} alone: {', '.join(f'{rate:.0f}' for rate in rates)} frames/s")
    print(f"together: {', '.join(f'{rate:.0f}' for rate in together)} frames/s")
    alone = float(np.median([rate for rates in single.values() for rate in rates]))
    found |= {"alone_hz": single, "together_hz": together, "ratio": float(np.median(together)) / alone}
    print(f"{len(labels)} devices: {found['ratio']:.2f} times the frames/s of one (medians)")
    busy = ", ".join(f"{name} {ms:.3f}" for name, ms in last["device_ms_per_frame"].items())
    print(f"device ms a frame, together: {busy}")
    for name, watts in last["watts"].items():
        print(f"{name}: {watts:.0f} W while together")
    if last["watts"]:
        joules = found["joules_per_frame"] = sum(last["watts"].values()) / last["frames_hz"]
        print(f"{joules:.4f} J a frame, of all cards with a sensor")
    found["last"] = last
    for fault in options.faults.split(",") if options.faults and len(labels) > 1 else []:
        result = found[fault] = flood(bench, labels, 3 * options.seconds, fault)
        thirds = " / ".join(f"{rate:.0f}" for rate in result["thirds_hz"])
        print(
            f"{labels[-1]} made to fail ({fault}) in the middle third: {result['batches']} batches, "
            f"{result['lost']} lost, {result['doubled']} doubled, {result['wrong']} wrong, "
            f"{result['moved']} moved; {thirds} frames/s by thirds; {result['failures']}, {result['states']}"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("mode", choices=("batching", "devices"))
    parser.add_argument("--engine", choices=("opencl", "onnxruntime"), default="opencl")
    parser.add_argument("--devices", help="separated by commas (default: the best one)")
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-delay-ms", type=float, help="default: a quarter of the limit of p95")
    parser.add_argument("--p95-ms", type=float, help="default: 8 times what batch 1 takes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one trial")
    parser.add_argument("--steps", type=int, default=8, help="of a bisection")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--faults", default="error,hang,nan", help="of the last of several devices")
    parser.add_argument("--tune", action="store_true", help="the OpenCL engine's kernels first")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        if options.tune:
            os.environ["XDG_CACHE_HOME"] = cache  # a tuning of this run, not of this machine
        bench = Bench(options)
        if options.tune:
            bench.tune()
        print(f"{options.model} {options.size}x{options.size}, {', '.join(bench.devices)}", flush=True)
        found = batching(bench) if options.mode == "batching" else devices(bench)
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), **found}, indent=1, default=str))


if __name__ == "__main__":
    main()
