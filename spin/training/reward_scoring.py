"""Rewards of a reward model: of held-out rankings, and their mean over ground truths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spin.benchmark.reward_metrics import compute_reward_metrics
from spin.config.reward_model import Center
from spin.config.training import TrainingConfig
from spin.data.examples import Example, from_prompt
from spin.data.parquet import read_rows
from spin.data.records import Prompt, Ranking
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.models.reward_export import to_rewards
from spin.models.scalar_head import Head
from spin.run_dir.files import file_sha256, write_json
from spin.training.batches import group_by_prompt
from spin.training.passes import explain_out_of_memory, plan_passes

if TYPE_CHECKING:
    from spin.training.policy_scorer import PolicyScorer

MOST_TRUTHS = 1000
"""Ground truths whose mean reward is the 0 of a reward model; the prompts are in random order."""


@dataclass(frozen=True)
class EvaluationJob:
    """A reward model to measure on held-out rankings."""

    model: Policy
    training: TrainingConfig
    seed: int
    """Seed of the bootstrap."""
    rankings: list[str]
    """Files of held-out rankings."""
    out: str
    subset_counts: dict[str, float] = field(default_factory=dict)
    """Weight of each subset in the mean over subsets; empty: all weigh alike."""


def score_groups(
    scorer: PolicyScorer,
    model: Policy,
    groups: Sequence[Group],
    training: TrainingConfig,
    center: Center = Center.truths,
) -> list[list[float]]:
    """Return the reward of each completion of each group.

    Args:
        scorer: Holds one model at a time.
        model: The reward model.
        groups: Prompts with their completions.
        training: Settings of the forward passes.
        center: With `truths`, the bias of the model's folder is subtracted.
    """
    scores = scorer.score(model, groups, training, Head.scalar)
    return [to_rewards(group_scores, Path(model.path), center) for group_scores in scores]


def evaluate_reward_model(scorer: PolicyScorer, job: EvaluationJob) -> dict[str, Any]:
    """Write the figures of a reward model on held-out rankings.

    Returns:
        The facts of the ledger line.
    """
    # Each answer is scored once, however many pairs it is in.
    start = time.perf_counter()
    rankings: list[Ranking] = []
    for name in job.rankings:
        rankings += read_rows(Path(name), Ranking)
    rewards = score_groups(scorer, job.model, list_groups(rankings), job.training)
    path = Path(job.out)
    write_json(path, compute_reward_metrics(rankings, rewards, job.seed, job.subset_counts))
    return {"sha256": file_sha256(path), "rows": len(rankings), "seconds": time.perf_counter() - start}


def list_groups(rankings: Sequence[Ranking]) -> list[Group]:
    """Return one group for each ranking, with all its completions."""
    return [Group(row.prompt_ids, row.completions) for row in rankings]


def read_truths(path: Path) -> list[Example]:
    """Return the ground truths of the first prompts of a prepared set as rows of the trainer."""
    return [from_prompt(row) for row in read_rows(path, Prompt, last=MOST_TRUTHS)]


@torch.no_grad()
def compute_mean_reward(scorer: PolicyScorer, rows: Sequence[Example], training: TrainingConfig) -> float:
    """Return the mean reward of the completions of rows under the held model. Collective."""
    accelerator = scorer.accelerator
    budget = training.micro_batch_tokens or scorer.token_budget
    # A worker without rows still takes part in every exchange.
    filler = group_by_prompt(rows[:1])[0][0]
    # Sum and number of the rewards.
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for forward_pass in plan_passes(rows, budget, scorer.scorer.layout, accelerator):
        with explain_out_of_memory(forward_pass.groups):
            rewards = scorer.scorer(forward_pass.groups or [filler]).sums()
        # The rewards of the filler do not count.
        if forward_pass.members:
            sums += torch.stack([rewards.sum(), rewards.new_tensor(float(len(rewards)))])
    total = accelerator.reduce(sums, "sum")
    return float(total[0] / total[1])
