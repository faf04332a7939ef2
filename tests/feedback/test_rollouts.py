"""The rows of policy gradients on samples whose rewards are known, and refused settings."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin.config.adapter import AdapterConfig, AdapterMethod, Serve
from spin.config.groups import FeedbackConfig, GenerationConfig, PairsConfig
from spin.config.judge import Contestants, JudgeConfig, JudgedPairsConfig, JudgeMode, OnFailure
from spin.config.objective import SpinObjective
from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import CriticModel, GrpoObjective, PpoObjective, RlooObjective
from spin.config.reward_model import RewardModelConfig
from spin.config.rollouts import RolloutsConfig
from spin.config.run import RunConfig
from spin.config.training import Sharding, TrainingConfig, WarmupConfig
from spin.data.judge_records import JudgedScore
from spin.data.parquet import write_rows
from spin.data.records import Prompt, Sample
from spin.data.rollouts import Rollout
from spin.errors import ConfigError
from spin.feedback.feedback_checks import check_feedback
from spin.feedback.policy_gradient_checks import describe_updates
from spin.feedback.reward_files import SummedRewards
from spin.feedback.rollout_builder import JudgedRollouts, Rollouts, find_win_rates
from spin.feedback.rows import RowsJob, build_rows
from spin.feedback.sample_group import SampleGroup
from spin.models.policy import Policy
from tests.feedback.samples import make_config, make_group, make_prompt, make_sample

REWARDED = {"rows": "rollouts", "rewards": ["exact_match"]}


def make_builder(objective: ObjectiveConfig, **rollouts: float) -> Rollouts:
    builder = Rollouts(FeedbackConfig(rollouts=RolloutsConfig(**rollouts), **REWARDED))
    builder.use_objective(objective)
    return builder


def make_settings(objective: ObjectiveConfig, **feedback: object) -> RunConfig:
    return replace(make_config(**(REWARDED | feedback)), objective=objective)


def test_each_sample_is_a_row_with_its_reward() -> None:
    rows, dropped = make_builder(GrpoObjective()).build(make_group("4", "5"), [1.0, 0.0])
    first = Rollout(3, 0, 2, [1, 9, 3], [7, 0], "stop", 1.0, -1.5)
    assert rows == [first, replace(first, sample_index=1, completion_ids=[7, 1], reward=0.0, sampler_logp=-2.5)]
    assert dropped == {}


def test_samples_with_equal_rewards_are_left_out_and_counted_if_asked() -> None:
    group = make_group("4", "5", "6")
    assert make_builder(RlooObjective()).build(group, [1.0, 1.0, 1.0]) == ([], {"equal_rewards": 3})
    rows, dropped = make_builder(RlooObjective(drop_equal=False)).build(group, [1.0, 1.0, 1.0])
    assert (len(rows), dropped) == (3, {})


def test_a_reward_is_limited_and_then_lowered_for_a_missing_end() -> None:
    samples = [make_sample(3, 0, "4"), make_sample(3, 1, "5", "length"), make_sample(3, 2, "6")]
    group = SampleGroup(make_prompt(3), samples, 0)
    rows, _ = make_builder(GrpoObjective(), missing_eos=0.5, reward_clip=2.0).build(group, [3.0, 3.0, -7.0])
    assert [row.reward for row in rows] == [2.0, 1.5, -2.0]


@pytest.mark.parametrize("objective", [GrpoObjective(), RlooObjective(), PpoObjective()])
def test_usable_settings_are_accepted(objective: ObjectiveConfig) -> None:
    check_feedback(make_settings(objective))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation": GenerationConfig(temperature=0.7, samples_per_prompt=4)}, "temperature=0.7 and top_p=1 with"),
        ({"generation": GenerationConfig(top_p=0.9, samples_per_prompt=4)}, "temperature=1 and top_p=0.9 with"),
        ({"generation": GenerationConfig(samples_per_prompt=1)}, "samples_per_prompt=1: objective=grpo compares"),
        ({"replay": 1}, "replay=1: objective=grpo takes answers of the opponent alone"),
        ({"pairs": PairsConfig(drop_cut=True)}, "pairs.drop_cut=true: objective=grpo needs all answers"),
    ],
)
def test_settings_that_contradict_a_policy_gradient_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_feedback(replace(make_settings(GrpoObjective()), **changes))


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ({"path": "pairs.jsonl"}, "feedback.path=pairs.jsonl: objective=grpo cannot use labelled rows"),
        ({"rows": None, "rewards": [], "path": "pairs.jsonl"}, "feedback.rows=null samples none"),
        ({"rows": "ratings"}, "feedback.rows=ratings builds other rows; take feedback.rows=rollouts"),
        ({"rewards": []}, "feedback.rows=rollouts needs rewards, and feedback.rewards is empty"),
    ],
)
def test_feedback_that_gives_no_rewards_of_single_answers_is_refused(feedback: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_feedback(make_settings(GrpoObjective(), **feedback))


def test_rows_with_rewards_are_refused_for_an_objective_on_pairs() -> None:
    with pytest.raises(ConfigError, match="rollouts builds answers with rewards, which objective=spin cannot use"):
        check_feedback(make_config(**REWARDED))


def test_the_likelihood_of_a_target_is_refused_since_there_is_none() -> None:
    with pytest.raises(ConfigError, match="objective.sft_weight=0.5: expected 0, since the rows of objective=grpo"):
        GrpoObjective(sft_weight=0.5)


def test_adapters_are_accepted_but_a_reward_model_needs_a_whole_warm_start() -> None:
    adapter = AdapterConfig(method=AdapterMethod.lora)
    for critic in CriticModel:
        check_feedback(replace(make_settings(PpoObjective(critic=critic)), adapter=adapter))
    check_feedback(replace(make_settings(GrpoObjective()), adapter=adapter))
    served = replace(make_settings(GrpoObjective()), adapter=replace(adapter, serve=Serve.adapter))
    with pytest.raises(ConfigError, match="begins as the whole model that the warm start leaves"):
        replace(
            served,
            warmup=WarmupConfig(enabled=True, path="d"),
            reward_model=RewardModelConfig(data_path="builtin:letters-preferences"),
        )


def test_ppo_needs_no_second_answer_and_may_be_sharded() -> None:
    single = replace(make_settings(PpoObjective()), generation=GenerationConfig(samples_per_prompt=1))
    check_feedback(single)
    training = TrainingConfig(sharding=Sharding.full, workers=2)
    check_feedback(replace(single, training=training))
    rows, dropped = make_builder(PpoObjective()).build(make_group("4", "5"), [1.0, 1.0])
    assert (len(rows), dropped) == (2, {})


def make_judged(**settings: Any) -> FeedbackConfig:
    judged_settings = {key: value for key, value in settings.items() if key != "rewards"}
    rewards = settings.get("rewards", [])
    judged = JudgedPairsConfig(**judged_settings)
    rollouts = RolloutsConfig(judge_weight=2.0)
    return FeedbackConfig("judged_rollouts", judged=judged, rollouts=rollouts, rewards=rewards)


def make_scored_group(*scores: float, first: int = 0) -> SampleGroup:
    """Return a group of two samples; a NaN is a failure. `first`: −1 if the truth is scored too."""
    judged = []
    for index, score in enumerate(scores, start=first):
        failure = "mass" if math.isnan(score) else None
        judged.append(JudgedScore(3, index, score, score, score, 1.0, 1.0, failure))
    return replace(make_group("4", "5"), scores=judged)


def test_a_judges_score_is_added_to_the_rewards_of_the_sources() -> None:
    builder = JudgedRollouts(make_judged(rewards=["exact_match"]))
    combined = builder.combine_rewards(make_scored_group(0.5, -0.25), SummedRewards([1.0, 0.0], 1.0))
    # 1 + 2 · 0.5 and 0 − 2 · 0.25. The judge has not scored the truth.
    assert combined == SummedRewards([2.0, -0.5], None)
    assert builder.combine_rewards(make_scored_group(0.5, math.nan), SummedRewards([1.0, 0.0], 1.0)) is None


def test_the_judges_score_of_the_truth_is_its_reward() -> None:
    builder = JudgedRollouts(make_judged(contestants=Contestants.truth_and_samples))
    group = make_scored_group(0.75, 0.5, 0.0, first=-1)
    assert builder.combine_rewards(group, SummedRewards([0.0, 0.0], None)) == SummedRewards([1.0, 0.0], 1.5)


def test_a_failed_score_counts_as_the_middle_of_the_scale_if_asked() -> None:
    builder = JudgedRollouts(make_judged(on_failure=OnFailure.half))
    combined = builder.combine_rewards(make_scored_group(0.5, math.nan), SummedRewards([0.0, 0.0], None))
    assert combined == SummedRewards([1.0, 0.0], None)


def test_the_reward_of_a_comparing_judge_is_the_mean_over_the_other_answers() -> None:
    # P(0 beats 1) = 0.8, P(0 beats 2) = 0.9, P(1 beats 2) = 0.7.
    matrix = [[0.5, 0.8, 0.9], [0.2, 0.5, 0.7], [0.1, 0.3, 0.5]]
    assert find_win_rates([0, 1, 2], matrix) == pytest.approx({0: 0.85, 1: 0.45, 2: 0.2})
    nan = math.nan
    # Of failed comparisons the others are taken; the last answer has none.
    assert find_win_rates([0, 1, 2], [[0.5, 0.8, nan], [0.2, 0.5, nan], [nan, nan, 0.5]]) == {0: 0.8, 1: 0.2}


def test_prompts_that_the_judge_failed_for_are_left_out_and_the_sum_is_in_the_statistics(tmp_path: Path) -> None:
    config = make_settings(GrpoObjective(), rows="judged_rollouts", rewards=[])
    config.judge = JudgeConfig("opponent", mode=JudgeMode.scores)
    samples = [make_sample(0, 0, "4"), make_sample(0, 1, "5"), make_sample(1, 0, "4"), make_sample(1, 1, "5")]
    scores = [JudgedScore(0, 0, 0.5, 0.5, 0.5, 1.0, 1.0, None), JudgedScore(0, 1, -0.5, -0.5, -0.5, 1.0, 1.0, None)]
    scores += [JudgedScore(1, 0, 0.5, 0.5, 0.5, 1.0, 1.0, None), JudgedScore(1, 1, *[math.nan] * 3, 0.0, 0.0, "mass")]
    paths = [str(tmp_path / name) for name in ("prompts", "samples", "judgements", "out")]
    write_rows(Path(paths[0]), Prompt, [make_prompt(0), make_prompt(1)])
    write_rows(Path(paths[1]), Sample, samples)
    write_rows(Path(paths[2]), JudgedScore, scores)
    policy = Policy("p", "d")
    job = RowsJob(config, 0, policy, policy, paths[0], paths[1], [], [], paths[3], judgements=paths[2])
    built = build_rows(job)
    assert [(row.prompt_id, row.reward) for row in built.rows if isinstance(row, Rollout)] == [(0, 0.5), (0, -0.5)]
    assert built.dropped == {"judge_failed": 2}
    assert built.rewards is not None
    assert (built.rewards.prompts, built.rewards.mean) == (1, 0.0)


def test_a_judge_that_compares_needs_two_answers() -> None:
    config = make_settings(PpoObjective(), rows="judged_rollouts", rewards=[])
    config.judge = JudgeConfig("opponent")
    check_feedback(config)
    config.generation = GenerationConfig(samples_per_prompt=1)
    with pytest.raises(ConfigError, match="samples_per_prompt=1 with feedback.rows=judged_rollouts: nothing to"):
        check_feedback(config)
    config.judge = JudgeConfig("opponent", mode=JudgeMode.scores)
    check_feedback(config)


def test_many_steps_on_the_answers_of_one_opponent_are_warned_of() -> None:
    config = make_settings(GrpoObjective())
    config.generation = GenerationConfig(samples_per_prompt=4)
    # 64 prompts with 4 answers, 8 a step, 2 epochs: 64 steps.
    config.training = TrainingConfig(batch_size=8, epochs=2, max_length=1024)
    assert describe_updates([config], 64) == []
    [line] = describe_updates([config], 65)
    assert line.startswith("warning: iteration 0: objective=grpo takes 66 optimizer steps on 260 answers")
    config.generation = GenerationConfig(samples_per_prompt=4, prompts_per_iteration=16)
    assert describe_updates([config], 8000) == []
    pairs = replace(config, objective=SpinObjective(), generation=GenerationConfig())
    assert describe_updates([pairs], 8000) == []
