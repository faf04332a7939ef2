"""The pictures of a report, each a function that draws into one axis: as SVG inside the page they follow its colours, as PNG they stand in grids."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spin.records import finish_file
from spin.report import Curve, PolicyReport, RunReport, Span

INK, FAINT, PAPER = "#1d2129", "#9aa1ab", "#fefefe"
SERIES = ("#0b62a8", "#c2501b", "#1a7a4c", "#8145a0", "#946200", "#b3265f", "#3b6f7d", "#6b5b4b")
"""One colour a series; they start again after the last."""
KINDS = {"generate": SERIES[0], "score": SERIES[4], "train": SERIES[1], "benchmark": SERIES[2]}
VARIABLES = {INK: "--ink", FAINT: "--faint", PAPER: "--paper", **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)}}
"""The style sheet's name of each colour: the page has another set for the dark."""
STYLE = {
    "text.parse_math": False,  # a run may be called $x$
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "spin",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
}
TITLES = {
    "exact_match_greedy": "exact match, greedy",
    "exact_match_sampled": "exact match, sampled",
    "nll": "NLL of the truth, nats a token",
    "win_rate": "win rate of the truth",
    "kl_to_start": "KL to the start, nats an answer",
    "length_greedy": "length, greedy, tokens",
    "length_sampled": "length, sampled, tokens",
    "repetition_greedy": "repeated 4-grams, greedy",
    "repetition_sampled": "repeated 4-grams, sampled",
    "cut": "cut at the limit, share",
}
"""Figures in the order of the page; others follow under their own names."""
HEADLINES = ("exact_match_sampled", "exact_match_greedy", "nll")
"""Those that are compared at a glance, and come first among the pictures."""
POINTS = 600
"""A curve of more steps is drawn by means over equal stretches: nobody sees more, and the page stays small."""


@dataclass(frozen=True)
class Line:
    """One line of the pictures: the iterations of a run, or those of its baseline."""

    label: str
    colour: str
    dashed: bool
    policies: list[PolicyReport]


@dataclass(frozen=True)
class Picture:
    """A picture with what it shows in words, for those who do not see it."""

    title: str
    text: str
    draw: Callable[[Axes], None]


def lines_of(runs: Sequence[RunReport]) -> list[Line]:
    """A line a run, and a dashed one for its baseline, which begins at the same start: of a colour of its own where there is one run only."""
    found = []
    for index, run in enumerate(runs):
        start = [policy for policy in run.policies if policy.iteration < 0]
        baseline = [policy for policy in run.policies if policy.baseline]
        found.append(Line(run.name, SERIES[index % len(SERIES)], False, [policy for policy in run.policies if not policy.baseline]))
        if baseline:
            found.append(Line(f"{run.name}: baseline", SERIES[(1 if len(runs) == 1 else index) % len(SERIES)], True, start + baseline))
    return found


def figure_pictures(runs: Sequence[RunReport]) -> list[Picture]:
    """One picture a held-out figure that any policy has, over the iterations, with intervals."""
    lines = lines_of(runs)
    names = {name for line in lines for policy in line.policies for name in policy.figures} - {"heldout"}
    order = [*HEADLINES, *(name for name in TITLES if name not in HEADLINES), *sorted(names - TITLES.keys())]
    return [_figure_picture(name, lines) for name in order if name in names]


def _figure_picture(name: str, lines: Sequence[Line]) -> Picture:
    parts = [
        f"{line.label}: " + ", ".join(f"{policy.label} {policy.figures[name]:.4g}" for policy in line.policies if name in policy.figures)
        for line in lines
        if any(name in policy.figures for policy in line.policies)
    ]

    def draw(axes: Axes) -> None:
        last = 0
        for line in lines:
            shown = [policy for policy in line.policies if name in policy.figures]
            at, values = [policy.iteration for policy in shown], [policy.figures[name] for policy in shown]
            ends = [policy.intervals.get(name, (value, value)) for policy, value in zip(shown, values, strict=True)]
            below = [max(0.0, value - low) if math.isfinite(low) else 0.0 for value, (low, _) in zip(values, ends, strict=True)]
            above = [max(0.0, high - value) if math.isfinite(high) else 0.0 for value, (_, high) in zip(values, ends, strict=True)]
            mark = {"linestyle": "--" if line.dashed else "-", "marker": "s" if line.dashed else "o", "markersize": 4.5, "linewidth": 1.6}
            axes.errorbar(at, values, yerr=[below, above], color=line.colour, capsize=3 if any(below + above) else 0, elinewidth=1, **mark)  # type: ignore[arg-type]
            last = max([last, *at])
        every = max(1, math.ceil((last + 1) / 8))
        ticks = [-1, *range(0, last + 1, every)]
        axes.set_xticks(ticks, ["start", *map(str, ticks[1:])])
        axes.set_xlim(-1.4, last + 0.4)
        axes.set_xlabel("iteration")

    return Picture(TITLES.get(name, name), "; ".join(parts), draw)


PAIRS = {"rewards/chosen": "rewards/rejected", "logps/chosen": "logps/rejected"}
"""Both halves of a pair share a picture: the chosen solid, the rejected dotted."""
ORDER = ("loss", "rewards/chosen", "logps/chosen", "rewards/margins", "rewards/accuracies", "kl", "grad_norm", "learning_rate", "tokens_per_second")


def training_pictures(runs: Sequence[RunReport]) -> list[Picture]:
    """One picture a logged quantity over the optimizer steps of all iterations; the warm start is not among them."""
    lines = lines_of(runs)
    curves = {line.label: chain([policy.curve for policy in line.policies if policy.iteration >= 0 and policy.curve]) for line in lines}
    return _curve_pictures(lines, curves)


def start_pictures(runs: Sequence[RunReport]) -> list[Picture]:
    """As `training_pictures` for the warm start."""
    lines = [line for line in lines_of(runs) if not line.dashed]
    return _curve_pictures(lines, {line.label: chain([policy.curve for policy in line.policies if policy.iteration < 0 and policy.curve]) for line in lines})


def chain(curves: Sequence[Curve]) -> tuple[Curve, list[int]]:
    """Curves end to end, steps counted on, and the steps at which each but the first begins."""
    steps: list[int] = []
    starts: list[int] = []
    keys = list(dict.fromkeys(key for curve in curves for key in curve.values))
    values: dict[str, list[float]] = {key: [] for key in keys}
    done = 0
    for curve in curves:
        starts.append(done)
        steps += [done + step for step in curve.steps]
        for key in keys:
            values[key] += curve.values.get(key, [math.nan] * len(curve.steps))
        done = steps[-1]
    return Curve(steps, values), starts[1:]


def thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS points: means over equal stretches of the points that have a finite value."""
    points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    size = max(1, math.ceil(len(points) / POINTS))
    parts = list(itertools.batched(points, size)) if hasattr(itertools, "batched") else [points[at : at + size] for at in range(0, len(points), size)]
    return [sum(step for step, _ in part) / len(part) for part in parts], [sum(value for _, value in part) / len(part) for part in parts]


def _curve_pictures(lines: Sequence[Line], curves: dict[str, tuple[Curve, list[int]]]) -> list[Picture]:
    found = list(dict.fromkeys(key for curve, _ in curves.values() for key in curve.values))
    order = [*(key for key in ORDER if key in found), *(key for key in found if key not in ORDER and key not in PAIRS.values())]
    return [_curve_picture(key, [key, PAIRS[key]] if PAIRS.get(key) in found else [key], lines, curves) for key in order]


def _curve_picture(title: str, keys: list[str], lines: Sequence[Line], curves: dict[str, tuple[Curve, list[int]]]) -> Picture:
    parts = []
    for line in lines:
        for key in keys:
            values = [value for value in curves[line.label][0].values.get(key, []) if math.isfinite(value)]
            parts += [f"{line.label}, {key}: from {values[0]:.4g} to {values[-1]:.4g}"] if values else []

    def draw(axes: Axes) -> None:
        for line in lines:
            curve, starts = curves[line.label]
            for key in keys:
                if key not in curve.values:
                    continue
                style = ":" if key != keys[0] else "--" if line.dashed else "-"
                at, values = thin(curve.steps, curve.values[key])
                axes.plot(at, values, color=line.colour, linestyle=style, linewidth=1.4, marker="o" if len(at) == 1 else None, markersize=4)
            for start in starts if len(lines) == 1 else ():
                axes.axvline(start + 0.5, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_xlabel("optimizer step")
        if title == "learning_rate":
            axes.ticklabel_format(axis="y", scilimits=(-3, 3))

    return Picture(title if len(keys) == 1 else f"{title} (solid) and {keys[1].partition('/')[2]} (dotted)", "; ".join(parts), draw)


def timeline(run: RunReport) -> Picture:
    """The stages of a run as bars over the wall clock, a row a policy; time in which the run was stopped is taken out."""
    spans, cuts = without_pauses(run.spans)
    text = "; ".join(f"{span.policy} {span.kind} {span.end - span.start:.1f} s{'' if span.finished else ', unfinished'}" for span in spans)
    rows = list(dict.fromkeys(span.policy for span in spans))

    def draw(axes: Axes) -> None:
        longest = max((span.end for span in spans), default=0.0)
        unit, name = (3600, "hours") if longest > 3 * 3600 else (60, "minutes") if longest > 300 else (1, "seconds")
        for span in spans:
            width = max(span.end - span.start, longest / 400) / unit  # a bar of less could not be seen
            look = {} if span.finished else {"alpha": 0.5, "hatch": "///"}
            axes.barh(rows.index(span.policy), width, left=span.start / unit, height=0.62, color=KINDS[span.kind], **look)  # type: ignore[arg-type]
        for at in cuts:
            axes.axvline(at / unit, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"wall clock, {name}")

    return Picture(run.name, text, draw)


def without_pauses(spans: Sequence[Span]) -> tuple[list[Span], list[float]]:
    """Spans in seconds since the first began, gaps of more than a minute and a fifth of the work taken out; and where those were."""
    if not spans:
        return [], []
    limit = max(60.0, 0.2 * sum(span.end - span.start for span in spans))
    shift, latest, found, cuts = spans[0].start, spans[0].start, [], []
    for span in sorted(spans, key=lambda span: span.start):
        if span.start - latest > limit:
            shift += span.start - latest
            cuts.append(latest + span.start - latest - shift)
        latest = max(latest, span.end)
        found.append(Span(span.policy, span.kind, span.start - shift, span.end - shift, span.finished))
    return found, cuts


def svg(picture: Picture, size: tuple[float, float]) -> str:
    """The picture as an <svg> element whose colours are the style sheet's variables; `size` in inches. Its texts are escaped."""
    with matplotlib.rc_context({**STYLE, "svg.id": None}):
        figure = Figure(figsize=size, layout="constrained")
        picture.draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"(?<=[:\s])#[0-9a-f]{6}\b", lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], text)


def png(path: Path, pictures: Sequence[Picture], legend: Sequence[tuple[str, str, str]], size: tuple[float, float] = (4.2, 2.9), columns: int = 3) -> None:
    """Write the pictures as one grid, by rename; `legend`: label, colour and line style of each entry."""
    columns = min(columns, len(pictures))
    height = math.ceil(len(pictures) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * height + 0.35), layout="constrained", facecolor=PAPER)
        grid = figure.subplots(height, columns, squeeze=False).flat
        for axes, picture in itertools.zip_longest(grid, pictures):
            if picture is None:
                axes.set_visible(False)
                continue
            picture.draw(axes)
            axes.set_title(picture.title, fontsize=10)
        handles = [matplotlib.lines.Line2D([], [], color=colour, linestyle=style, linewidth=3 if style == "-" else 2) for _, colour, style in legend]
        # A label that begins with an underscore would be left out.
        figure.legend(handles, [f" {label}" for label, _, _ in legend], loc="outside upper left", ncols=min(4, len(legend)), frameon=False, fontsize=10)
        FigureCanvasAgg(figure)
        finish_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
