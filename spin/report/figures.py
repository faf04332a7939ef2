"""Plots of the report: held-out metrics, throughput and memory over the iterations."""

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
        return join_curves(policy.curve for policy in self.policies if policy.iteration >= 0)

    @property
    def warmup_curves(self) -> list[Curve]:
        """The training curve of the warm start, if there is one."""
        return join_curves(policy.curve for policy in self.policies if policy.iteration < 0)


def make_lines(runs: Sequence[RunReport]) -> list[Line]:
    """Return a solid line for each run, and a dashed one for its baseline from the same start.

    With a single run the baseline has a colour of its own; with several it has the run's.
    """
    lines = []
    num_colours = len(LIGHT.series)
    for index, run in enumerate(runs):
        # Both lines begin with the starting policy.
        own: list[PolicyReport] = []
        baseline: list[PolicyReport] = []
        for policy in run.policies:
            if policy.iteration < 0 or not policy.baseline:
                own.append(policy)
            if policy.iteration < 0 or policy.baseline:
                baseline.append(policy)
        # After the last colour the first one is used again.
        colour = index % num_colours
        lines.append(Line(run.name, colour, False, own))
        has_baseline = any(policy.baseline for policy in baseline)
        if has_baseline:
            if len(runs) == 1:
                colour = 1
            lines.append(Line(f"{run.name}: baseline", colour, True, baseline))
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
            for name in policy.speed:
                if not name.startswith("seconds"):
                    found.add(name)
    return _in_order(found, SPEED_TITLES)


def _in_order(found: set[str], order: Iterable[str]) -> list[str]:
    """Return the names in `found`: first those of `order`, then the others by name."""
    first = [name for name in order if name in found]
    return first + sorted(found.difference(first))


def plot_metrics(runs: Sequence[RunReport]) -> list[Plot]:
    """Return one plot for each held-out metric over the iterations, with 95 % intervals."""
    # The number of held-out prompts is no metric of a policy: it is the same for all.
    names = set(list_metrics(runs)) - {"heldout"}
    order = [*HEADLINES, *list_metrics(runs)]
    lines = make_lines(runs)
    return [_plot_metric(name, lines) for name in dict.fromkeys(order) if name in names]


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
        # A metric without an interval gets one of length 0, which draws no bar.
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
    # The values are also written out, for readers who cannot see the plot.
    points = {}
    parts = []
    for line in lines:
        line_points = _points(line.policies, name)
        points[line.label] = line_points
        values = ", ".join(f"{point.label} {point.value:.4g}" for point in line_points)
        if values:
            parts.append(f"{line.label}: {values}")

    def draw(axes: Axes, palette: Palette) -> None:
        last = 0
        for line in lines:
            line_points = points[line.label]
            _draw_points(axes, line_points, line, palette)
            for point in line_points:
                last = max(last, point.iteration)
        # The start is at -1, before iteration 0.
        iterations = choose_labels(last)
        axes.set_xticks([-1, *iterations], ["start", *map(str, iterations)])
        axes.set_xlim(-1.4, last + 0.4)
        axes.set_xlabel("iteration")

    return Plot(title_of(name), "; ".join(parts), draw)


def choose_labels(last: int) -> list[int]:
    """Return the numbers from 0 to `last` that are written under a plot, at most eight.

    Of more, multiples of 2, 5, 10, 20 and so on are written, and not 0, which is too close to the
    start.
    """
    if last < 8:
        return list(range(last + 1))
    power = 1
    while True:
        for factor in (1, 2, 5):
            step = factor * power
            if last // step <= 8:
                return list(range(step, last + 1, step))
        power *= 10


def _draw_points(axes: Axes, points: Sequence[_Point], line: Line, palette: Palette) -> None:
    """Draw the points of one line with their error bars."""
    # matplotlib takes one list for each coordinate.
    iterations: list[int] = []
    values: list[float] = []
    below: list[float] = []
    above: list[float] = []
    for point in points:
        iterations.append(point.iteration)
        values.append(point.value)
        below.append(point.below)
        above.append(point.above)
    linestyle, marker, capsize = "-", "o", 0
    if line.dashed:
        linestyle, marker = "--", "s"
    # Without an interval, the caps of the bars would be drawn as strokes through the points.
    if sum(below) + sum(above) > 0:
        capsize = 3
    axes.errorbar(
        iterations,
        values,
        yerr=[below, above],
        color=palette.series[line.colour],
        linestyle=linestyle,
        linewidth=1.6,
        marker=marker,
        markersize=4.5,
        capsize=capsize,
        elinewidth=1,
    )


def join_curves(curves: Iterable[Curve | None]) -> list[Curve]:
    """Return the curves end to end: the steps of each follow those of the one before.

    None stands for a policy that was not trained; it is left out.
    """
    joined: list[Curve] = []
    last = 0
    for curve in curves:
        if curve is None:
            continue
        steps = [last + step for step in curve.steps]
        last = steps[-1]
        joined.append(Curve(steps, curve.values))
    return joined
