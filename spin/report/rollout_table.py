"""The answers that a policy gradient learns from, as a table with a line for each iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin.report.row_counts import sum_rewards, sum_rollouts
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.run_state import RunState

MAX_LINES = 40
"""Of more iterations, as many are shown in equal distances, and those after a benchmark."""

TITLE = (
    "answers that a policy gradient learns from; reward: mean ± half the 95 % interval; truths: mean reward of the "
    "ground truths; EM T: exact match of the opponent's sampled answers on held-out prompts, where it was measured; "
    "KL: of the opponent to the start, nats per answer; entropy: nats per token"
)
"""What the columns mean."""

COLUMNS = {
    "rollout_kl": ("KL", "{:.3f}"),
    "rollout_entropy": ("entropy", "{:.3f}"),
    "rollout_tokens": ("tokens", "{:.1f}"),
    "rollout_truncated": ("truncated", "{:.1%}"),
}
"""Heading and format of each figure of `RolloutStatistics`."""


@dataclass(frozen=True)
class RolloutTable:
    """Column titles, and one row of texts for each iteration."""

    columns: list[str]
    rows: list[list[str]]


def make_rollout_table(
    layout: RunLayout, state: RunState, stages: Sequence[Stage], measured: Mapping[str, Mapping[str, Any]]
) -> RolloutTable | None:
    """Return the table of the answers; None if no iteration learns by a policy gradient.

    A reward that rises while exact match falls shows that the policy exploits the reward.

    Args:
        layout: The run directory.
        state: The state of the run.
        stages: The stages of the table.
        measured: The metrics of each measured stage by its name.
    """
    rows: list[list[str]] = []
    measured_rows = []
    for stage in stages:
        rewards, rollouts = sum_rewards(state, stage), sum_rollouts(state, stage)
        if rewards is None or rollouts is None:
            continue
        row = [stage.label, f"{rewards.mean:.3f}±{rewards.half_interval:.3f}"]
        truth = rewards.to_figures().get("truth_reward")
        row.append(format_figure(truth, "{:.3f}"))
        # The policy that wrote the answers.
        opponent = layout.start
        if stage.index > 0:
            opponent = layout.iteration(stage.index - 1)
        exact_match = measured.get(opponent.name, {}).get("exact_match_sampled")
        if exact_match is not None:
            measured_rows.append(len(rows))
        row.append(format_figure(exact_match, "{:.3f}"))
        figures = rollouts.to_figures()
        for name, (_, shape) in COLUMNS.items():
            row.append(format_figure(figures.get(name), shape))
        rows.append(row)
    if not rows:
        return None
    headings = [heading for heading, _ in COLUMNS.values()]
    return RolloutTable(["iteration", "reward", "truths", "EM T", *headings], pick_lines(rows, measured_rows))


def format_figure(value: float | None, shape: str) -> str:
    """Return a number in a format, or a dash where there is none."""
    if value is None:
        return "-"
    return shape.format(value)


def pick_lines(rows: list[list[str]], measured: Sequence[int] = ()) -> list[list[str]]:
    """Return at most MAX_LINES rows in equal distances, with the first and the last one.

    Rows with the numbers in `measured` are added if there are no more than MAX_LINES of them.
    """
    count = len(rows)
    if count <= MAX_LINES:
        return rows
    picked = {line * (count - 1) // (MAX_LINES - 1) for line in range(MAX_LINES)}
    if len(measured) <= MAX_LINES:
        picked |= set(measured)
    return [rows[line] for line in sorted(picked)]
