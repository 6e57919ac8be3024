"""`forecast`: predicted times of a model on an RX 580, without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from polarstream.cli.gpu import (
    ActivationsOption,
    ModelArgument,
    WeightsOption,
    activation_type,
    engine_errors,
    require_file,
    weight_type,
)
from polarstream.cli.options import JsonOption, examples
from polarstream.cli.output import print_json, print_table, progress_bar, size

if TYPE_CHECKING:
    from gpu_inference.opencl.forecast import Forecast, KernelForecast
    from gpu_inference.opencl.gfx803 import IsaReport
    from gpu_inference.opencl.launch import Kernel

CARD_BYTES = (4 << 30, 8 << 30)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "polarstream forecast model.onnx", "polarstream forecast model.onnx --batch 1 --batch 8 --json"
        )
    )(forecast)


def forecast(
    model: ModelArgument,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Size of free dimensions; may be given more than once (default: 1)."),
    ] = None,
    weights: WeightsOption = None,
    activations: ActivationsOption = "fp32",
    top: Annotated[int, typer.Option(min=1, help="Rows to show, the slowest first.")] = 25,
    json: JsonOption = False,
) -> None:
    """Predict a model's times on an RX 580 from its cost model and the compiled kernels; no card is needed.

    Where clang for gfx803 is installed, the numbers of the compiled code stand beside the times.
    """
    from gpu_inference.opencl import forecast as forecasting
    from gpu_inference.opencl import gfx803
    from gpu_inference.opencl.traits import RX580
    from polarstream.gpu_report import example_inputs

    require_file(model)
    sizes, kind = batch or [1], None if weights is None else weight_type(weights)
    between = activation_type(activations)
    with engine_errors():
        inputs = [example_inputs(forecasting.inputs_of(model), one) for one in sizes]
        forecasts = forecasting.forecast_model(model, inputs, RX580, kind, between)
        found = dict(zip(sizes, forecasts, strict=True))
        compiled = gfx803.toolchain() is not None
        with progress_bar("compiling for gfx803", show=not json and compiled) as move:
            kernels = list(dict.fromkeys(row.kernel for one in found.values() for row in one.rows))
            isa: dict[Kernel, IsaReport] = {}
            for done, kernel in enumerate(kernels if compiled else []):
                move(done, len(kernels), kernel.name)
                isa[kernel] = next(one for one in gfx803.inspect(kernel) if one.name == kernel.name)
    missing = "" if compiled else f"the compiled code's numbers need its compiler: {gfx803.APT_LINE}"
    if json:
        print_json(
            {
                "model": str(model),
                "device": msgspec.to_builtins(RX580),
                "missing": missing,
                "batches": [_document(one, forecast, isa) for one, forecast in found.items()],
            }
        )
        return
    for number, (one, forecast) in enumerate(found.items()):
        if number:
            print()
        _show(one, forecast, isa, top, RX580.peak_gflops)
    if missing:
        print(missing)


def _document(batch: int, found: Forecast, isa: dict[Kernel, IsaReport]) -> dict[str, Any]:
    return {
        "batch": batch,
        "total_us": found.total_us,
        "least_us": found.least_us,
        "launches": found.launches,
        "stops_at": found.stops_at,
        "nodes_left": found.nodes_left,
        "guessed": found.guessed,
        "fallback": found.fallback,
        "memory": msgspec.to_builtins(found.memory) | {"peak_bytes": found.memory.peak_bytes},
        "kernels": [
            {
                "kernel": row.kernel.name,
                "source": row.kernel.file or "generated",
                "choice": row.choice,
                "modelled": row.modelled,
                "launches": row.launches,
                "time_us": row.time_us,
                "flops": row.flops,
                "gflops": row.gflops,
                "isa": _isa_document(isa.get(row.kernel)),
            }
            for row in found.rows
        ],
    }


def _isa_document(isa: IsaReport | None) -> dict[str, Any] | None:
    if isa is None:
        return None
    document: dict[str, Any] = msgspec.to_builtins(isa)
    return document | {"waves": isa.waves, "mad_share": isa.mad_share}


def _show(batch: int, found: Forecast, isa: dict[Kernel, IsaReport], top: int, peak_gflops: float) -> None:
    total_us = found.total_us or 1.0
    print_table(
        (
            "KERNEL",
            "CHOICE",
            "LAUNCHES",
            "µs",
            "SHARE",
            "GFLOP/s",
            "VGPRs",
            "WAVES",
            "LDS B",
            "SPILLS",
            "MAD",
        ),
        [
            (
                row.kernel.name,
                row.choice or None,
                row.launches,
                f"{'' if row.modelled else '≥ '}{row.time_us:.0f}",
                f"{row.time_us / total_us:.1%}",
                f"{row.gflops:.0f}" if row.flops and row.modelled else None,
                *_isa_cells(row, isa.get(row.kernel)),
            )
            for row in found.rows[:top]
        ],
    )
    rate = sum(row.flops for row in found.rows) / total_us / 1e3
    print(
        f"batch {batch}: {found.launches} launches, {found.total_us / 1e3:.2f} ms predicted on an RX 580 "
        f"({rate:.0f} GFLOP/s, {rate / peak_gflops:.0%} of its peak); "
        f"{found.least_us / 1e3:.2f} ms of it (≥) is only the least that these launches can take"
    )
    cards = ", ".join(
        f"{'fits' if found.memory.peak_bytes <= card else 'does not fit'} {size(card)}" for card in CARD_BYTES
    )
    print(f"takes {found.memory}: {cards}")
    if found.guessed:
        print(f"shapes depend on the elements of {', '.join(found.guessed)}: predicted for random ones")
    if found.stops_at:
        print(
            f"the prediction ends before {found.stops_at}: what follows ({found.nodes_left} nodes) depends "
            "on results; `polarstream profile` measures it on a device"
        )
    for label, reason in found.fallback.items():
        print(f"{label} would run on onnxruntime ({reason})")


def _isa_cells(row: KernelForecast, isa: IsaReport | None) -> tuple[object, ...]:
    if isa is None:
        return (None,) * 5
    share = f"{isa.mad_share:.0%}" if row.flops and isa.loop_mads else None
    return isa.vgprs, f"{isa.waves:g}", isa.local_bytes, isa.spills, share
