"""Pictures of a backtest: the values with anomalies marked, the score below with its threshold.

PNG by matplotlib; HTML by bokeh, one file that needs no network. Both come with the extra `plots`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streams.errors import MissingExtra

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from polarstream.backtest import Scored

#: Rows of the HTML page, which a browser has to hold; all anomalies, and of the rest each so many-th.
MOST_POINTS: Final = 20_000
COLUMNS_SHOWN: Final = 8
_RED: Final = "#c0392b"
#: Colours that people who see no red or green tell apart (M. Okabe, K. Ito).
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#d55e00", "#999999", "#000000")
_THRESHOLD: Final = 0.5


def write_plots(path: Path, scored: Scored) -> list[Path]:
    """Write a picture; the ending says which: `.png`, `.html`, none for both.

    Returns:
        What was written.

    Raises:
        MissingExtra: matplotlib or bokeh is not installed.
    """
    writers = {".png": write_png, ".html": write_html}
    kinds = [path.suffix] if path.suffix in writers else list(writers)
    written = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        target = path if path.suffix == kind else path.with_name(path.name + kind)
        writers[kind](target, scored)
        written.append(target)
    return written


def write_png(path: Path, scored: Scored) -> None:
    """Write a picture of 1400 by 700 pixels."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plots") from None
    recording = scored.recording
    at = _moments(recording.ts)
    hits = np.flatnonzero(scored.is_anomaly[recording.rows])
    scores = scored.scores[recording.rows]
    # no pyplot: it keeps every figure, and would look for a screen
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(14, 7), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for j, column in enumerate(recording.columns[:COLUMNS_SHOWN]):
            upper.plot(at, recording.values[:, j], lw=0.8, color=_COLOURS[j], label=column)
        worst = np.minimum(scored.worst[recording.rows][hits], len(recording.columns) - 1)
        shown = worst < COLUMNS_SHOWN
        upper.plot(
            at[hits][shown],
            recording.values[hits, worst][shown],
            "o",
            ms=5,
            mfc="none",
            mec=_RED,
            label="anomaly",
        )
        upper.legend(loc="upper left", frameon=False, ncols=5)
        upper.set_title(_title(scored), loc="left")
        lower.fill_between(at, scores, lw=0, color=_COLOURS[0], alpha=0.25)
        lower.plot(at, scores, lw=0.6, color=_COLOURS[0])
        lower.plot(at[hits], scores[hits], "o", ms=3, color=_RED)
        lower.axhline(_THRESHOLD, lw=0.8, ls="--", color=_RED)
        lower.annotate(
            "threshold",
            (0, _THRESHOLD),
            (3, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=_RED,
            fontsize=8,
        )
        lower.set(ylim=(0, 1), ylabel="score")
        locator = AutoDateLocator(tz=UTC)
        lower.xaxis.set_major_locator(locator)
        lower.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
        figure.savefig(path)


def write_html(path: Path, scored: Scored) -> None:
    """Write a page with both panels, which zoom together; bokeh's scripts are in it."""
    try:
        from bokeh.embed import file_html
        from bokeh.layouts import column as stack
        from bokeh.models import ColumnDataSource, HoverTool, Span
        from bokeh.plotting import figure
        from bokeh.resources import INLINE
    except ImportError:
        raise MissingExtra("bokeh", "plots") from None
    recording = scored.recording
    kept = _thin(scored)
    at, values = _moments(recording.ts[kept]), recording.values[kept]
    rows = recording.rows[kept]
    scores, hits = scored.scores[rows], scored.is_anomaly[rows]
    worst = np.minimum(scored.worst[rows], len(recording.columns) - 1)
    shared: dict[str, Any] = {"tools": "pan,xwheel_zoom,box_zoom,reset,save", "sizing_mode": "stretch_width"}
    upper = figure(height=420, x_axis_type="datetime", title=_title(scored), **shared)
    lower = figure(
        height=220,
        x_axis_type="datetime",
        x_range=upper.x_range,
        y_range=(0, 1),
        y_axis_label="score",
        **shared,
    )
    for j, name in enumerate(recording.columns[:COLUMNS_SHOWN]):
        upper.line(at, values[:, j], color=_COLOURS[j], legend_label=name)
    marked = np.flatnonzero(hits)
    source = ColumnDataSource(
        {
            "at": at[marked],
            "value": values[marked, worst[marked]],
            "score": scores[marked],
            "column": [recording.columns[j] for j in worst[marked].tolist()],
            "text": [recording.timestamps[row] for row in rows[marked].tolist()],
        }
    )
    dots = upper.scatter(
        "at",
        "value",
        source=source,
        size=8,
        fill_alpha=0,
        line_color=_RED,
        line_width=1.5,
        legend_label="anomaly",
    )
    tips = [("time", "@text"), ("column", "@column"), ("value", "@value"), ("score", "@score{0.000}")]
    upper.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    upper.legend.location, upper.legend.click_policy = "top_left", "hide"
    lower.line(at, scores, color=_COLOURS[0])
    lower.scatter("at", "score", source=source, size=5, color=_RED)
    lower.add_layout(Span(location=_THRESHOLD, dimension="width", line_dash="dashed", line_color=_RED))
    page = file_html(stack(upper, lower, sizing_mode="stretch_width"), INLINE, title=recording.name)
    path.write_text(page, encoding="utf-8")


def _title(scored: Scored) -> str:
    opened = len({alert.id for alert in scored.alerts if alert.state == "firing"})
    rows, hits = len(scored.ratio), int(scored.is_anomaly.sum())
    hidden = len(scored.recording.columns) - COLUMNS_SHOWN
    more = f"; {hidden} more columns not shown" if hidden > 0 else ""
    return f"{scored.recording.name}: {rows:,} rows, {hits:,} anomalies, {opened:,} alerts{more}"


def _moments(ts: NDArray[np.float64]) -> NDArray[np.datetime64]:
    """Return times as datetime64 [n]; those out of the calendar of both libraries are held at its ends."""
    limits = (datetime(1, 1, 2, tzinfo=UTC).timestamp(), datetime(9999, 12, 30, tzinfo=UTC).timestamp())
    return (np.clip(ts, *limits) * 1000).astype("datetime64[ms]")


def _thin(scored: Scored) -> NDArray[np.intp]:
    """Return the places among the usable rows that the page shows."""
    rows = scored.recording.rows
    step = -(-len(rows) // MOST_POINTS)
    keep = scored.is_anomaly[rows].copy()
    keep[::step] = True
    return np.flatnonzero(keep)
