"""`devices`, `tune`, `profile`, `gpu-report`: the OpenCL engine on this machine's cards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from polarstream.cli.options import JsonOption, examples
from polarstream.cli.output import print_json, print_table, progress_bar, size
from streams.errors import Stop, UsageError

if TYPE_CHECKING:
    from gpu_inference.opencl.session import OpenCLSession
    from gpu_inference.opencl.weights import ActivationType, WeightType
    from polarstream.gpu_report import GpuReport

DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Index, or part of the name, vendor or platform (default: the best).",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="TYPE",
        help="How weights are stored: fp32, fp16, int8 or int4 (default: as the model has them).",
    ),
]
ActivationsOption = Annotated[
    str,
    typer.Option(
        "--activations", metavar="TYPE", help="How tensors between convolutions are stored: fp32 or fp16."
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Size of free dimensions, the batch among them.")]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("polarstream devices", "polarstream devices --json"))(devices)
    app.command(
        epilog=examples(
            "polarstream tune model.onnx", "polarstream tune model.onnx --batch 8 --device gfx803"
        )
    )(tune)
    app.command(
        epilog=examples(
            "polarstream profile model.onnx", "polarstream profile model.onnx --batch 8 --trace trace.json"
        )
    )(profile)
    app.command(
        "gpu-report",
        epilog=examples("polarstream gpu-report --out rx580.json", "polarstream gpu-report --quick"),
    )(gpu_report)


@contextmanager
def engine_errors() -> Iterator[None]:
    """What an engine says is for the user, as any error of ours."""
    from gpu_inference.errors import EngineError

    try:
        yield
    except EngineError as error:
        raise Stop(str(error)) from error


def require_file(model: Path) -> None:
    """Refuses a model that isn't there."""
    if not model.is_file():
        raise UsageError(f"there is no file '{model}': name an .onnx file")


def weight_type(name: str) -> WeightType:
    """A type of stored weights by its name.

    Raises:
        UsageError: there is none of this name.
    """
    from gpu_inference.opencl.weights import WEIGHT_TYPES

    found = next((kind for kind in WEIGHT_TYPES if kind == name), None)
    if found is None:
        raise UsageError(f"no weights of type '{name}': take {', '.join(WEIGHT_TYPES)}")
    return found


def activation_type(name: str) -> ActivationType:
    """A type of stored activations by its name.

    Raises:
        UsageError: there is none of this name.
    """
    from gpu_inference.opencl.weights import ACTIVATION_TYPES

    found = next((kind for kind in ACTIVATION_TYPES if kind == name), None)
    if found is None:
        raise UsageError(f"no activations of type '{name}': take {', '.join(ACTIVATION_TYPES)}")
    return found


@contextmanager
def _opened(
    model: Path, device: str | None, weights: str | None, activations: str
) -> Iterator[OpenCLSession]:
    require_file(model)
    kind = None if weights is None else weight_type(weights)
    between = activation_type(activations)
    from gpu_inference.opencl.session import OpenCLSession

    with engine_errors():
        session = OpenCLSession(model, device, weights=kind, activations=between)
        try:
            yield session
        finally:
            session.close()


def devices(json: JsonOption = False) -> int:
    """List the OpenCL devices of this machine, and what is known to be wrong with them.

    Exit code 70, with what to install, where there is no driver.
    """
    from gpu_inference.devices import INSTALL_HINT, list_devices

    with engine_errors():
        found = list_devices()
    if json:
        print_json([msgspec.to_builtins(device) | {"is_rx580": device.is_rx580} for device in found])
        return 0 if found else 70
    if not found:
        raise Stop(f"there is an OpenCL platform, but no device: {INSTALL_HINT}")
    print_table(
        ("INDEX", "NAME", "PLATFORM", "DRIVER", "UNITS", "WAVE", "MEMORY", "RX 580"),
        [
            (
                device.index,
                device.name,
                device.platform,
                device.driver,
                device.traits.compute_units,
                device.traits.simd_width,
                size(device.memory_bytes),
                device.is_rx580,
            )
            for device in found
        ],
    )
    for device in found:
        for problem in device.problems:
            print(f"{device.index}: {problem}")
    return 0


def tune(
    model: ModelArgument,
    batch: BatchOption = 1,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    activations: ActivationsOption = "fp32",
    again: Annotated[bool, typer.Option("--again", help="Also what was tuned before.")] = False,
    json: JsonOption = False,
) -> None:
    """Time the candidates of every convolution and product of a model, and keep the best for later runs."""
    from polarstream.gpu_report import example_inputs

    with (
        _opened(model, device, weights, activations) as session,
        progress_bar("tuning", show=not json) as move,
    ):
        inputs = example_inputs(session.inputs, batch)
        count = session.tune(inputs, lambda done, of: move(done, of, ""), again=again)
    if json:
        print_json({"model": str(model), "batch": batch, "timed": count})
    else:
        print(f"{count} problems timed; the choices are kept for this device and driver")


def profile(
    model: ModelArgument,
    batch: BatchOption = 1,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    activations: ActivationsOption = "fp32",
    top: Annotated[int, typer.Option(min=1, help="Rows to show, the slowest first.")] = 25,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace (chrome://tracing) here.")] = None,
    json: JsonOption = False,
) -> None:
    """Show where a model's time goes: device time, GFLOP/s and GB/s of each kernel launch."""
    from gpu_inference.devices import pick_device
    from polarstream.gpu_report import chrome_trace, example_inputs, profile_model

    with _opened(model, device, weights, activations) as session:
        inputs = example_inputs(session.inputs, batch)
        if not json:  # before anything is allocated, so that it stands there if the device refuses
            print(f"takes {session.memory_need(inputs)}", flush=True)
        found = profile_model(session, inputs, pick_device(device))
    if trace is not None:
        trace.write_bytes(msgspec.json.encode(chrome_trace(found)))
    if json:
        print_json(found)
        return
    rows = sorted(found.launches, key=lambda launch: -launch.time_us)[:top]
    print_table(
        ("NODE", "KERNEL", "µs", "SHARE", "GFLOP/s", "OF PEAK", "GB/s", "OF PEAK"),
        [
            (
                launch.node,
                launch.kernel,
                f"{launch.time_us:.1f}",
                f"{launch.time_us / found.total_us:.1%}",
                f"{launch.flops / launch.time_us / 1e3:.0f}",
                f"{launch.flops / launch.time_us / 1e3 / found.peak_gflops:.0%}",
                f"{launch.bytes / launch.time_us / 1e3:.0f}",
                f"{launch.bytes / launch.time_us / 1e3 / found.peak_gbps:.0%}",
            )
            for launch in rows
        ],
    )
    print(
        f"{len(found.launches)} launches, {found.total_us / 1e3:.3f} ms on the device, "
        f"{size(sum(found.slot_bytes))} of intermediate tensors in {len(found.slot_bytes)} slots "
        f"({', '.join(size(one) for one in found.slot_bytes)}), {size(found.constant_bytes)} of weights; "
        f"peak measured {found.peak_gflops:.0f} GFLOP/s, {found.peak_gbps:.0f} GB/s"
    )


def gpu_report(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("gpu-report.json"),
    device: DeviceOption = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Models at batch 1 and one node test an operator, two minutes at most."),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Measure a card once: right results, tuned times of standard models, share of its peak.

    Two networks beside onnxruntime, then ONNX's own node tests. Writes one file that you may send us,
    and keeps it up to date while it goes on. Exit code 1 where a result is wrong.
    """
    from polarstream.gpu_report import measure_device

    def save(report: GpuReport) -> None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")

    with engine_errors(), progress_bar("measuring", show=not json) as move:
        report = measure_device(device, move, quick=quick, save=save)
    if json:
        print_json(report)
    else:
        _show_report(report)
        print(f"written to {out}")
    return int(not report.right)


def _show_report(report: GpuReport) -> None:
    print(f"{report.device.name}, {report.device.platform} {report.device.driver}")
    print(f"peak         {report.peak_gflops:.0f} GFLOP/s, {report.peak_gbps:.0f} GB/s measured")
    print_table(
        ("MODEL", "BATCH", "ms", "GFLOP/s", "OF PEAK", "UNTUNED ms", "LARGEST ERROR", "RIGHT"),
        [
            (
                one.model,
                one.batch,
                f"{one.tuned_ms:.2f}",
                f"{one.gflops:.0f}",
                f"{one.gflops / report.peak_gflops:.0%}",
                f"{one.untuned_ms:.2f}",
                f"{one.error:.1e}",
                one.right,
            )
            for one in report.models
        ],
    )
    for model in report.models:
        if model.failure:
            print(f"{model.model}, batch {model.batch}: {model.failure.splitlines()[0]}")
    tests = report.conformance
    if tests is not None:
        print(
            f"node tests   {tests.passed} passed, {len(tests.failed)} failed, {len(tests.not_run)} not run, "
            f"{tests.seconds:.0f} s"
        )
        for name, reason in tests.failed.items():
            print(f"  {name}: {reason}")
