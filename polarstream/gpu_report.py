"""What `polarstream tune`, `profile` and `gpu-report` measure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

import gpu_inference
from gpu_inference import standard_models
from gpu_inference.devices import pick_device
from gpu_inference.opencl.memory import MemoryNeed

if TYPE_CHECKING:
    from gpu_inference import TensorInfo
    from gpu_inference.conformance import NodeTests
    from gpu_inference.devices import DeviceInfo
    from gpu_inference.opencl.session import OpenCLSession

#: Results may differ from onnxruntime's by so much of the largest output.
TOLERANCE = 1e-3
_REPEATS = 20
# of the progress bar, against one node test; and what the node tests of --quick may take at most
_MODEL_SHARE = 100
_QUICK_S = 120.0


class LaunchShare(msgspec.Struct):
    """One kernel launch of a profile.

    `flops` and `bytes` are 0 where nobody counted them; `slots` are those of the arena that it touches.
    """

    node: str
    kernel: str
    source: str
    time_us: float
    flops: float
    bytes: float
    slots: tuple[int, ...]


class Profile(msgspec.Struct):
    """Where a model's time on the device goes, what it reaches at best, and the memory that was foreseen."""

    launches: list[LaunchShare]
    total_us: float
    slot_bytes: tuple[int, ...]
    constant_bytes: int
    peak_gflops: float
    peak_gbps: float
    memory: MemoryNeed


class DeviceSummary(msgspec.Struct):
    """The card, as its driver tells of it."""

    name: str
    vendor: str
    platform: str
    driver: str
    version: str
    memory_bytes: int
    compute_units: int
    kind: str
    problems: list[str]


class ModelTimes(msgspec.Struct):
    """One standard model: milliseconds without copies, and the largest error against onnxruntime.

    `failure` says why there are none, where the driver or the card failed it.
    """

    model: str
    batch: int
    untuned_ms: float = 0.0
    tuned_ms: float = 0.0
    gflops: float = 0.0
    launches: int = 0
    error: float = 0.0
    right: bool = False
    failure: str = ""


class Conformance(msgspec.Struct):
    """ONNX's own node tests on the card: how many passed, which failed and why, which did not run.

    `running` is the one that was under way when the file was written: "" at the end.
    """

    passed: int
    failed: dict[str, str]
    not_run: tuple[str, ...]
    seconds: float
    running: str = ""


class GpuReport(msgspec.Struct):
    """What an owner sends us of his card."""

    polarstream: str
    device: DeviceSummary
    peak_gflops: float
    peak_gbps: float
    models: list[ModelTimes]
    conformance: Conformance | None = None

    @property
    def right(self) -> bool:
        """Whether everything that ran gave the right result."""
        return all(one.right for one in self.models) and not (self.conformance and self.conformance.failed)


def example_inputs(inputs: Iterable[TensorInfo], batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random arrays for a model's inputs; every free dimension becomes `batch`."""
    chance = np.random.default_rng(0)
    made: dict[str, np.ndarray[Any, Any]] = {}
    for info in inputs:
        shape = tuple(batch if size is None else size for size in info.shape or ())
        floating = np.issubdtype(info.dtype, np.floating)
        values = chance.standard_normal(shape) if floating else chance.integers(0, 2, shape)
        made[info.name] = np.asarray(values).astype(info.dtype)
    return made


def profile_model(
    session: OpenCLSession, inputs: dict[str, np.ndarray[Any, Any]], device: DeviceInfo
) -> Profile:
    """Measure every launch of one run, and the peak of the session's device."""
    from gpu_inference.opencl.peak import measure_peak

    memory = session.memory_need(inputs)
    launches = [
        LaunchShare(t.node, t.kernel, t.source, t.time_us, t.flops, t.bytes, t.slots)
        for t in session.profile(inputs)
    ]
    report = session.report
    total = sum(launch.time_us for launch in launches)
    gflops, gbps = measure_peak(device)
    return Profile(launches, total, report.slot_bytes, report.constant_bytes, gflops, gbps, memory)


def chrome_trace(profile: Profile) -> list[dict[str, Any]]:
    """The launches one after another, in Chrome's trace event format."""
    events: list[dict[str, Any]] = []
    at = 0.0
    for launch in profile.launches:
        events.append(
            {
                "name": launch.node or launch.kernel,
                "cat": launch.kernel,
                "ph": "X",
                "ts": at,
                "dur": launch.time_us,
                "pid": 1,
                "tid": 1,
                "args": {
                    "kernel": launch.kernel,
                    "flops": launch.flops,
                    "bytes": launch.bytes,
                    "slots": launch.slots,
                },
            }
        )
        at += launch.time_us
    return events


def measure_device(
    wanted: str | None,
    progress: Callable[[float, float, str], None],
    *,
    quick: bool = False,
    save: Callable[[GpuReport], None] = lambda report: None,
) -> GpuReport:
    """Measure a device: its peak, the standard models, ONNX's node tests.

    Args:
        wanted: index or part of a name; None for the best.
        progress: called with (done, of, what is going on).
        quick: models at batch 1, one node test an operator, none begun after two minutes of them.
        save: called with what is known so far, so that a card that hangs leaves a report too.

    Raises:
        DeviceError: there is no such device.
    """
    from importlib.metadata import version

    from gpu_inference.conformance import device_tests, run_node_tests
    from gpu_inference.opencl.peak import measure_peak

    info = pick_device(wanted)
    small = info.traits.is_cpu
    cases = [
        (f"{name} {size}x{size}", make(size), batch)
        for name, make, size in (
            ("ResNet-50", _resnet50, 64 if small else 224),
            ("MobileNetV2", standard_models.mobilenet_v2, 64 if small else 224),
        )
        for batch in ((1,) if small or quick else (1, 8))
    ]
    tests = device_tests(quick=quick)
    models_share = _MODEL_SHARE * (len(cases) + 1)
    whole = models_share + len(tests)
    progress(0, whole, "peak")
    gflops, gbps = measure_peak(info)
    report = GpuReport(version("polarstream"), _summary(info), gflops, gbps, [])
    for number, (name, model, batch) in enumerate(cases, 1):
        progress(_MODEL_SHARE * number, whole, f"{name}, batch {batch}")
        report.models.append(_measure_model(name, model, batch, info.index))
        save(report)

    def note(found: NodeTests, running: str) -> None:
        progress(whole - len(found.not_run), whole, running)
        report.conformance = Conformance(found.passed, found.failed, found.not_run, found.seconds, running)
        save(report)

    note(run_node_tests(info.index, tests, limit_s=_QUICK_S if quick else None, progress=note), "")
    progress(whole, whole, "done")
    return report


def _summary(info: DeviceInfo) -> DeviceSummary:
    return DeviceSummary(
        info.name,
        info.vendor,
        info.platform,
        info.driver,
        info.version,
        info.memory_bytes,
        info.traits.compute_units,
        info.traits.kind,
        list(info.problems),
    )


def _resnet50(size: int) -> bytes:
    return standard_models.resnet((3, 4, 6, 3), bottleneck=True, size=size)


def _measure_model(name: str, model: bytes, batch: int, device: int) -> ModelTimes:
    try:
        return _measured(name, model, batch, device)
    except Exception as error:  # a driver's failure of one model is a finding, not the end of the report
        return ModelTimes(name, batch, failure=f"{type(error).__name__}: {str(error)[:2000]}")


def _measured(name: str, model: bytes, batch: int, device: int) -> ModelTimes:
    from gpu_inference.opencl.session import OpenCLSession

    session = OpenCLSession(model, device)
    reference = gpu_inference.load(model, engine="onnxruntime")
    try:
        inputs = example_inputs(session.inputs, batch)
        wanted = reference.run(inputs)
        untuned = _time_ms(session, inputs)
        session.tune(inputs)
        tuned = _time_ms(session, inputs)
        got = session.fetch()
        error = max(
            float(np.abs(got[key] - want).max() / max(float(np.abs(want).max()), 1e-30))
            for key, want in wanted.items()
        )
        flops = sum(launch.flops for launch in session.profile(inputs, repeats=1))
        return ModelTimes(
            name,
            batch,
            untuned,
            tuned,
            flops / tuned / 1e6,
            session.report.launches,
            error,
            bool(error <= TOLERANCE),
        )
    finally:
        session.close()
        reference.close()


def _time_ms(session: OpenCLSession, inputs: dict[str, np.ndarray[Any, Any]]) -> float:
    """Median milliseconds of a run whose inputs lie on the device."""
    session.upload(inputs)
    times = []
    for number in range(_REPEATS + 2):
        started = time.perf_counter()
        session.replay()
        session.finish()
        if number >= 2:
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)
