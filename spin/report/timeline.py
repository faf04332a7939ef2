"""Plot of the report: the stages of a run as bars over the wall clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes

from spin.report.plot_rendering import LegendEntry, Palette, Plot
from spin.report.run_report import RunReport, Span

STAGE_COLOURS = {"generate": 0, "reward": 3, "score": 4, "train": 1, "benchmark": 2}
"""Kinds of stages, and the index of their colour in `Palette.series`."""

LANES = {"generate": -0.21, "reward": 0.0, "score": 0.0, "train": 0.21}
"""Vertical offset of a bar within its row, where stages of one policy ran at the same time."""


def list_stage_kinds(runs: Sequence[RunReport]) -> list[str]:
    """Return the kinds of stages in order; ``reward`` only if a run has reward sources."""
    has_rewards = False
    for run in runs:
        for span in run.spans:
            has_rewards = has_rewards or span.kind == "reward"
    kinds = list(STAGE_COLOURS)
    if not has_rewards:
        kinds.remove("reward")
    return kinds


def make_stage_legend(runs: Sequence[RunReport]) -> list[LegendEntry]:
    """Return the legend of the time line."""
    return [LegendEntry(kind, STAGE_COLOURS[kind]) for kind in list_stage_kinds(runs)]


def plot_timeline(run: RunReport) -> Plot:
    """Return the stages of a run over the wall clock, one row for each policy.

    The time in which the run was stopped is left out. Stages that ran at the same time are drawn in
    lanes of one row.
    """
    spans, pauses = without_pauses(run.spans)
    rows = list(dict.fromkeys(span.policy for span in spans))
    overlapped = set()
    # The seconds are also written out, for readers who cannot see the plot.
    parts = []
    for span in spans:
        if span.beside:
            overlapped.add(span.policy)
        part = f"{span.policy} {span.kind} {span.end - span.start:.1f} s"
        if not span.finished:
            part += ", unfinished"
        parts.append(part)

    def draw(axes: Axes, palette: Palette) -> None:
        longest = max((span.end for span in spans), default=0.0)
        unit, unit_name = _time_unit(longest)
        for span in spans:
            # A bar narrower than 1/400 of the axis could not be seen.
            width = max(span.end - span.start, longest / 400) / unit
            # One row a policy, the first on top. Overlapped work has narrow bars in lanes.
            row: float = rows.index(span.policy)
            height = 0.62
            if span.policy in overlapped:
                row += LANES.get(span.kind, 0.0)
                height = 0.2
            colour = palette.series[STAGE_COLOURS[span.kind]]
            bars = axes.barh(row, width, left=span.start / unit, height=height, color=colour)
            if not span.finished:
                bars.patches[0].set(alpha=0.5, hatch="///")
        # A dashed line where the run was stopped for a time.
        for pause in pauses:
            axes.axvline(pause / unit, color=palette.ink, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"wall clock, {unit_name}")

    return Plot(run.name, "; ".join(parts), draw)


def _time_unit(seconds: float) -> tuple[int, str]:
    """Return the unit for an axis of this length: its seconds and its name."""
    if seconds > 3 * 3600:
        return 3600, "hours"
    if seconds > 300:
        return 60, "minutes"
    return 1, "seconds"


def without_pauses(spans: Sequence[Span]) -> tuple[list[Span], list[float]]:
    """Return the spans in seconds since the first start without pauses, and where those were.

    A pause is a gap of more than a minute and more than a fifth of the working time.
    """
    if not spans:
        return [], []
    working = sum(span.end - span.start for span in spans)
    limit = max(60.0, 0.2 * working)
    # All spans after a pause move to the left by its length.
    offset = spans[0].start
    latest = spans[0].start
    shifted: list[Span] = []
    pauses: list[float] = []
    for span in sorted(spans, key=lambda span: span.start):
        gap = span.start - latest
        if gap > limit:
            pauses.append(latest - offset)
            offset += gap
        latest = max(latest, span.end)
        shifted.append(replace(span, start=span.start - offset, end=span.end - offset))
    return shifted, pauses
