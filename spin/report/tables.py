"""Show the metrics of a run in the table at its end."""

from __future__ import annotations

from collections.abc import Sequence

from spin.benchmark.bootstrap import bootstrap_difference
from spin.benchmark.metrics import COMPARED, compute_columns
from spin.config.run import RunConfig
from spin.data.parquet import read_rows
from spin.data.records import HeldoutAnswer
from spin.report.benchmark_files import find_damage, read_benchmarks
from spin.report.console import Reporter
from spin.report.judge_table import TITLE, make_judge_table
from spin.report.metric_titles import HEADINGS, explain_headings
from spin.report.rollout_table import TITLE as TITLE_OF_ROLLOUTS
from spin.report.rollout_table import make_rollout_table
from spin.report.row_counts import describe_rewards, sum_judgements
from spin.report.terminal import show_table
from spin.run_dir.credentials import hide_passwords
from spin.run_dir.facts import KindTotals
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.remote import is_url
from spin.run_dir.run_state import RunState
from spin.wording import count_of


def summary(config: RunConfig, layout: RunLayout, state: RunState, reporter: Reporter) -> None:
    """Print the table of all policies, the gain over the baseline, and where the time went."""
    # The start is always shown. Without a warm-up it is no unit of the plan.
    measured = {stage.name: values for stage, values in read_benchmarks(state)}
    stages = list(dict.fromkeys([layout.start, *state.stages("policy")]))

    # The table. A stage without a benchmark has empty cells, or no line if only some are measured.
    rows = []
    for stage in stages:
        if config.benchmark.every > 1 and stage.name not in measured:
            continue
        values = measured.get(stage.name, {})
        intervals = values.get("intervals", {})
        row = [stage.label]
        for name in HEADINGS:
            row.append(cell(values.get(name), intervals.get(name)))
        for kind in ("samples", "policy"):
            row.append(f"{state.seconds(stage, kind) or 0.0:.1f}")
        rows.append(row)
    sampled = f"mean of {config.benchmark.samples} samples at temperature {config.generation.temperature:g}"
    title = f"{explain_headings(sampled)}; ±: half the 95 % interval"
    show_table(reporter.console, title, ["policy", *HEADINGS.values(), "gen s", "train s"], rows)

    # The rewards of the samples that each iteration was trained on.
    rollouts = make_rollout_table(layout, state, stages, measured)
    if rollouts is not None:
        show_table(reporter.console, TITLE_OF_ROLLOUTS, rollouts.columns, rollouts.rows)
    else:
        for text in describe_rewards(state, stages):
            reporter.print(text)

    # The judge of these samples.
    judged = make_judge_table({stage.label: sum_judgements(state, stage) for stage in stages})
    if judged is not None:
        show_table(reporter.console, f"the judge, {TITLE}", judged.columns, judged.rows)

    # Gains of self-play and of the baseline, and the best policy.
    for line in compare_policies(layout, state):
        reporter.print(line)
    best = state.ledger.get("best")
    if best is not None:
        label = Stage(layout.root, best["policy"]).label
        reporter.print(f"best: {label} by {best['metric']} ({best['value']:.4f}), linked as {layout.best.name}")

    # Where the time went, once the run is complete.
    seconds = state.ledger.get("seconds") or {}
    total = seconds.get("total", 0.0)
    if total:
        reporter.print(describe_time(state, stages, total, seconds.get("left_out", 0)))
    place = str(layout.root)
    if is_url(config.run_dir):
        place = f"{hide_passwords(config.run_dir)} (local copy: {layout.root})"
    reporter.print(f"run directory: {place}")


def describe_time(state: RunState, stages: Sequence[Stage], total: float, left_out: int = 0) -> str:
    """Return one line with the seconds of generation, of training, and of everything else.

    The seconds of `left_out` killed launches are unknown: then the total is too small, and the
    seconds of everything else are unknown too.

    Generation in the background lies within the seconds of training, so it is not subtracted from
    the rest.
    """
    # Seconds of all stages.
    generation, background, training = 0.0, 0.0, 0.0
    for stage in stages:
        samples = state.totals(stage, "samples") or KindTotals()
        generation += samples.seconds
        if samples.background:
            background += samples.seconds
        training += state.seconds(stage, "policy") or 0.0
    neither = total - (generation - background) - training
    within = ""
    if background:
        within = f" ({background:.0f} beside training)"
    if left_out:
        launches = count_of(left_out, "killed launch", "killed launches")
        return (
            f"wall clock {total:.0f} s without {launches}, whose end is not known: "
            f"generation {generation:.0f}{within}, training {training:.0f} of what is finished"
        )
    return (
        f"wall clock {total:.0f} s: generation {generation:.0f}{within}, training {training:.0f}, "
        f"neither {neither:.0f} ({neither / total:.0%})"
    )


def cell(value: float | None, interval: list[float] | None) -> str:
    """Return a metric with half its interval: ``0.814±.034``."""
    if value is None:
        return "-"
    if not interval:
        return f"{value:.3f}"
    return f"{value:.3f}{format_deviation((interval[1] - interval[0]) / 2)}"


def format_deviation(value: float) -> str:
    """Return ``±.034``, without the leading zero."""
    return f"±{value:.3f}".replace("±0.", "±.")


def compare_policies(layout: RunLayout, state: RunState) -> list[str]:
    """Return what the last iteration and the baseline gained over the start, and their difference.

    Each line has the differences of metrics with intervals. Only benchmarked policies are compared,
    and an iteration only with the baseline of as many training steps. Damaged files are left out.
    """
    damaged = find_damage(state)
    measured = [stage for stage in state.stages("benchmark") if stage.answers("judged") not in damaged]
    iterations = [stage for stage in measured if stage.index >= 0 and not stage.is_baseline]
    baselines = [stage for stage in measured if stage.is_baseline]
    lines = []
    for stages in (iterations, baselines):
        if stages and layout.start in measured:
            lines.append(compare(stages[-1], layout.start))
    if baselines:
        own = layout.iteration(baselines[-1].index)
        if own in measured:
            lines.append(compare(own, baselines[-1]))
    return lines


def compare(ours: Stage, theirs: Stage) -> str:
    """Return the metrics of one policy minus those of another one, with intervals."""
    # The intervals are those of paired differences: both have answered the same prompts.
    own = compute_columns(read_rows(ours.answers("judged"), HeldoutAnswer))
    other = compute_columns(read_rows(theirs.answers("judged"), HeldoutAnswer))
    parts = []
    for name, (value, low, high) in bootstrap_difference(own, other, COMPARED, 0).items():
        parts.append(f"{HEADINGS[name]} {value:+.3f} ({low:+.3f} to {high:+.3f})")
    return f"{ours.label} minus {theirs.label}: {', '.join(parts)}; in brackets 95 %"
