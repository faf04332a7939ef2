"""Row builders and drop reasons on samples whose rows are known, and refused settings."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin.config.groups import FeedbackConfig, PairsConfig
from spin.config.objective import KtoObjective, PsipoObjective, SftObjective
from spin.data.parquet import write_rows
from spin.data.records import Pair, Prompt, Rating, Sample, Score, TrainingRow
from spin.errors import ConfigError
from spin.feedback.dropped_rows import find_drop_reason
from spin.feedback.feedback_checks import check_feedback, check_replay, describe_verifier
from spin.feedback.row_builders import (
    BestWorstPairs,
    Built,
    Ratings,
    RightWrongPairs,
    RowBuilder,
    SoftPairs,
    TruthPairs,
    WrongTruthPairs,
    make_rating,
)
from spin.feedback.rows import RowsJob, build_rows
from spin.feedback.sample_group import SampleGroup
from spin.models.policy import Policy
from spin.run_dir.reward_statistics import RewardStatistics
from tests.feedback.samples import make_config, make_group, make_prompt, make_sample

OWN = f"{__name__}.FirstOnly"
POLICY = Policy("policy", "digest")
FEEDBACK = FeedbackConfig()


class FirstOnly(RowBuilder):
    """A row builder as a user writes it: one pair, of the truth and the first sample."""

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        rows, _ = TruthPairs(FEEDBACK).build(group, rewards)
        return rows[:1], {"later": len(rows) - 1}

    def count_rows(self, num_samples: int) -> int:
        return 1


class Unfinished(RowBuilder):
    """Lacks both methods."""


class TooMany(FirstOnly):
    """Says that it builds no row, and builds one."""

    def count_rows(self, num_samples: int) -> int:
        return 0


def halves(rows: Sequence[TrainingRow]) -> list[tuple[list[int], list[int], int]]:
    """Chosen tokens, rejected tokens, and index of the rejected sample."""
    found = []
    for row in rows:
        assert isinstance(row, Pair)
        found.append((row.chosen_ids, row.rejected_ids, row.sample_index))
    return found


def test_truth_pairs_prefer_the_ground_truth_to_each_sample() -> None:
    rows, dropped = TruthPairs(FEEDBACK).build(make_group("4", "5"), [0.0, 0.0])
    assert halves(rows) == [([5, 2], [7, 0], 0), ([5, 2], [7, 1], 1)]
    assert dropped == {}
    pair = rows[1]
    assert (pair.prompt_id, pair.iteration, pair.prompt_ids) == (3, 2, [1, 9, 3])
    assert pair.sampler_rejected_logp == -2.5
    assert math.isnan(pair.reference_chosen_logp)
    assert math.isnan(pair.reference_rejected_logp)
    assert TruthPairs(FEEDBACK).count_rows(4) == 4


@pytest.mark.parametrize(
    ("rewards", "best", "worst"),
    [
        ([0.0, 2.0, 1.0, -1.0], 1, 3),
        ([1.0, 0.0, 1.0, 0.0], 0, 1),  # of equal rewards the lowest index
        ([0.0, 0.0, 0.0, 1.0], 3, 0),
        ([-3.0, -3.0, -4.0, -4.0], 0, 2),
    ],
)
def test_best_worst_pairs_prefer_the_sample_with_the_highest_reward_to_that_with_the_lowest(
    rewards: list[float], best: int, worst: int
) -> None:
    rows, dropped = BestWorstPairs(FEEDBACK).build(make_group("a", "b", "c", "d"), rewards)
    assert halves(rows) == [([7, best], [7, worst], worst)]
    assert rows[0].sampler_rejected_logp == -1.5 - worst
    assert dropped == {}


def test_samples_with_equal_rewards_give_no_best_worst_pair_and_are_counted() -> None:
    assert BestWorstPairs(FEEDBACK).build(make_group("a", "b", "c"), [0.5, 0.5, 0.5]) == ([], {"equal_rewards": 1})
    assert BestWorstPairs(FEEDBACK).count_rows(4) == 1


def test_wrong_truth_pairs_prefer_the_ground_truth_to_the_wrong_samples_alone() -> None:
    rows, dropped = WrongTruthPairs(FEEDBACK).build(make_group("4", "5", "4", "6"), [1.0, 0.0, 1.0, 0.5])
    # A reward at the threshold is not above it.
    assert halves(rows) == [([5, 2], [7, 1], 1), ([5, 2], [7, 3], 3)]
    assert dropped == {"right": 2}
    assert WrongTruthPairs(FEEDBACK).build(make_group("5"), [0.0])[1] == {}
    assert WrongTruthPairs(FEEDBACK).build(make_group("4", "4"), [1.0, 1.0]) == ([], {"right": 2})
    assert WrongTruthPairs(FEEDBACK).count_rows(4) == 4


@pytest.mark.parametrize(
    ("rewards", "pairs"),
    [
        ([1.0, 0.0, 1.0, 0.0], [(0, 1), (2, 3)]),
        ([1.0, 0.0, 0.0, 0.0], [(0, 1), (0, 2), (0, 3)]),  # the right one is taken again
        ([1.0, 1.0, 1.0, 0.0], [(0, 3), (1, 3), (2, 3)]),
        ([0.0, 1.0], [(1, 0)]),
    ],
)
def test_right_wrong_pairs_use_each_sample_at_least_once(rewards: list[float], pairs: list[tuple[int, int]]) -> None:
    rows, dropped = RightWrongPairs(FEEDBACK).build(make_group(*"abcd"[: len(rewards)]), rewards)
    assert halves(rows) == [([7, right], [7, wrong], wrong) for right, wrong in pairs]
    assert rows[0].sampler_rejected_logp == -1.5 - pairs[0][1]
    assert len(rows) <= RightWrongPairs(FEEDBACK).count_rows(len(rewards))
    assert dropped == {}


def test_prompts_whose_samples_are_all_right_or_all_wrong_give_no_pair_and_are_counted() -> None:
    builder = RightWrongPairs(FeedbackConfig(threshold=2.0))
    assert builder.build(make_group("a", "b"), [3.0, 2.5]) == ([], {"all_right": 1})
    assert builder.build(make_group("a", "b"), [1.0, 2.0]) == ([], {"all_wrong": 1})
    assert builder.count_rows(4) == 3


def test_ratings_call_each_right_sample_desirable_and_each_wrong_one_undesirable() -> None:
    rows, dropped = Ratings(FEEDBACK).build(make_group("a", "b"), [0.6, 0.4])
    first, second = rows
    assert isinstance(first, Rating)
    assert isinstance(second, Rating)
    assert (first.prompt_id, first.sample_index, first.iteration) == (3, 0, 2)
    assert (first.prompt_ids, first.completion_ids, first.desirable) == ([1, 9, 3], [7, 0], True)
    assert math.isnan(first.reference_logp)
    assert first.sampler_logp == -1.5
    assert (second.completion_ids, second.desirable) == ([7, 1], False)
    assert dropped == {}
    assert Ratings(FEEDBACK).count_rows(4) == 4


def write_shard(folder: Path, config: Any, rewards: list[str]) -> RowsJob:
    """A shard of two prompts with two samples each, whose first sample is right."""
    samples = [make_sample(prompt_id, index, text) for prompt_id in (0, 1) for index, text in enumerate("45")]
    write_rows(folder / "prompts.parquet", Prompt, [make_prompt(0), make_prompt(1)])
    write_rows(folder / "samples.parquet", Sample, samples)
    paths = [str(folder / f"{name}.parquet") for name in ("prompts", "samples")]
    return RowsJob(config, 2, POLICY, POLICY, *paths, rewards, [], str(folder / "pairs.parquet"))


def test_a_shard_of_best_worst_pairs_has_one_pair_for_each_prompt_whose_rewards_differ(tmp_path: Path) -> None:
    own = {"name": "own", "_target_": "tests.feedback.samples.TextLength", "weight": 3.0, "parameters": {"most": 1}}
    config = make_config(2, rows="best_worst_pairs", rewards=["exact_match", own])
    files = [str(tmp_path / "exact.parquet"), str(tmp_path / "own.parquet")]
    write_rows(Path(files[0]), Score, [Score(0, 0, 1.0), Score(0, 1, 0.0), Score(1, 0, 3.0), Score(1, 1, 0.0)])
    # Prompt 0: 1 + 0 against 0 + 3. Prompt 1: 3 + 0 against 0 + 3, which are equal.
    write_rows(Path(files[1]), Score, [Score(0, 0, 0.0), Score(0, 1, 1.0), Score(1, 0, 0.0), Score(1, 1, 1.0)])
    built = build_rows(write_shard(tmp_path, config, files))
    assert [(row.prompt_id, *halves([row])[0]) for row in built.rows] == [(0, [7, 1], [7, 0], 0)]
    assert built.dropped == {"equal_rewards": 1}
    # Means 2.0 and 3.0 over the prompts; all four rewards are above 0.5.
    assert built.rewards == RewardStatistics(2, 5.0, 13.0, 2, 0)


def test_drop_reasons_are_counted_for_the_rows_of_any_builder(tmp_path: Path) -> None:
    config = make_config(2, rows=OWN)
    built = build_rows(write_shard(tmp_path, config, []))
    assert (len(built.rows), built.dropped, built.rewards) == (2, {"later": 2}, None)
    samples = [make_sample(0, 0, "4", "length"), make_sample(0, 1, "5")]
    write_rows(tmp_path / "cut.parquet", Sample, samples)
    config.pairs.drop_cut = True
    job = replace(write_shard(tmp_path, config, []), samples=str(tmp_path / "cut.parquet"))
    built = build_rows(job)
    assert (built.rows, built.dropped) == ([], {"later": 1, "cut": 1})


def test_a_shard_of_ratings_has_one_rating_for_each_sample_that_is_not_cut(tmp_path: Path) -> None:
    config = make_config(2, rows="ratings", rewards=["exact_match"])
    config.pairs.drop_cut = True
    path = str(tmp_path / "exact.parquet")
    write_rows(Path(path), Score, [Score(0, 0, 1.0), Score(0, 1, 0.0), Score(1, 0, 1.0), Score(1, 1, 0.0)])
    job = write_shard(tmp_path, config, [path])
    built = build_rows(job)
    assert built.row_type is Rating
    rated = [(row.prompt_id, row.sample_index, row.desirable) for row in built.rows if isinstance(row, Rating)]
    assert rated == [(0, 0, True), (0, 1, False), (1, 0, True), (1, 1, False)]
    assert built.rewards == RewardStatistics(2, 1.0, 0.5, 0, 0)
    samples = [make_sample(0, 0, "4"), make_sample(0, 1, "5", "length")]
    write_rows(Path(job.samples), Sample, samples)
    built = build_rows(job)
    assert (len(built.rows), built.dropped) == (1, {"cut": 1})


def test_a_builder_that_builds_more_rows_than_it_says_is_refused(tmp_path: Path) -> None:
    job = write_shard(tmp_path, make_config(2, rows=f"{__name__}.TooMany"), [])
    with pytest.raises(RuntimeError, match="built 1 rows for prompt 0; expected at most 0, as count_rows says"):
        build_rows(job)


def test_each_drop_setting_drops_its_own_pairs() -> None:
    [pair], _ = TruthPairs(FEEDBACK).build(make_group("4"), [0.0])
    prompt, right, cut = make_prompt(3), make_sample(3, 0, "4"), make_sample(3, 0, "4", "length")
    everything = PairsConfig(drop_identical=True, drop_cut=True)
    nothing = PairsConfig(drop_identical=False)
    target = replace(right, completion_ids=[5, 2])
    other_tokens = make_sample(3, 0, "It is 4")
    assert find_drop_reason(everything, prompt, pair, target) == "identical"
    assert find_drop_reason(everything, prompt, pair, other_tokens) == "identical"
    assert find_drop_reason(everything, prompt, pair, cut) == "cut"
    assert find_drop_reason(everything, prompt, pair, right) is None
    rating = make_rating(make_group("4"), target, desirable=True)
    assert find_drop_reason(everything, prompt, rating, target) is None
    assert find_drop_reason(everything, prompt, rating, cut) == "cut"
    assert find_drop_reason(everything, prompt, pair, make_sample(3, 0, "5")) is None
    assert find_drop_reason(nothing, prompt, pair, target) is None
    assert find_drop_reason(nothing, prompt, pair, cut) is None


def test_two_equal_samples_make_no_pair_whatever_their_rewards() -> None:
    group = make_group("5", "5")
    twins = [replace(sample, completion_ids=[7]) for sample in group.samples]
    [pair], _ = BestWorstPairs(FEEDBACK).build(replace(group, samples=twins), [1.0, 0.0])
    assert find_drop_reason(PairsConfig(), group.prompt, pair, twins[1]) == "identical"


@pytest.mark.parametrize(
    ("samples", "feedback", "message"),
    [
        (4, {"rows": "best"}, "feedback.rows=best: expected one of truth_pairs, wrong_truth_pairs, right_wrong_pairs"),
        (4, {"rows": "nowhere.Rows"}, "feedback.rows=nowhere.Rows cannot be imported"),
        (4, {"rows": f"{__name__}.POLICY"}, "expected a class derived from RowBuilder"),
        (
            4,
            {"rows": f"{__name__}.Unfinished"},
            "Unfinished cannot be made from (feedback): Can",
        ),
        (4, {"rows": "best_worst_pairs"}, "feedback.rows=best_worst_pairs needs rewards, and feedback.rewards is"),
        (4, {"rewards": ["exact_match"]}, "rewards=[exact_match] is not used by feedback.rows=truth_pairs"),
        (
            1,
            {"rows": "best_worst_pairs", "rewards": ["exact_match"]},
            "generation.samples_per_prompt=1: feedback.rows=best_worst_pairs needs at least 2 samples",
        ),
        (4, {"rows": "best_worst_pairs", "rewards": ["exact"]}, "feedback.rewards: no source exact"),
        (4, {"rows": "right_wrong_pairs"}, "feedback.rows=right_wrong_pairs needs rewards"),
        (
            1,
            {"rows": "right_wrong_pairs", "rewards": ["exact_match"]},
            "feedback.rows=right_wrong_pairs needs at least 2 samples",
        ),
        (
            4,
            {"rows": "ratings", "rewards": ["exact_match"]},
            "feedback.rows=ratings builds ratings, which objective=spin cannot use; take objective=kto",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_in_one_line(
    samples: int, feedback: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_feedback(make_config(samples, **feedback))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_fit_together_are_accepted() -> None:
    check_feedback(make_config(4, rows="best_worst_pairs", rewards=["exact_match"]))
    check_feedback(make_config(1, rows=OWN))
    check_feedback(make_config(1, rows=None, path="pairs.jsonl"))


def test_ratings_fit_kto_and_iterations_that_train_on_other_rows() -> None:
    config = make_config(4, rows="ratings", rewards=["exact_match"])
    config.objective = KtoObjective()
    check_feedback(config)
    config.objective = SftObjective()
    check_feedback(config)


def test_a_psi_beside_the_identity_is_refused_on_hard_labels() -> None:
    config = make_config(1, rows="truth_pairs")
    config.objective = PsipoObjective()
    check_feedback(config)
    config.objective = PsipoObjective(psi="logit")
    with pytest.raises(ConfigError, match=r"psi=logit needs soft preferences.*take objective.psi=identity"):
        check_feedback(config)


def test_a_note_says_when_whole_texts_are_compared() -> None:
    verified = make_config(4, rows="ratings", rewards=["exact_match"])
    [note] = describe_verifier([make_config(4), verified])
    assert note == "exact_match compares whole texts, since data.answer_pattern is null"
    verified.data.answer_pattern = r"= (\d+)"
    assert describe_verifier([make_config(4), verified]) == []


def test_replay_of_rows_of_another_type_is_refused_with_the_iteration() -> None:
    pairs = make_config(4)
    ratings = make_config(4, rows="ratings", rewards=["exact_match"])
    ratings.objective = KtoObjective()
    labelled = make_config(4, rows=None, path="pairs.jsonl")
    ratings.replay = pairs.replay = 1
    check_replay([pairs, pairs, pairs])
    check_replay([pairs, labelled, ratings, ratings])
    with pytest.raises(ConfigError) as caught:
        check_replay([pairs, ratings])
    assert "iteration 1: replay=1 takes the rows of iteration 0" in str(caught.value)
    assert "feedback.rows=truth_pairs there, ratings here); schedule replay=0 for iteration 1" in str(caught.value)
    ratings.replay = 2
    with pytest.raises(ConfigError, match="iteration 2: replay=2 takes the rows of iteration 0"):
        check_replay([pairs, labelled, ratings])


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_threshold_that_is_not_finite_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"feedback\.threshold=.*: expected at least"):
        FeedbackConfig(threshold=threshold)


def test_rewards_without_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="with feedback.rows=null: there are no samples to score"):
        FeedbackConfig(rows=None, path="pairs.jsonl", rewards=["exact_match"])


def test_soft_pairs_are_all_pairs_with_the_preference_of_their_rewards() -> None:
    # σ(1) = 0.731059, σ(2) = 0.880797, σ(3) = 0.952574
    rows, counts = SoftPairs(FeedbackConfig()).build(make_group("a", "b", "c"), [0.0, 2.0, -1.0])
    assert counts == {}
    found = [(row.chosen_ids, row.rejected_ids, row.preference) for row in rows]
    assert [pair[:2] for pair in found] == [([7, 1], [7, 0]), ([7, 0], [7, 2]), ([7, 1], [7, 2])]
    assert [pair[2] for pair in found] == pytest.approx([0.880797, 0.731059, 0.952574], abs=1e-6)
    # Mean over the three answers, itself with ½: (0.5 + 0.880797 + 0.952574) / 3 of the best one.
    assert rows[0].chosen_win_rate == pytest.approx(0.777790, abs=1e-6)
    assert rows[0].rejected_win_rate == pytest.approx((0.5 + 0.119203 + 0.731059) / 3, abs=1e-6)


def test_soft_pairs_of_equal_rewards_are_counted() -> None:
    rows, counts = SoftPairs(FeedbackConfig()).build(make_group("a", "b", "c"), [1.0, 1.0, 0.0])
    assert len(rows) == 2
    assert counts == {"equal_rewards": 1}
    assert SoftPairs(FeedbackConfig()).count_rows(4) == 6
