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


MAX_POLICIES = 30
"""Of more policies, the time line has one row for each kind of work."""


def list_rows(spans: Sequence[Span]) -> list[str]:
    """Return the labels of the rows: the policies, or the kinds of work of many policies."""
    policies = list(dict.fromkeys(span.policy for span in spans))
    if len(policies) <= MAX_POLICIES:
        return policies
    kinds = {span.kind for span in spans}
    return [kind for kind in STAGE_COLOURS if kind in kinds]


def plot_timeline(run: RunReport) -> Plot:
    """Return the stages of a run over the wall clock, with the rows of `list_rows`.

    The time in which the run was stopped is left out. Stages that ran at the same time are drawn in
    lanes of one row.
    """
    spans, pauses = without_pauses(run.spans)
    rows = list_rows(spans)
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
        # Bars of one row and colour are drawn together, since a run may have thousands.
        bars_of: dict[tuple[float, float, str, bool], list[tuple[float, float]]] = {}
        for span in spans:
            # A bar narrower than 1/400 of the axis could not be seen.
            width = max(span.end - span.start, longest / 400) / unit
            # The first row is on top. Overlapped work of a policy has narrow bars in lanes.
            by_policy = span.policy in rows
            row: float = rows.index(span.policy if by_policy else span.kind)
            height = 0.62
            if by_policy and span.policy in overlapped:
                row += LANES.get(span.kind, 0.0)
                height = 0.2
            bars = bars_of.setdefault((row, height, span.kind, span.finished), [])
            bars.append((span.start / unit, width))
        for (row, height, kind, finished), bars in bars_of.items():
            colour = palette.series[STAGE_COLOURS[kind]]
            drawn = axes.broken_barh(bars, (row - height / 2, height), facecolors=colour)
            if not finished:
                drawn.set(alpha=0.5, hatch="///")
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
