"""Plots of the report: held-out metrics over iterations, training curves over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from spin.report.metric_titles import HELDOUT_TITLES, SPEED_TITLES, title_of
from spin.report.plot_rendering import LIGHT, LegendEntry, Palette, Plot
from spin.report.run_report import Curve, PolicyReport, RunReport

HEADLINES = ("exact_match_sampled", "exact_match_greedy", "nll")
"""Metrics of the summary; they come first among the plots."""


CURVE_ORDER = (
    "loss",
    "rewards/chosen",
    "logps/chosen",
    "rewards/margins",
    "rewards/accuracies",
    "kl",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
)
"""Order of the training curves. Other curves follow in the order in which they were logged."""


PARTNERS = {"rewards/chosen": "rewards/rejected", "logps/chosen": "logps/rejected"}
"""Curves that share a plot: the first solid, the second dotted."""


MAX_POINTS = 600
"""A longer curve is drawn as means over equal stretches of steps, which keeps the page small."""


@dataclass(frozen=True)
class Line:
    """One line in all plots: the policies of a run's iterations, or of its baseline."""

    label: str
    colour: int
    """Index into `Palette.series`."""
    dashed: bool
    policies: list[PolicyReport]

    @property
    def curves(self) -> list[Curve]:
        """The training curves of the iterations, end to end, without the warm start's."""
        return chain([policy.curve for policy in self.policies if policy.iteration >= 0 and policy.curve])

    @property
    def warmup_curves(self) -> list[Curve]:
        """The training curve of the warm start, if there is one."""
        return chain([policy.curve for policy in self.policies if policy.iteration < 0 and policy.curve])


def make_lines(runs: Sequence[RunReport]) -> list[Line]:
    """Return a solid line for each run, and a dashed one for its baseline from the same start.

    With a single run the baseline has a colour of its own; with several it has the run's.
    """
    lines = []
    num_colours = len(LIGHT.series)
    for index, run in enumerate(runs):
        start = [policy for policy in run.policies if policy.iteration < 0]
        own = [policy for policy in run.policies if not policy.baseline]
        baseline = [policy for policy in run.policies if policy.baseline]
        colour = index % num_colours
        lines.append(Line(run.name, colour, False, own))
        if baseline:
            if len(runs) == 1:
                colour = 1
            lines.append(Line(f"{run.name}: baseline", colour, True, start + baseline))
    return lines


def make_legend(lines: Sequence[Line]) -> list[LegendEntry]:
    """Return the legend of the plots that have these lines."""
    return [LegendEntry(line.label, line.colour, line.dashed) for line in lines]


def list_metrics(runs: Sequence[RunReport]) -> list[str]:
    """Return the held-out metrics that any policy has, in the order of the page."""
    found: set[str] = set()
    for run in runs:
        for policy in run.policies:
            found.update(policy.metrics)
    return _in_order(found, HELDOUT_TITLES)


def list_speeds(runs: Sequence[RunReport]) -> list[str]:
    """Return the measures of throughput and memory that any policy has.

    Seconds are left out: the time line shows them.
    """
    found: set[str] = set()
    for run in runs:
        for policy in run.policies:
            found.update(name for name in policy.speed if not name.startswith("seconds"))
    return _in_order(found, SPEED_TITLES)


def _in_order(found: Iterable[str], order: Iterable[str]) -> list[str]:
    """Return the names in `found`: first those of `order`, then the others by name."""
    found, order = set(found), list(order)
    return [name for name in order if name in found] + sorted(found.difference(order))


def plot_metrics(runs: Sequence[RunReport]) -> list[Plot]:
    """Return one plot for each held-out metric over the iterations, with 95 % intervals."""
    names = [name for name in list_metrics(runs) if name != "heldout"]
    headlines = [name for name in HEADLINES if name in names]
    others = [name for name in names if name not in HEADLINES]
    lines = make_lines(runs)
    return [_plot_metric(name, lines) for name in headlines + others]


def plot_speeds(runs: Sequence[RunReport]) -> list[Plot]:
    """Return one plot for each measure of throughput and memory, over the iterations."""
    lines = make_lines(runs)
    return [_plot_metric(name, lines) for name in list_speeds(runs)]


@dataclass(frozen=True)
class _Point:
    """The metric of a policy. `below`, `above`: lengths of the error bar, 0 without an interval."""

    label: str
    iteration: int
    value: float
    below: float
    above: float


def _points(policies: Sequence[PolicyReport], name: str) -> list[_Point]:
    points = []
    for policy in policies:
        value = policy.metrics.get(name, policy.speed.get(name))
        if value is None:
            continue
        low, high = policy.intervals.get(name, (value, value))
        below = 0.0
        above = 0.0
        # An infinite end has no bar: matplotlib could not scale the axis.
        if math.isfinite(low):
            below = max(0.0, value - low)
        if math.isfinite(high):
            above = max(0.0, high - value)
        points.append(_Point(policy.label, policy.iteration, value, below, above))
    return points


def _plot_metric(name: str, lines: Sequence[Line]) -> Plot:
    points = {line.label: _points(line.policies, name) for line in lines}
    parts = []
    for label, line_points in points.items():
        values = ", ".join(f"{point.label} {point.value:.4g}" for point in line_points)
        if values:
            parts.append(f"{label}: {values}")

    def draw(axes: Axes, palette: Palette) -> None:
        last = 0
        for line in lines:
            line_points = points[line.label]
            _draw_points(axes, line_points, line, palette)
            last = max([last, *(point.iteration for point in line_points)])
        # At most nine labels fit under a plot.
        every = max(1, math.ceil((last + 1) / 8))
        iterations = list(range(0, last + 1, every))
        axes.set_xticks([-1, *iterations], ["start", *map(str, iterations)])
        axes.set_xlim(-1.4, last + 0.4)
        axes.set_xlabel("iteration")

    return Plot(title_of(name), "; ".join(parts), draw)


def _draw_points(axes: Axes, points: Sequence[_Point], line: Line, palette: Palette) -> None:
    linestyle, marker, capsize = "-", "o", 0
    if line.dashed:
        linestyle, marker = "--", "s"
    if any(point.below + point.above for point in points):
        capsize = 3
    axes.errorbar(
        [point.iteration for point in points],
        [point.value for point in points],
        yerr=[[point.below for point in points], [point.above for point in points]],
        color=palette.series[line.colour],
        linestyle=linestyle,
        linewidth=1.6,
        marker=marker,
        markersize=4.5,
        capsize=capsize,
        elinewidth=1,
    )


def plot_training(runs: Sequence[RunReport]) -> list[Plot]:
    """Return one plot for each logged quantity over the steps of all iterations."""
    lines = make_lines(runs)
    return _plot_curves(lines, [line.curves for line in lines])


def plot_warmup(runs: Sequence[RunReport]) -> list[Plot]:
    """Return one plot for each logged quantity over the optimizer steps of the warm start."""
    lines = [line for line in make_lines(runs) if not line.dashed]
    return _plot_curves(lines, [line.warmup_curves for line in lines])


def chain(curves: Iterable[Curve]) -> list[Curve]:
    """Return the curves end to end: the steps of each follow those of the one before."""
    chained: list[Curve] = []
    last = 0
    for curve in curves:
        steps = [last + step for step in curve.steps]
        last = steps[-1]
        chained.append(Curve(steps, curve.values))
    return chained


def thin(curve: Curve, key: str, max_points: int) -> tuple[list[float], list[float]]:
    """Return at most `max_points` steps and values: means over stretches of finite values."""
    steps, values = [], []
    for step, value in zip(curve.steps, curve.values.get(key, []), strict=False):
        if math.isfinite(value):
            steps.append(step)
            values.append(value)
    size = max(1, math.ceil(len(steps) / max_points))
    mean_steps, mean_values = [], []
    for first in range(0, len(steps), size):
        stretch = slice(first, first + size)
        count = len(steps[stretch])
        mean_steps.append(sum(steps[stretch]) / count)
        mean_values.append(sum(values[stretch]) / count)
    return mean_steps, mean_values


def _plot_curves(lines: Sequence[Line], curves: Sequence[list[Curve]]) -> list[Plot]:
    """Return one plot for each key of the curves. `curves`: those of each line."""
    keys: dict[str, None] = {}
    for line_curves in curves:
        for curve in line_curves:
            keys.update(dict.fromkeys(curve.values))
    ordered = [key for key in CURVE_ORDER if key in keys]
    ordered += [key for key in keys if key not in CURVE_ORDER and key not in PARTNERS.values()]
    plots = []
    for key in ordered:
        group = [key]
        if PARTNERS.get(key) in keys:
            group.append(PARTNERS[key])
        plots.append(_plot_curve(group, lines, curves))
    return plots


def _plot_curve(keys: list[str], lines: Sequence[Line], curves: Sequence[list[Curve]]) -> Plot:
    parts = []
    for line, line_curves in zip(lines, curves, strict=True):
        for key in keys:
            values: list[float] = []
            for curve in line_curves:
                values += filter(math.isfinite, curve.values.get(key, []))
            if values:
                parts.append(f"{line.label}, {key}: from {values[0]:.4g} to {values[-1]:.4g}")

    def draw(axes: Axes, palette: Palette) -> None:
        for line, line_curves in zip(lines, curves, strict=True):
            for curve in line_curves:
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
            for curve in curves[0][1:]:
                axes.axvline(curve.steps[0] - 0.5, color=palette.faint, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_xlabel("optimizer step")
        if keys == ["learning_rate"]:
            axes.ticklabel_format(axis="y", scilimits=(-3, 3))

    title = keys[0]
    if len(keys) == 2:
        title = f"{keys[0]} (solid) and {keys[1].partition('/')[2]} (dotted)"
    return Plot(title, "; ".join(parts), draw)
