"""The answers that a policy gradient learns from, as a table with a line for each iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spin.report.row_counts import sum_rewards, sum_rollouts
from spin.run_dir.paths import Stage
from spin.run_dir.run_state import RunState

MAX_LINES = 40
"""Of more iterations, as many are shown in equal distances; `spin report` shows all."""

TITLE = (
    "answers that a policy gradient learns from; reward: mean ± half the 95 % interval; truths: mean reward of the "
    "ground truths; KL: of the opponent to the start, nats per answer; entropy: nats per token"
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


def make_rollout_table(state: RunState, stages: Sequence[Stage]) -> RolloutTable | None:
    """Return the table of the answers; None if no iteration learns by a policy gradient."""
    rows = []
    for stage in stages:
        rewards, rollouts = sum_rewards(state, stage), sum_rollouts(state, stage)
        if rewards is None or rollouts is None:
            continue
        row = [stage.label, f"{rewards.mean:.3f}±{rewards.half_interval:.3f}"]
        truth = rewards.to_figures().get("truth_reward")
        row.append(format_figure(truth, "{:.3f}"))
        figures = rollouts.to_figures()
        for name, (_, shape) in COLUMNS.items():
            row.append(format_figure(figures.get(name), shape))
        rows.append(row)
    if not rows:
        return None
    headings = [heading for heading, _ in COLUMNS.values()]
    return RolloutTable(["iteration", "reward", "truths", *headings], pick_lines(rows))


def format_figure(value: float | None, shape: str) -> str:
    """Return a number in a format, or a dash where there is none."""
    if value is None:
        return "-"
    return shape.format(value)


def pick_lines(rows: list[list[str]]) -> list[list[str]]:
    """Return at most MAX_LINES rows in equal distances, with the first and the last one."""
    count = len(rows)
    if count <= MAX_LINES:
        return rows
    return [rows[line * (count - 1) // (MAX_LINES - 1)] for line in range(MAX_LINES)]
