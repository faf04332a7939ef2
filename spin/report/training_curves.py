"""Plots of the report: the loss and the other logged quantities over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from spin.report.figures import Line, make_lines
from spin.report.plot_rendering import Palette, Plot
from spin.report.run_report import Curve, RunReport

CURVE_ORDER = (
    "rewards/chosen",
    "logps/chosen",
    "rewards/margins",
    "rewards/accuracies",
    "kl",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
)
"""Order of the training curves after the losses. Other curves follow in the order of the log."""

PARTNERS = {"rewards/chosen": "rewards/rejected", "logps/chosen": "logps/rejected"}
"""Curves that share a plot: the first solid, the second dotted."""

MAX_CURVES = 25
"""Of more iterations, the curves are joined to one, and their starts are not marked."""

MAX_POINTS = 600
"""A longer curve is drawn as means over equal stretches of steps, which keeps the page small."""


def plot_training(runs: Sequence[RunReport]) -> list[Plot]:
    """Return one plot for each logged quantity over the steps of all iterations."""
    lines = make_lines(runs)
    return _plot_curves(lines, [line.curves for line in lines])


def plot_warmup(runs: Sequence[RunReport]) -> list[Plot]:
    """Return one plot for each logged quantity over the optimizer steps of the warm start."""
    lines = [line for line in make_lines(runs) if not line.dashed]
    return _plot_curves(lines, [line.warmup_curves for line in lines])


def thin(curve: Curve, key: str, max_points: int) -> tuple[list[float], list[float]]:
    """Return at most `max_points` steps and values: means over stretches of finite values."""
    # Steps without the metric are left out.
    steps, values = [], []
    for step, value in zip(curve.steps, curve.values.get(key, []), strict=False):
        if math.isfinite(value):
            steps.append(step)
            values.append(value)

    # The mean over stretches of `size` steps.
    size = max(1, math.ceil(len(steps) / max_points))
    mean_steps, mean_values = [], []
    for first in range(0, len(steps), size):
        stretch = slice(first, first + size)
        count = len(steps[stretch])
        mean_steps.append(sum(steps[stretch]) / count)
        mean_values.append(sum(values[stretch]) / count)
    return mean_steps, mean_values


def join_curves(curves: list[Curve]) -> list[Curve]:
    """Return many curves of one or two steps each as one curve; a few curves as they are."""
    if len(curves) <= MAX_CURVES:
        return curves
    keys: dict[str, None] = {}
    for curve in curves:
        keys.update(dict.fromkeys(curve.values))
    steps: list[int] = []
    values: dict[str, list[float]] = {key: [] for key in keys}
    for curve in curves:
        steps += curve.steps
        for key in keys:
            values[key] += curve.values.get(key, [math.nan] * len(curve.steps))
    return [Curve(steps, values)]


def _plot_curves(lines: Sequence[Line], curves: Sequence[list[Curve]]) -> list[Plot]:
    """Return one plot for each key of the curves. `curves`: those of each line."""
    # A dict in place of a set, to keep the order in which the keys were logged.
    keys: dict[str, None] = {}
    for line_curves in curves:
        for curve in line_curves:
            keys.update(dict.fromkeys(curve.values))

    # A partner is drawn in the plot of its key, so it has none of its own.
    plots = []
    losses = [key for key in keys if key.startswith("loss of ")]
    for key in dict.fromkeys([*losses, *CURVE_ORDER, *keys]):
        if key not in keys or key in PARTNERS.values():
            continue
        group = [key]
        if PARTNERS.get(key) in keys:
            group.append(PARTNERS[key])
        plots.append(_plot_curve(group, lines, curves))
    return plots


def _plot_curve(keys: list[str], lines: Sequence[Line], curves: Sequence[list[Curve]]) -> Plot:
    """Return the plot of one key, or of a key and its partner. `curves`: those of each line."""
    # The first and the last value in words, for readers who cannot see the plot.
    parts = []
    for line, line_curves in zip(lines, curves, strict=True):
        for key in keys:
            values: list[float] = []
            for curve in line_curves:
                values += filter(math.isfinite, curve.values.get(key, []))
            if values:
                parts.append(f"{line.label}, {key}: from {values[0]:.4g} to {values[-1]:.4g}")

    joined = [join_curves(line_curves) for line_curves in curves]

    def draw(axes: Axes, palette: Palette) -> None:
        for line, line_curves in zip(lines, joined, strict=True):
            for curve in line_curves:
                # The curves of a line share the points. Two points are the least that make a line.
                max_points = max(2, MAX_POINTS // len(line_curves))
                for key in keys:
                    steps, values = thin(curve, key, max_points)
                    style = {"color": palette.series[line.colour], "linestyle": "-", "linewidth": 1.4, "marker": ""}
                    if key != keys[0]:
                        style["linestyle"] = ":"
                    elif line.dashed:
                        style["linestyle"] = "--"
                    # A single point makes no line.
                    if len(steps) == 1:
                        style["marker"] = "o"
                    axes.plot(steps, values, markersize=4, **style)  # type: ignore[arg-type]
        # The start of each further iteration; with several lines the marks would mix.
        if len(lines) == 1:
            for curve in joined[0][1:]:
                axes.axvline(curve.steps[0] - 0.5, color=palette.faint, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_xlabel("optimizer step")
        if keys == ["learning_rate"]:
            axes.ticklabel_format(axis="y", scilimits=(-3, 3))

    title = keys[0]
    if len(keys) == 2:
        title = f"{keys[0]} (solid) and {keys[1].partition('/')[2]} (dotted)"
    return Plot(title, "; ".join(parts), draw)
