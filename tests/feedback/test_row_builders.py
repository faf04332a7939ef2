"""Row builders and drop reasons on samples whose rows are known, and the settings that are refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin.config.groups import FeedbackConfig, PairsConfig
from spin.data.parquet import write_rows
from spin.data.records import Pair, Prompt, Sample, Score
from spin.errors import ConfigError
from spin.feedback.pairs import PairsJob, build_pairs, drop_reason
from spin.feedback.row_builders import BestWorstPairs, RowBuilder, TruthPairs, check_feedback
from spin.feedback.sample_group import SampleGroup
from spin.models.policy import Policy
from tests.feedback.samples import make_config, make_group, make_prompt, make_sample

OWN = f"{__name__}.FirstOnly"
POLICY = Policy("policy", "digest")


class FirstOnly(RowBuilder):
    """A row builder as a user writes it: one pair, of the truth and the first sample."""

    def build(self, group: SampleGroup, rewards: list[float]) -> tuple[list[Pair], dict[str, int]]:
        rows, _ = TruthPairs().build(group, rewards)
        return rows[:1], {"later": len(rows) - 1}

    def count_rows(self, num_samples: int) -> int:
        return 1


class TooMany(FirstOnly):
    """Says that it builds no row, and builds one."""

    def count_rows(self, num_samples: int) -> int:
        return 0


def halves(rows: list[Pair]) -> list[tuple[list[int], list[int], int]]:
    """Chosen tokens, rejected tokens, and index of the rejected sample."""
    return [(pair.chosen_ids, pair.rejected_ids, pair.sample_index) for pair in rows]


def test_truth_pairs_prefer_the_ground_truth_to_each_sample() -> None:
    rows, dropped = TruthPairs().build(make_group("4", "5"), [0.0, 0.0])
    assert halves(rows) == [([5, 2], [7, 0], 0), ([5, 2], [7, 1], 1)]
    assert dropped == {}
    pair = rows[1]
    assert (pair.prompt_id, pair.iteration, pair.prompt_ids) == (3, 2, [1, 9, 3])
    assert pair.sampler_rejected_logp == -2.5
    assert math.isnan(pair.reference_chosen_logp)
    assert math.isnan(pair.reference_rejected_logp)
    assert TruthPairs().count_rows(4) == 4


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
    rows, dropped = BestWorstPairs().build(make_group("a", "b", "c", "d"), rewards)
    assert halves(rows) == [([7, best], [7, worst], worst)]
    assert rows[0].sampler_rejected_logp == -1.5 - worst
    assert dropped == {}


def test_samples_with_equal_rewards_give_no_best_worst_pair_and_are_counted() -> None:
    assert BestWorstPairs().build(make_group("a", "b", "c"), [0.5, 0.5, 0.5]) == ([], {"equal_rewards": 1})
    assert BestWorstPairs().count_rows(4) == 1


def write_shard(folder: Path, config: Any, rewards: list[str]) -> PairsJob:
    """A shard of two prompts with two samples each, whose first sample is right."""
    samples = [make_sample(prompt_id, index, text) for prompt_id in (0, 1) for index, text in enumerate("45")]
    write_rows(folder / "prompts.parquet", Prompt, [make_prompt(0), make_prompt(1)])
    write_rows(folder / "samples.parquet", Sample, samples)
    paths = [str(folder / f"{name}.parquet") for name in ("prompts", "samples")]
    return PairsJob(config, 2, POLICY, POLICY, *paths, rewards, [], str(folder / "pairs.parquet"))


def test_a_shard_of_best_worst_pairs_has_one_pair_for_each_prompt_whose_rewards_differ(tmp_path: Path) -> None:
    own = {"name": "own", "_target_": "tests.feedback.samples.TextLength", "weight": 3.0, "parameters": {"most": 1}}
    config = make_config(2, rows="best_worst_pairs", rewards=["exact_match", own])
    files = [str(tmp_path / "exact.parquet"), str(tmp_path / "own.parquet")]
    write_rows(Path(files[0]), Score, [Score(0, 0, 1.0), Score(0, 1, 0.0), Score(1, 0, 3.0), Score(1, 1, 0.0)])
    # Prompt 0: 1 + 0 against 0 + 3. Prompt 1: 3 + 0 against 0 + 3, which are equal.
    write_rows(Path(files[1]), Score, [Score(0, 0, 0.0), Score(0, 1, 1.0), Score(1, 0, 0.0), Score(1, 1, 1.0)])
    pairs, dropped = build_pairs(write_shard(tmp_path, config, files))
    assert [(pair.prompt_id, *halves([pair])[0]) for pair in pairs] == [(0, [7, 1], [7, 0], 0)]
    assert dropped == {"equal_rewards": 1}


def test_drop_reasons_are_counted_for_the_rows_of_any_builder(tmp_path: Path) -> None:
    config = make_config(2, rows=OWN)
    config.pairs.drop_right = True
    pairs, dropped = build_pairs(write_shard(tmp_path, config, []))
    assert (pairs, dropped) == ([], {"later": 2, "right": 2})
    config = make_config(2, rows="truth_pairs")
    pairs, dropped = build_pairs(write_shard(tmp_path, config, []))
    assert (len(pairs), dropped) == (4, {})
    config.pairs.drop_right = True
    pairs, dropped = build_pairs(write_shard(tmp_path, config, []))
    assert [(pair.prompt_id, pair.sample_index) for pair in pairs] == [(0, 1), (1, 1)]
    assert dropped == {"right": 2}


def test_a_builder_that_builds_more_rows_than_it_says_is_refused(tmp_path: Path) -> None:
    job = write_shard(tmp_path, make_config(2, rows=f"{__name__}.TooMany"), [])
    with pytest.raises(RuntimeError, match="built 1 rows for prompt 0; expected at most 0, as count_rows says"):
        build_pairs(job)


def test_each_drop_setting_drops_its_own_pairs() -> None:
    [pair], _ = TruthPairs().build(make_group("4"), [0.0])
    prompt, right, cut = make_prompt(3), make_sample(3, 0, "4"), make_sample(3, 0, "4", "length")
    everything = PairsConfig(drop_identical=True, drop_cut=True, drop_right=True)
    nothing = PairsConfig(drop_identical=False)
    target = replace(right, completion_ids=[5, 2])
    other_tokens = make_sample(3, 0, "It is 4")
    assert drop_reason(everything, prompt, pair, target, None) == "identical"
    assert drop_reason(everything, prompt, pair, other_tokens, None) == "identical"
    assert drop_reason(everything, prompt, pair, cut, None) == "cut"
    assert drop_reason(everything, prompt, pair, right, None) == "right"
    assert drop_reason(everything, prompt, pair, make_sample(3, 0, "5"), None) is None
    assert drop_reason(nothing, prompt, pair, target, None) is None
    assert drop_reason(nothing, prompt, pair, cut, None) is None


def test_two_equal_samples_make_no_pair_whatever_their_rewards() -> None:
    group = make_group("5", "5")
    twins = [replace(sample, completion_ids=[7]) for sample in group.samples]
    [pair], _ = BestWorstPairs().build(replace(group, samples=twins), [1.0, 0.0])
    assert drop_reason(PairsConfig(), group.prompt, pair, twins[1], None) == "identical"


@pytest.mark.parametrize(
    ("samples", "feedback", "message"),
    [
        (4, {"rows": "best"}, "feedback.rows=best: expected one of truth_pairs, best_worst_pairs, null, or module"),
        (4, {"rows": "nowhere.Rows"}, "feedback.rows=nowhere.Rows cannot be imported"),
        (4, {"rows": f"{__name__}.POLICY"}, "expected a class derived from RowBuilder"),
        (4, {"rows": "best_worst_pairs"}, "feedback.rows=best_worst_pairs needs rewards, and feedback.rewards is"),
        (4, {"rewards": ["exact_match"]}, "rewards=[exact_match] is not used by feedback.rows=truth_pairs"),
        (
            1,
            {"rows": "best_worst_pairs", "rewards": ["exact_match"]},
            "generation.samples_per_prompt=1: feedback.rows=best_worst_pairs needs at least 2 samples",
        ),
        (4, {"rows": "best_worst_pairs", "rewards": ["exact"]}, "feedback.rewards: no source exact"),
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


def test_rewards_without_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="with feedback.rows=null: there are no samples to score"):
        FeedbackConfig(rows=None, path="pairs.jsonl", rewards=["exact_match"])
