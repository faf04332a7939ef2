"""Rank the samples of an iteration, so that a reward model can learn from them.

    judgements/0 …            ──┐
    or rewards/SOURCE/0 …  ─────┴─► rankings, rankings-heldout ──► reward model of the iteration

A tenth of the prompts is held out, the same ones in every iteration.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from spin.config.judge import JudgedPairsConfig, OnFailure, OnTie
from spin.config.reward_model import BY_JUDGE
from spin.config.run import RunConfig
from spin.data.examples import compare_ranked
from spin.data.heldout_split import choose_heldout
from spin.data.parquet import count_rows, read_rows, write_rows
from spin.data.records import Ranking, Score
from spin.feedback.judge_comparison import TRUTH, list_contestants, make_preference_matrix
from spin.feedback.judge_scores import make_score_matrix
from spin.feedback.sample_group import SampleGroup, add_judgements, read_sample_groups

JUDGED = "judged"
"""The subset of the run's own samples among held-out rankings."""


@dataclass(frozen=True)
class RankingsJob:
    """All shards of one iteration, whose samples are to be ranked."""

    config: RunConfig
    iteration: int
    prompts: str
    samples: list[str]
    judged: list[str]
    """For each shard of samples, the file of the judge or of the reward source that ranks them."""
    heldout: bool
    """True to take the held-out prompts, False to take the others."""
    out: str

    @property
    def inputs(self) -> list[Path]:
        """All files that are read."""
        return [Path(path) for path in (self.prompts, *self.samples, *self.judged)]


def write_rankings(job: RankingsJob) -> dict[str, Any]:
    """Rank the samples of an iteration; writes one finished file, and returns its facts.

    Prompts whose answers cannot be told apart are dropped and counted.
    """
    start = time.perf_counter()
    num_prompts = count_rows(Path(job.prompts))
    held = set(choose_heldout(num_prompts, job.config.reward_model.eval_limit, job.config.seed))
    rankings: list[Ranking] = []
    dropped: Counter[str] = Counter()
    for samples, judged in zip(job.samples, job.judged, strict=True):
        groups = read_sample_groups(Path(job.prompts), Path(samples), job.iteration)
        wanted = [group for group in groups if (group.prompt.prompt_id in held) == job.heldout]
        for ranking in rank_groups(wanted, job.config, Path(judged)):
            # Ties alone teach nothing.
            if all(pair.preference == 0.5 for pair in compare_ranked(ranking)):
                dropped["ranked alike"] += 1
            else:
                rankings.append(ranking)
    return {
        "sha256": write_rows(Path(job.out), Ranking, rankings),
        "rows": len(rankings),
        "dropped": dict(dropped),
        "seconds": time.perf_counter() - start,
    }


def rank_groups(groups: list[SampleGroup], config: RunConfig, judged: Path) -> list[Ranking]:
    """Return the ranking of each prompt.

    Args:
        groups: Prompts of one shard with their samples.
        config: Config of the iteration.
        judged: Judgements, or rewards, of the samples of the shard.
    """
    if config.reward_model.refresh_by == BY_JUDGE:
        groups = add_judgements(groups, judged, config.judge.mode)
        return [rank_by_judge(group, config.feedback.judged) for group in groups]
    rewards = {(score.prompt_id, score.sample_index): score.reward for score in read_rows(judged, Score)}
    return [rank_by_rewards(group, rewards) for group in groups]


def rank_by_rewards(group: SampleGroup, rewards: dict[tuple[int, int], float]) -> Ranking:
    """Return the samples of a prompt, ranked by the rewards of one source."""
    prompt = group.prompt
    ranks = [-rewards[prompt.prompt_id, sample.sample_index] for sample in group.samples]
    completions = [sample.completion_ids for sample in group.samples]
    return Ranking(prompt.prompt_id, prompt.prompt_ids, completions, ranks, 1.0, 0.0, JUDGED)


def rank_by_judge(group: SampleGroup, settings: JudgedPairsConfig) -> Ranking:
    """Return the answers of a prompt with a judge's preference for each pair of them."""
    # P(i is better than j); what failed may count as undecided.
    answers = list_contestants(group, settings.contestants)
    if group.scores:
        matrix = make_score_matrix(answers, group.scores, settings.tie_band)
    else:
        matrix = make_preference_matrix(answers, group.judgements)
    preferences = []
    for first, second in combinations(range(len(answers)), 2):
        preferences.append(decide(matrix[first][second], settings))

    # Ranks tell which answer is the best: the one that wins most often.
    ranks = []
    for row in matrix:
        known = [value for value in row if not math.isnan(value)]
        ranks.append(-sum(known) / len(known))
    ids = {sample.sample_index: sample.completion_ids for sample in group.samples}
    ids[TRUTH] = group.prompt.completion_ids
    completions = [ids[answer] for answer in answers]
    prompt = group.prompt
    return Ranking(prompt.prompt_id, prompt.prompt_ids, completions, ranks, 1.0, 0.0, JUDGED, preferences)


def decide(preference: float, settings: JudgedPairsConfig) -> float:
    """Return the preference that a pair is trained with; NaN: the pair is left out.

    Args:
        preference: Of the judge; NaN if it failed.
        settings: `feedback.judged`, what ties and failures are.
    """
    if math.isnan(preference) and settings.on_failure is OnFailure.half:
        return 0.5
    # A comparison with NaN is false: a failure is no tie.
    if abs(preference - 0.5) < settings.tie_band and settings.on_tie is OnTie.drop:
        return math.nan
    if abs(preference - 0.5) < settings.tie_band and settings.on_tie is OnTie.half:
        return 0.5
    return preference
