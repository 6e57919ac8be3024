"""`polarstream eval`: detectors on published benchmarks, by their protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polarstream.cli.options import JsonOption, examples
from polarstream.cli.output import print_json, print_table

app = typer.Typer(help="Measure detectors on published benchmarks.", no_args_is_help=True)


@app.command(epilog=examples("polarstream eval skab SKAB/data/valve1", "polarstream eval skab data --json"))
def skab(
    path: Annotated[Path, typer.Argument(exists=True, help="A folder of SKAB's recordings.")],
    detector: Annotated[str, typer.Option("--detector", "-d", help="The detector, by its type.")] = "pca",
    as_json: JsonOption = False,
) -> None:
    """F1, false and missed alarms on SKAB; trained on the first 400 rows of each file, scored online."""
    from anomaly.evaluation.skab import evaluate, read

    found = evaluate(read(path), {"type": detector})
    if as_json:
        print_json({**found._asdict(), "files": [one._asdict() for one in found.files]})
        return
    print_table(
        ["file", "F1", "FAR", "MAR", "nested threshold"],
        [[f.name, *(f"{x:.3f}" for x in f[1:4]), f"{f.nested_threshold:.2f}"] for f in found.files],
    )
    print(f"\n{found.detector}, {len(found.files)} files; ± is one standard error by bootstrap over files")
    for label, one in (
        (f"its own threshold {found.threshold:g}, all rows", found.own),
        ("  rows after the training", found.own_tested),
        ("threshold chosen on the other files, all rows", found.nested),
        ("  rows after the training", found.nested_tested),
    ):
        print(
            f"{label:46}  F1 {one.f1:.3f} ± {one.f1_error:.3f}  FAR {one.far:.3f} ± {one.far_error:.3f}  "
            f"MAR {one.mar:.3f}"
        )
