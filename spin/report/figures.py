"""What the report draws: held-out figures over the iterations, training curves over the steps, and the stages over the wall clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from spin.report.plots import FAINT, INK, SERIES, Plot
from spin.report.run_report import Curve, PolicyReport, RunReport, Span

COLOURS = {"generate": SERIES[0], "score": SERIES[4], "train": SERIES[1], "benchmark": SERIES[2]}


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
    "heldout": "held-out prompts",
}
"""Figures in the order of the page; others follow under their own names."""


SPEEDS = {
    "generation_tokens_per_second": "generation, tokens/s",
    "training_tokens_per_second": "training, tokens/s",
    "neither": "share of neither",
    "peak_memory_gib_engine": "peak memory, engine, GiB",
    "peak_memory_gib_trainer": "peak memory, trainer, GiB",
    "peak_device_memory_gib_engine": "peak GPU memory, engine, GiB",
    "peak_device_memory_gib_trainer": "peak GPU memory, trainer, GiB",
}
"""As TITLES for what the clock and the memory meter said."""


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


def lines_of(runs: Sequence[RunReport]) -> list[Line]:
    """A line a run, and a dashed one for its baseline, which begins at the same start: of a colour of its own where there is one run only."""
    found = []
    for index, run in enumerate(runs):
        start = [policy for policy in run.policies if policy.iteration < 0]
        baseline = [policy for policy in run.policies if policy.baseline]
        found.append(
            Line(
                run.name, SERIES[index % len(SERIES)], False, [policy for policy in run.policies if not policy.baseline]
            )
        )
        if baseline:
            found.append(
                Line(
                    f"{run.name}: baseline",
                    SERIES[(1 if len(runs) == 1 else index) % len(SERIES)],
                    True,
                    start + baseline,
                )
            )
    return found


def figure_pictures(runs: Sequence[RunReport]) -> list[Plot]:
    """One picture a held-out figure that any policy has, over the iterations, with intervals."""
    lines = lines_of(runs)
    names = {name for line in lines for policy in line.policies for name in policy.figures} - {"heldout"}
    order = [*HEADLINES, *(name for name in TITLES if name not in HEADLINES), *sorted(names - TITLES.keys())]
    return [_policy_picture(name, lines, lambda policy: policy.figures) for name in order if name in names]


def speed_pictures(runs: Sequence[RunReport]) -> list[Plot]:
    """As `figure_pictures` for rates and peak memory; the seconds of the stages are in `timeline`."""
    lines = lines_of(runs)
    return [_policy_picture(name, lines, lambda policy: policy.speed) for name in speed_names(runs)]


def speed_names(runs: Sequence[RunReport]) -> list[str]:
    """What any policy has of speed and memory but for the seconds of stages, in the order of SPEEDS."""
    names = {name for run in runs for policy in run.policies for name in policy.speed if not name.startswith("seconds")}
    return [*(name for name in SPEEDS if name in names), *sorted(names - SPEEDS.keys())]


def title_of(name: str) -> str:
    """What a person reads for a figure's name."""
    if name.endswith("_change"):
        return f"change of {title_of(name.removesuffix('_change'))}"
    return (TITLES | SPEEDS).get(name, name.replace("_", " "))


def _policy_picture(name: str, lines: Sequence[Line], values_of: Callable[[PolicyReport], dict[str, float]]) -> Plot:
    shown = {line.label: [policy for policy in line.policies if name in values_of(policy)] for line in lines}
    parts = [
        f"{line}: " + ", ".join(f"{policy.label} {values_of(policy)[name]:.4g}" for policy in policies)
        for line, policies in shown.items()
        if policies
    ]

    def draw(axes: Axes) -> None:
        last = 0
        for line in lines:
            at, values = (
                [policy.iteration for policy in shown[line.label]],
                [values_of(policy)[name] for policy in shown[line.label]],
            )
            ends = [
                policy.intervals.get(name, (value, value))
                for policy, value in zip(shown[line.label], values, strict=True)
            ]
            below = [
                max(0.0, value - low) if math.isfinite(low) else 0.0
                for value, (low, _) in zip(values, ends, strict=True)
            ]
            above = [
                max(0.0, high - value) if math.isfinite(high) else 0.0
                for value, (_, high) in zip(values, ends, strict=True)
            ]
            mark = {
                "linestyle": "--" if line.dashed else "-",
                "marker": "s" if line.dashed else "o",
                "markersize": 4.5,
                "linewidth": 1.6,
            }
            axes.errorbar(
                at,
                values,
                yerr=[below, above],
                color=line.colour,
                capsize=3 if any(below + above) else 0,
                elinewidth=1,
                **mark,
            )  # type: ignore[arg-type]
            last = max([last, *at])
        every = max(1, math.ceil((last + 1) / 8))
        ticks = [-1, *range(0, last + 1, every)]
        axes.set_xticks(ticks, ["start", *map(str, ticks[1:])])
        axes.set_xlim(-1.4, last + 0.4)
        axes.set_xlabel("iteration")

    return Plot(title_of(name), "; ".join(parts), draw)


PAIRS = {"rewards/chosen": "rewards/rejected", "logps/chosen": "logps/rejected"}
"""Both halves of a pair share a picture: the chosen solid, the rejected dotted."""


ORDER = (
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


def training_pictures(runs: Sequence[RunReport]) -> list[Plot]:
    """One picture a logged quantity over the optimizer steps of all iterations; the warm start is not among them."""
    lines = lines_of(runs)
    curves = {
        line.label: chain([policy.curve for policy in line.policies if policy.iteration >= 0 and policy.curve])
        for line in lines
    }
    return _curve_pictures(lines, curves)


def start_pictures(runs: Sequence[RunReport]) -> list[Plot]:
    """As `training_pictures` for the warm start."""
    lines = [line for line in lines_of(runs) if not line.dashed]
    return _curve_pictures(
        lines,
        {
            line.label: chain([policy.curve for policy in line.policies if policy.iteration < 0 and policy.curve])
            for line in lines
        },
    )


def chain(curves: Sequence[Curve]) -> list[Curve]:
    """Curves end to end: the steps of each are counted on from the last of the one before."""
    found: list[Curve] = []
    for curve in curves:
        done = found[-1].steps[-1] if found else 0
        found.append(Curve([done + step for step in curve.steps], curve.values))
    return found


def thin(curve: Curve, key: str, points: int) -> tuple[list[float], list[float]]:
    """At most `points` points: means over equal stretches of the steps that have a finite value."""
    known = [
        (step, value)
        for step, value in zip(curve.steps, curve.values.get(key, []), strict=False)
        if math.isfinite(value)
    ]
    size = max(1, math.ceil(len(known) / points))
    parts = [known[at : at + size] for at in range(0, len(known), size)]
    return [sum(step for step, _ in part) / len(part) for part in parts], [
        sum(value for _, value in part) / len(part) for part in parts
    ]


def _curve_pictures(lines: Sequence[Line], curves: dict[str, list[Curve]]) -> list[Plot]:
    found = list(dict.fromkeys(key for stages in curves.values() for curve in stages for key in curve.values))
    order = [
        *(key for key in ORDER if key in found),
        *(key for key in found if key not in ORDER and key not in PAIRS.values()),
    ]
    return [_curve_picture([key, PAIRS[key]] if PAIRS.get(key) in found else [key], lines, curves) for key in order]


def _curve_picture(keys: list[str], lines: Sequence[Line], curves: dict[str, list[Curve]]) -> Plot:
    parts = []
    for line in lines:
        for key in keys:
            values = [
                value for curve in curves[line.label] for value in curve.values.get(key, []) if math.isfinite(value)
            ]
            parts += [f"{line.label}, {key}: from {values[0]:.4g} to {values[-1]:.4g}"] if values else []

    def draw(axes: Axes) -> None:
        for line in lines:
            stages = curves[line.label]
            for curve in stages:
                for key in keys:
                    at, values = thin(curve, key, max(2, POINTS // len(stages)))
                    style = ":" if key != keys[0] else "--" if line.dashed else "-"
                    axes.plot(
                        at,
                        values,
                        color=line.colour,
                        linestyle=style,
                        linewidth=1.4,
                        marker="o" if len(at) == 1 else None,
                        markersize=4,
                    )
            for curve in stages[1:] if len(lines) == 1 else ():
                axes.axvline(curve.steps[0] - 0.5, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_xlabel("optimizer step")
        if keys == ["learning_rate"]:
            axes.ticklabel_format(axis="y", scilimits=(-3, 3))

    return Plot(
        keys[0] if len(keys) == 1 else f"{keys[0]} (solid) and {keys[1].partition('/')[2]} (dotted)",
        "; ".join(parts),
        draw,
    )


LANES = {"generate": -0.21, "score": 0.0, "train": 0.21}
"""Where a bar stands in its row when these went on at the same time."""


def timeline(run: RunReport) -> Plot:
    """The stages of a run as bars over the wall clock, a row a policy, those that went on at the same time below each other; time in which the run was
    stopped is taken out."""
    spans, cuts = without_pauses(run.spans)
    text = "; ".join(
        f"{span.policy} {span.kind} {span.end - span.start:.1f} s{'' if span.finished else ', unfinished'}"
        for span in spans
    )
    rows, parallel = list(dict.fromkeys(span.policy for span in spans)), {span.policy for span in spans if span.beside}

    def draw(axes: Axes) -> None:
        longest = max((span.end for span in spans), default=0.0)
        unit, name = (3600, "hours") if longest > 3 * 3600 else (60, "minutes") if longest > 300 else (1, "seconds")
        for span in spans:
            width = max(span.end - span.start, longest / 400) / unit  # a bar of less could not be seen
            look = {} if span.finished else {"alpha": 0.5, "hatch": "///"}
            place, height = (
                (rows.index(span.policy) + LANES.get(span.kind, 0.0), 0.2)
                if span.policy in parallel
                else (rows.index(span.policy), 0.62)
            )
            axes.barh(place, width, left=span.start / unit, height=height, color=COLOURS[span.kind], **look)  # type: ignore[arg-type]
        for at in cuts:
            axes.axvline(at / unit, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"wall clock, {name}")

    return Plot(run.name, text, draw)


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
        found.append(replace(span, start=span.start - shift, end=span.end - shift))
    return found, cuts
