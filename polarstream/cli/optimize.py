"""`optimize`: smaller and faster models, what they cost, and a search over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from polarstream.cli.accuracy import arrays_of
from polarstream.cli.gpu import engine_errors, require_file
from polarstream.cli.options import JsonOption, examples
from polarstream.cli.output import print_json, print_table, progress_bar, size
from streams.errors import UsageError

if TYPE_CHECKING:
    from gpu_inference.optimiser import Judge, Measured, Recipe
    from gpu_inference.optimiser.search import Budget, Found
    from polarstream.cli.output import Progress


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "polarstream optimize model.onnx --data frames.npz",
            "polarstream optimize model.onnx --apply channels=0.25+int8 -o small.onnx",
            "polarstream optimize model.onnx --budget size=0.3 --floor 0.98 --data frames.npz -o small.onnx",
        )
    )(optimize)


def optimize(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="An .onnx file, or a PyTorch one (.pt, .pt2) where torch is."),
    ],
    apply: Annotated[
        list[str] | None,
        typer.Option(metavar="RECIPE", help="Transforms with '+' between them; more than once to compare."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the model of the recipe, or the best one.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file: an array for each input, perhaps classes as 'labels' (default: random)."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="An .npz file for int8-static, repair and evolve to learn from (default: --data)."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE", help="cpu, onnxruntime:PROVIDER, opencl or opencl:DEVICE (default: cpu)."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a run where the model leaves them free.")] = 8,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMIT", help="Search for a model within size=SHARE, time=SHARE or both."),
    ] = None,
    floor: Annotated[float, typer.Option(help="With --budget: the least share that it keeps.")] = 0.99,
    trials: Annotated[int, typer.Option(min=1, help="With --budget: how many recipes to try.")] = 24,
    seed: Annotated[int, typer.Option(help="With --budget: of its choices.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write a picture of size against what is kept.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="N,C,H,W", help="Of each input of a TorchScript, in order.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Make a model smaller or faster, and show what that costs on given data.

    Without --apply and --budget, the usual transforms are compared. KEPT is the accuracy by the original's
    where there are labels, else the share of rows with the original's class, else 1 - the mean error. Exit
    code 1 where no model is within the budget.
    """
    require_file(model)
    if apply and budget:
        raise UsageError("--apply and --budget exclude each other: leave one of them out")
    if output is not None and not budget and len(apply or ()) != 1:
        raise UsageError("--output writes one model: give one --apply, or a --budget")
    with engine_errors(), _recipe_errors():
        from gpu_inference.optimiser import parse_recipe, to_bytes
        from gpu_inference.optimiser.search import parse_budget

        limits = parse_budget(budget, floor) if budget else None
        recipes = [parse_recipe(text) for text in apply or ()]
        shapes = [_shape(text) for text in shape or ()]
        judge = _judge(model, shapes, data, calibration, device or ["cpu"], batch)
        with progress_bar("optimising", show=not json) as move:
            found = _search(judge, limits, trials, seed, move) if limits else _compare(judge, recipes, move)
        written = None
        if output is not None and found.best is not None:
            result = judge.original
            if found.best.recipe != "original":
                result = parse_recipe(found.best.recipe).apply(judge.original, judge)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(to_bytes(result))
            written = output
    if plot is not None:
        from polarstream.optimise_plot import write_front

        write_front(
            plot,
            model.name,
            [found.original, *found.trials],
            found.front,
            found.best if limits else None,
            limits,
        )
    if json:
        print_json(_document(model, data, judge, found, limits, written))
    else:
        _show(judge, found, limits, written, data)
    return 1 if limits and found.best is None else 0


def _judge(
    model: Path,
    shapes: Sequence[Sequence[int]],
    data: Path | None,
    calibration: Path | None,
    devices: Sequence[str],
    batch: int,
) -> Judge:
    from gpu_inference.graph.importer import import_graph
    from gpu_inference.optimiser import Judge, generated_samples, given_samples, load_model, target_of
    from gpu_inference.optimiser.formats import read_any

    targets = [target_of(name) for name in devices]
    original = load_model(read_any(model, shapes))
    inputs = import_graph(original).inputs
    samples, learned = (
        None if path is None else given_samples(inputs, arrays_of(path), batch)
        for path in (data, calibration)
    )
    return Judge(original, samples or generated_samples(inputs, batch), targets, calibration=learned)


def _search(judge: Judge, budget: Budget, trials: int, seed: int, move: Progress) -> Found:
    from gpu_inference.optimiser.search import search

    return search(judge, budget, trials, seed, move)


def _compare(judge: Judge, recipes: Sequence[Recipe], move: Progress) -> Found:
    from gpu_inference.optimiser.search import compare

    return compare(judge, recipes, move)


def _shape(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"no shape '{text}': write numbers with commas between them, as 1,3,224,224"
        ) from None


@contextmanager
def _recipe_errors() -> Iterator[None]:
    from gpu_inference.errors import RecipeError

    try:
        yield
    except RecipeError as error:
        raise UsageError(str(error)) from error


def _show(judge: Judge, found: Found, budget: Budget | None, written: Path | None, data: Path | None) -> None:
    names = [target.name for target in judge.targets]
    columns = ("RECIPE", "BYTES", "RATIO", "PACKED", "WEIGHTS", "NOT 0", "LARGEST ERROR", "MEAN ERROR")
    front = {id(one) for one in found.front} if budget else set()
    rows = [_row(one, names, id(one) in front, one is found.best) for one in (found.original, *found.trials)]
    marks = ("FRONT",) if budget else ()
    print_table(
        (*columns, "AGREEMENT", "ACCURACY", "KEPT", *(f"{n} ms" for n in names), *marks),
        [row if budget else row[:-1] for row in rows],
    )
    for recipe, why in found.failed.items():
        print(f"{recipe}: {why}")
    for one in found.trials:
        for name, why in one.failures.items():
            print(f"{one.recipe} on {name}: {why}")
    if budget and found.best is None:
        near = found.nearest
        told = "none keeps the floor" if near is None else f"nearest: {near.recipe}, ratio {near.ratio:.3f}"
        print(f"no model within the budget ({told}): raise --trials, the budget, or lower --floor")
    elif budget and found.best is not None:
        print(f"best within the budget: {found.best.recipe}")
    if written is not None:
        print(f"written: {written}")
    if data is None:
        print("random data: give real inputs with --data to know what a trained model loses")


def _row(one: Measured, names: Sequence[str], on_front: bool, best: bool) -> tuple[Any, ...]:
    times = [one.seconds.get(name) for name in names]
    return (
        one.recipe,
        size(one.size_bytes),
        f"{one.ratio:.3f}",
        size(one.packed_bytes),
        one.parameters,
        one.nonzero,
        _number(one.max_error, ".1e"),
        _number(one.mean_error, ".1e"),
        _number(one.agreement, ".1%"),
        _number(one.accuracy, ".1%"),
        f"{one.kept:.4f}",
        *(_number(None if seconds is None else 1e3 * seconds, ".2f") for seconds in times),
        "best" if best else "front" if on_front else "",
    )


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _document(
    model: Path, data: Path | None, judge: Judge, found: Found, budget: Budget | None, written: Path | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": str(model),
        "data": str(data or "random"),
        "samples": judge.samples.count,
        "original": msgspec.to_builtins(found.original),
        "results": [msgspec.to_builtins(one) for one in found.trials],
        "failed": found.failed,
        "output": None if written is None else str(written),
    }
    if budget:
        document["budget"] = msgspec.to_builtins(budget)
        document["front"] = [one.recipe for one in found.front]
        document["best"] = None if found.best is None else found.best.recipe
    return document
