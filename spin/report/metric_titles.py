"""Titles of the metrics, for the console, the page, its plots and the model card."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricTitle:
    """The names under which a metric is shown."""

    title: str
    heading: str | None = None
    """Column heading in the tables on the console; None: those tables leave the metric out."""


HELDOUT_TITLES = {
    "exact_match_greedy": MetricTitle("exact match, greedy", "EM"),
    "exact_match_sampled": MetricTitle("exact match, sampled", "EM T"),
    "nll": MetricTitle("NLL of the target, nats per token", "NLL"),
    "win_rate": MetricTitle("win rate of the target", "win"),
    "kl_to_start": MetricTitle("KL to the start, nats per answer", "KL"),
    "length_greedy": MetricTitle("length, greedy, tokens"),
    "length_sampled": MetricTitle("length, sampled, tokens"),
    "repetition_greedy": MetricTitle("repeated 4-grams, greedy"),
    "repetition_sampled": MetricTitle("repeated 4-grams, sampled"),
    "truncated": MetricTitle("truncated at the limit, share"),
    "heldout": MetricTitle("held-out prompts"),
}
"""Held-out metrics in the order of the page. Others follow under their own names."""

REWARD_TITLES = {
    "reward": MetricTitle("mean reward of the opponent's samples"),
    "all_right": MetricTitle("prompts whose samples are all right, share"),
    "all_wrong": MetricTitle("prompts whose samples are all wrong, share"),
    "truth_reward": MetricTitle("mean reward of the ground truths"),
    "rollout_kl": MetricTitle("KL of the opponent to the start, nats per answer"),
    "rollout_entropy": MetricTitle("entropy of the opponent, nats per token"),
    "rollout_tokens": MetricTitle("length of the answers trained on, tokens"),
    "rollout_truncated": MetricTitle("truncated answers trained on, share"),
}
"""Rewards of the samples that a policy was trained on."""

SPEED_TITLES = {
    "generation_tokens_per_second": MetricTitle("generation, tokens/s"),
    "training_tokens_per_second": MetricTitle("training, tokens/s"),
    "neither": MetricTitle("share of time neither generating nor training"),
    "peak_memory_gib_engine": MetricTitle("peak memory, engine, GiB"),
    "peak_memory_gib_trainer": MetricTitle("peak memory, trainer, GiB"),
    "peak_device_memory_gib_engine": MetricTitle("peak GPU memory, engine, GiB"),
    "peak_device_memory_gib_trainer": MetricTitle("peak GPU memory, trainer, GiB"),
}
"""Throughput and memory of a policy's stages, in the order of the page."""

HEADINGS = {name: title.heading for name, title in HELDOUT_TITLES.items() if title.heading is not None}
"""The metrics of the tables on the console and of the model card, with their column headings."""


def explain_headings(sampled: str = "of sampled answers", names: Collection[str] = tuple(HEADINGS)) -> str:
    """Return what the column headings of metrics mean, and ``EM T`` in the words of `sampled`."""
    meanings = {
        "exact_match_greedy": "EM: exact match on held-out prompts, greedy",
        "exact_match_sampled": f"EM T: {sampled}",
        "nll": "NLL of the target, nats per token",
        "win_rate": "win: target preferred to the opponent's answer",
        "kl_to_start": "KL to the start, nats per answer",
    }
    return "; ".join(meaning for name, meaning in meanings.items() if name in names)


def title_of(name: str) -> str:
    """Return the title of a metric; ``nll_change`` is titled after ``nll``."""
    if name.endswith("_change"):
        return f"change of {title_of(name.removesuffix('_change'))}, since the policy before"
    known = HELDOUT_TITLES.get(name) or REWARD_TITLES.get(name) or SPEED_TITLES.get(name)
    if known is None:
        return name.replace("_", " ")
    return known.title
