"""Rankings of the run's own samples, from a judge or a reward source, with small numbers."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from spin.config.judge import Contestants, JudgedPairsConfig, OnFailure, OnTie
from spin.config.reward_model import Refresh, RewardModelConfig
from spin.data.examples import compare_ranked
from spin.data.judge_records import JudgedScore, Judgement
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Prompt, Ranking, Sample, Score
from spin.errors import ConfigError
from spin.feedback.feedback_checks import check_feedback
from spin.feedback.judged_rankings import RankingsJob, decide, rank_by_judge, write_rankings
from tests.feedback.samples import make_config, make_group, make_prompt, make_sample

SETTINGS = JudgedPairsConfig()
REFRESHED = RewardModelConfig(refresh=Refresh.every, refresh_by="exact_match")
BY_JUDGE = RewardModelConfig(refresh=Refresh.every)
SOURCES = ["reward_model", {"name": "exact_match", "weight": 0}]


def judgement(first: int, second: int, preference: float, failure: str | None = None) -> Judgement:
    return Judgement(0, first, second, preference, 1 - preference, preference, 1.0, 1.0, failure)


def test_a_judge_gives_each_pair_its_preference_and_ranks_by_mean_preference() -> None:
    judged = [judgement(0, 1, 0.8), judgement(0, 2, 0.9), judgement(1, 2, 0.3)]
    ranking = rank_by_judge(replace(make_group("a", "b", "c"), judgements=judged), SETTINGS)
    assert ranking.pair_preferences == [0.8, 0.9, 0.3]
    pairs = [(pair.first, pair.second, pair.preference) for pair in compare_ranked(ranking)]
    assert pairs == [(0, 1, 0.8), (0, 2, 0.9), (1, 2, 0.3)]
    # Mean preferences with ½ for itself: (0.5 + 0.8 + 0.9) / 3, (0.2 + 0.5 + 0.3) / 3, 1.3 / 3.
    assert ranking.ranks == pytest.approx([-2.2 / 3, -1.0 / 3, -1.3 / 3])


def test_ties_and_failures_are_left_out_or_count_as_undecided() -> None:
    assert math.isnan(decide(0.52, SETTINGS))
    assert decide(0.52, replace(SETTINGS, on_tie=OnTie.half)) == 0.5
    assert decide(0.52, replace(SETTINGS, on_tie=OnTie.keep)) == 0.52
    assert math.isnan(decide(math.nan, SETTINGS))
    assert decide(math.nan, replace(SETTINGS, on_failure=OnFailure.half)) == 0.5
    judged = [judgement(0, 1, 0.8), judgement(0, 2, 0.9, "mass"), judgement(1, 2, 0.51)]
    ranking = rank_by_judge(replace(make_group("a", "b", "c"), judgements=judged), SETTINGS)
    assert [(pair.first, pair.second) for pair in compare_ranked(ranking)] == [(0, 1)]


def test_scores_of_a_judge_give_hard_labels() -> None:
    scores = [JudgedScore(0, index, value, value, value, 1, 1, None) for index, value in enumerate([0.1, 0.9, 0.12])]
    ranking = rank_by_judge(replace(make_group("a", "b", "c"), scores=scores), SETTINGS)
    # The first and the third score are closer than the tie band.
    pairs = [(pair.first, pair.second, pair.preference) for pair in compare_ranked(ranking)]
    assert pairs == [(0, 1, 0.0), (1, 2, 1.0)]
    assert min(range(3), key=lambda place: ranking.ranks[place]) == 1


def test_a_tenth_of_the_prompts_is_held_out_and_prompts_without_a_better_answer_are_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "prompts.parquet", Prompt, [make_prompt(number) for number in range(20)])
    samples = []
    rewards = []
    for number in range(20):
        samples += [make_sample(number, 0, "4"), make_sample(number, 1, "5")]
        # The answers of prompt 3 have equal rewards.
        rewards += [Score(number, 0, 1.0), Score(number, 1, 1.0 if number == 3 else 0.0)]
    write_rows(tmp_path / "samples.parquet", Sample, samples)
    write_rows(tmp_path / "rewards.parquet", Score, rewards)
    config = replace(make_config(rows="soft_pairs", rewards=SOURCES), reward_model=REFRESHED)
    paths = [str(tmp_path / f"{name}.parquet") for name in ("prompts", "samples", "rewards", "rankings")]
    job = RankingsJob(config, 0, paths[0], [paths[1]], [paths[2]], False, paths[3])
    facts = write_rankings(job)
    kept = read_rows(tmp_path / "rankings.parquet", Ranking)
    heldout = replace(job, heldout=True, out=str(tmp_path / "heldout.parquet"))
    more = write_rankings(heldout)
    held = read_rows(tmp_path / "heldout.parquet", Ranking)
    assert facts["dropped"] | more["dropped"] == {"ranked alike": 1}
    assert facts["rows"] + more["rows"] == 19
    ids = [row.ranking_id for row in kept] + [row.ranking_id for row in held]
    assert sorted(ids) == [number for number in range(20) if number != 3]
    assert 1 <= len(held) <= 2
    assert [pair.preference for pair in compare_ranked(kept[0])] == [1.0]
    # The same prompts are held out in another iteration.
    write_rankings(replace(heldout, iteration=1))
    assert read_rows(tmp_path / "heldout.parquet", Ranking) == held


def test_who_ranks_the_samples_must_exist() -> None:
    good = replace(make_config(rows="soft_pairs", rewards=SOURCES), reward_model=REFRESHED)
    check_feedback(good)
    wrong = replace(good, reward_model=replace(REFRESHED, refresh_by="mine"))
    with pytest.raises(ConfigError, match="refresh_by=mine: expected judge, or one of the other sources"):
        check_feedback(wrong)
    with pytest.raises(ConfigError, match="refresh_by=judge needs a judge"):
        check_feedback(replace(good, reward_model=replace(REFRESHED, refresh_by="judge")))
    with pytest.raises(ConfigError, match="ranks 12 answers of a prompt; expected 2 to"):
        check_feedback(replace(good, generation=replace(good.generation, samples_per_prompt=12)))
    with pytest.raises(ConfigError, match="a source with weight=0 is for reward_model.refresh=every"):
        check_feedback(replace(good, reward_model=RewardModelConfig()))
    zero = replace(good.feedback, rewards=[{"name": "reward_model", "weight": 0}, SOURCES[1]])
    with pytest.raises(ConfigError, match="all weights are 0"):
        check_feedback(replace(good, feedback=zero))
    with pytest.raises(ConfigError, match="a given model is not trained"):
        RewardModelConfig(path="a/b", refresh=Refresh.every)


@pytest.mark.parametrize("contestants", [Contestants.samples, Contestants.truth_and_samples])
def test_the_files_of_a_judge_are_ranked_with_or_without_the_truth(tmp_path: Path, contestants: Contestants) -> None:
    write_rows(tmp_path / "prompts.parquet", Prompt, [make_prompt(0)])
    write_rows(tmp_path / "samples.parquet", Sample, [make_sample(0, 0, "4"), make_sample(0, 1, "5")])
    judged = [judgement(0, 1, 0.2)]
    expected = [0.2]
    if contestants is Contestants.truth_and_samples:
        judged += [judgement(-1, 0, 0.9), judgement(-1, 1, 0.7)]
        # The truth is the first answer.
        expected = [0.9, 0.7, 0.2]
    write_rows(tmp_path / "judgements.parquet", Judgement, judged)
    config = replace(make_config(rows="soft_pairs", rewards=["reward_model"]), reward_model=BY_JUDGE)
    config.feedback.judged.contestants = contestants
    paths = [str(tmp_path / f"{name}.parquet") for name in ("prompts", "samples", "judgements", "rankings")]
    write_rankings(RankingsJob(config, 0, paths[0], [paths[1]], [paths[2]], False, paths[3]))
    [ranking] = read_rows(tmp_path / "rankings.parquet", Ranking)
    assert ranking.pair_preferences == expected
