"""A picture of what the optimiser tried: size against what each model keeps, with the Pareto front.

PNG by matplotlib, which comes with the extra `plots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gpu_inference.optimiser.measure import Measured
    from gpu_inference.optimiser.search import Budget

_GREY, _BLUE, _RED, _GREEN = "#999999", "#0072b2", "#d55e00", "#009e73"
_LABELS: Final = 12


def write_front(
    path: Path,
    name: str,
    tried: Sequence[Measured],
    front: Sequence[Measured],
    best: Measured | None = None,
    budget: Budget | None = None,
) -> None:
    """Write a picture of 1200 by 700 pixels.

    Args:
        path: of the PNG.
        name: of the model.
        tried: all of them, the original too.
        front: those that no other beats, by size.
        best: the chosen one.
        budget: whose limits are drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plots") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    # no pyplot: it keeps every figure, and would look for a screen
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot([m.ratio for m in tried], [m.kept for m in tried], "o", ms=5, color=_GREY, label="tried")
        axes.plot(
            [m.ratio for m in front], [m.kept for m in front], "o-", ms=6, lw=1, color=_BLUE, label="front"
        )
        for one in front[:_LABELS]:
            axes.annotate(one.recipe, (one.ratio, one.kept), (4, -10), textcoords="offset points", fontsize=8)
        if best is not None:
            axes.plot([best.ratio], [best.kept], "o", ms=12, mfc="none", mew=2, color=_GREEN, label="best")
        if budget is not None:
            axes.axhline(budget.floor, lw=0.8, ls="--", color=_RED, label="floor")
            if budget.size is not None:
                axes.axvline(budget.size, lw=0.8, ls=":", color=_RED, label="budget")
        axes.set(xlabel="size, by the original's", ylabel="kept", xlim=(0, None))
        axes.set_title(f"{name}: {len(tried)} models", loc="left")
        axes.legend(loc="lower right", frameon=False)
        figure.savefig(path)
