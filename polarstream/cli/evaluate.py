"""`polarstream eval`: public benchmarks with their published scoring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polarstream.cli.options import JsonOption, examples
from polarstream.cli.output import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from polarstream.nab_report import NabReport, Part, Result

app = typer.Typer(help="Score a detector on public benchmarks, as published.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "polarstream eval nab NAB/data --detector ewz",
        "polarstream eval nab NAB/data --detector ewz --detector-config warmup=200 --json",
    )
)
def nab(
    path: Annotated[Path, typer.Argument(help="Folder of NAB's categories, with combined_windows.json.")],
    detector: Annotated[str, typer.Option(help="Name of the detector.")] = "auto",
    detector_config: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A parameter of the detector; repeatable.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Numenta Anomaly Benchmark: three profiles, with the shipped, a fitted and held-out thresholds."""
    from anomaly.evaluation.nab import load_corpus
    from polarstream.backtest import detector_table, parse_settings
    from polarstream.nab_report import evaluate_nab

    table = detector_table(detector, parse_settings(detector_config or []))
    files = load_corpus(path)
    with progress_bar(f"NAB with {detector}", show=not json) as move:
        report = evaluate_nab(files, table, move)
    if json:
        print_json(report)
    else:
        _print_nab(report)


def _print_nab(report: NabReport) -> None:
    from polarstream.nab_report import PUBLISHED

    print(f"NAB, {report.files} files, {report.rows:,} rows, {report.windows} windows: {report.detector}\n")
    ways = ["shipped threshold", "fitted on these files", "held-out categories"]
    rows = []
    for label, profiles in ((report.detector, report.profiles), ("windowed Gaussian", report.reference)):
        for name, found in profiles.items():
            rows.append([label, name, *map(_figure, (found.shipped, found.fitted, found.held_out))])
            if label != report.detector:
                rows[-1][2] = "-"  # it ships none
    print_table(["detector", "profile", *ways], rows)
    print(
        "\n0: says nothing, 100: perfect; ± standard error over draws of the files. What a new file gets: "
        "held-out\n(each category with the threshold that is best on the others), or the shipped threshold.\n"
    )
    head = ["", "rows", "windows", "found", "false rows", "points lost", "held-out"]
    for parts in (report.by_category, report.by_file):
        print_table(head, [*map(_part, parts)])
        print()
    print(
        "Published, standard profile, fitted on all 58 files (another part gives other figures, by 5 or so):"
    )
    print_table(["detector", "score"], [[name, f"{score:.1f}"] for name, score in PUBLISHED.items()])


def _figure(result: Result) -> str:
    return f"{result.score:.1f} ± {result.error:.1f}"


def _part(part: Part) -> list[object]:
    return [
        part.name,
        part.rows,
        part.windows,
        part.found,
        part.false_positives,
        f"{part.points_lost:.2f}",
        f"{part.points_lost_held_out:.2f}",
    ]


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
