"""`spin reward-bench`: measure any reward model on any set of ranked answers, in this process."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from spin.benchmark.reward_metrics import compute_reward_metrics
from spin.config.groups import ModelConfig
from spin.config.training import Dtype, TrainingConfig
from spin.data.formats import SUBSET_COLUMN
from spin.data.rankings import RankingSource, check_subsets, load_rankings
from spin.data.renderer_setup import load_renderer
from spin.feedback.reward_model_setup import check_reward_model
from spin.models.policy import Policy, find_model, policy_digest
from spin.report.reward_figures import list_figures
from spin.report.terminal import open_console, print_line, show_table
from spin.run_dir.files import write_json
from spin.training.policy_scorer import PolicyScorer
from spin.training.reward_scoring import list_groups, score_groups

SEED = 0
"""Seed of the bootstrap."""

MOST_RESPONSES = 1000
"""Most answers of a prompt that are compared."""


@dataclass(frozen=True)
class RewardBenchOptions:
    """What is measured, and on which data."""

    model: str
    """Folder or Hub id of the reward model."""
    data: str
    """Set of ranked answers."""
    split: str
    """Split of a Hub data set."""
    limit: int | None
    """Rows to use; None uses all."""
    max_tokens: int
    """Longest prompt, and longest answer, in tokens."""
    dtype: Dtype
    """Precision of the forward pass."""
    to: str | None
    """JSON file of the figures; None writes none."""
    subset_column: str | None = SUBSET_COLUMN
    """Column with the part of the set that a row belongs to; None reads none."""
    subset_counts: dict[str, float] = field(default_factory=dict)
    """Weight of each subset in the mean over subsets; empty: all weigh alike."""


def bench_reward_model(options: RewardBenchOptions) -> None:
    """Measure a reward model and print its figures.

    Raises:
        ConfigError: The model or the data cannot be used.
    """
    # The model and the data, with its own chat template.
    folder = find_model(options.model, "model")
    renderer = load_renderer(ModelConfig(str(folder)), folder)
    check_reward_model(folder, options.model, renderer, trust_remote_code=False)
    limits = (options.max_tokens, options.max_tokens, MOST_RESPONSES)
    source = RankingSource("data", options.data, options.split, options.limit, *limits)
    source = replace(source, subset_column=options.subset_column)
    rankings, report = load_rankings(source, renderer)
    check_subsets("subset_counts", options.subset_counts, rankings)
    console = open_console()
    print_line(console, f"data: {report.line()}")

    # Rewards and figures.
    model = Policy(str(folder), policy_digest(folder))
    scorer = PolicyScorer(options.dtype)
    scorer.find_token_budget(model)
    rewards = score_groups(scorer, model, list_groups(rankings), TrainingConfig())
    figures = compute_reward_metrics(rankings, rewards, SEED, options.subset_counts)
    title = f"{options.model}: {figures['prompts']:,} rankings, {figures['pairs']:,} pairs"
    show_table(console, title, ["figure", "value"], [list(row) for row in list_figures(figures)])
    if options.to is not None:
        write_json(Path(options.to), figures)
        print_line(console, options.to)
