"""Scores of single answers on a scale and on the reversed scale, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from spin.config.groups import FeedbackConfig
from spin.config.judge import Contestants, JudgeConfig, JudgedPairsConfig, JudgeMode
from spin.config.objective import KtoObjective, PsipoObjective
from spin.data.judge_records import JudgedScore
from spin.data.records import Pair, Rating
from spin.errors import ConfigError
from spin.feedback.feedback_checks import check_feedback
from spin.feedback.judge_labels import LabelProbabilities, restrict_to_labels
from spin.feedback.judge_scores import (
    combine_scales,
    find_scale_bias,
    make_score_matrix,
    picks_same_end,
    score_answers,
)
from spin.feedback.judge_template import Question, load_template
from spin.feedback.judgement_files import measure_scores
from spin.feedback.row_builders import make_row_builder
from tests.feedback.samples import make_config, make_group

TEN = [[number] for number in range(1, 11)]


def reply(probabilities: dict[int, float]) -> LabelProbabilities:
    """The reply of a judge that gives these numbers of the scale 1 to 10 these probabilities."""
    return restrict_to_labels({number: math.log(value) for number, value in probabilities.items()}, TEN)


HIGH = reply({7: 0.20, 8: 0.50, 9: 0.25})


def test_both_scales_are_averaged_and_the_reversed_one_changes_its_sign() -> None:
    # The same opinion on the scale whose lowest number is the best: 4, 3 and 2 for 7, 8 and 9.
    score = combine_scales(3, 0, HIGH, reply({4: 0.20, 3: 0.50, 2: 0.25}), 0.5)
    # E = (7·0.2 + 8·0.5 + 9·0.25) / 0.95 = 8.052632, then (E − 5.5) / 4.5.
    assert score.forward == pytest.approx(0.567251, abs=1e-6)
    assert score.backward == pytest.approx(0.567251, abs=1e-6)
    assert score.score == pytest.approx(0.567251, abs=1e-6)
    assert score.mass_forward == pytest.approx(0.95)
    assert find_scale_bias(score) == pytest.approx(0)
    assert not picks_same_end(score)
    assert score.failure is None


def test_a_judge_that_likes_high_numbers_gives_no_score() -> None:
    score = combine_scales(3, 0, HIGH, HIGH, 0.5)
    assert score.score == 0
    assert find_scale_bias(score) == pytest.approx(0.567251, abs=1e-6)
    assert picks_same_end(score)


def test_one_scale_alone_keeps_the_preference_for_high_numbers() -> None:
    score = combine_scales(3, 0, HIGH, None, 0.5)
    assert score.score == pytest.approx(0.567251, abs=1e-6)
    assert math.isnan(score.backward)
    assert score.failure is None


def test_too_little_mass_on_either_scale_is_a_failure() -> None:
    assert combine_scales(3, 0, HIGH, reply({4: 0.1}), 0.5).failure == "mass"
    assert combine_scales(3, 0, HIGH, reply({}), 0.0).failure == "mass"


def make_score(index: int, value: float, failure: str | None = None, prompt_id: int = 3) -> JudgedScore:
    return JudgedScore(prompt_id, index, value, value, value, 1.0, 1.0, failure)


def test_the_higher_score_is_preferred_and_close_ones_are_a_tie() -> None:
    scores = [make_score(0, 0.5), make_score(1, 0.46), make_score(2, -0.2), make_score(3, math.nan, "mass")]
    matrix = make_score_matrix([0, 1, 2, 3], scores, 0.05)
    assert matrix[0][:3] == [0.5, 0.5, 1.0]
    assert matrix[2][:3] == [0.0, 0.0, 0.5]
    assert math.isnan(matrix[0][3])
    assert math.isnan(matrix[3][0])
    assert matrix[3][3] == 0.5


def test_the_best_score_is_chosen_against_the_worst_and_equal_scores_give_no_pair() -> None:
    builder = make_row_builder(FeedbackConfig(rows="judged_pairs"))
    group = replace(make_group("a", "b", "c"), scores=[make_score(0, 0.1), make_score(1, 0.9), make_score(2, -0.5)])
    [pair], dropped = builder.build(group, [0.0] * 3)
    assert isinstance(pair, Pair)
    # The token of a sample is its index.
    assert (pair.chosen_ids[1], pair.rejected_ids[1], pair.preference) == (1, 2, 1.0)
    assert dropped == {}
    equal = replace(group, scores=[make_score(index, 0.4) for index in range(3)])
    assert builder.build(equal, [0.0] * 3) == ([], {"tie": 1})


def test_samples_above_the_least_score_are_desirable_and_failures_are_counted() -> None:
    feedback = FeedbackConfig(rows="judged_ratings", judged=JudgedPairsConfig(min_score=0.2))
    builder = make_row_builder(feedback)
    scores = [make_score(0, 0.1), make_score(1, 0.9), make_score(2, math.nan, "too_long")]
    ratings, dropped = builder.build(replace(make_group("a", "b", "c"), scores=scores), [0.0] * 3)
    assert [(row.sample_index, row.desirable) for row in ratings if isinstance(row, Rating)] == [(0, False), (1, True)]
    assert dropped == {"judge_failed": 1}


def test_each_answer_is_asked_on_both_scales() -> None:
    config = make_config(2, rows="judged_ratings")
    config.judge = JudgeConfig("opponent", mode=JudgeMode.scores, scale=[0, 5])
    config.feedback.judged.contestants = Contestants.truth_and_samples
    template = load_template("score", config.judge.reply_labels, 100, 1)
    asked: list[str] = []

    def ask(questions: Sequence[Question]) -> list[LabelProbabilities]:
        """Reply 5 if the answer is the truth, else 0, on the scale that is shown."""
        replies = []
        for question in questions:
            asked.append(question.text)
            highest_is_best = "from 0 (worst) to 5 (best)" in question.text
            is_good = "It is 4" in question.text
            probabilities = [0.0] * 6
            probabilities[5 if is_good == highest_is_best else 0] = 1.0
            replies.append(LabelProbabilities(probabilities, 1.0))
        return replies

    scores = score_answers(ask, config, template, [make_group("no", "It is 4")])
    assert len(asked) == 6
    assert sum("from 5 (worst) to 0 (best)" in text for text in asked) == 3
    assert [(score.sample_index, score.score, score.forward, score.backward) for score in scores] == [
        (-1, 1, 1, 1),
        (0, -1, -1, -1),
        (1, 1, 1, 1),
    ]
    statistics = measure_scores(scores)
    # The truth is better than sample 0 and as good as sample 1.
    assert statistics.truth.value == 0.75
    assert statistics.score.value == 0
    assert statistics.bias.value == 0
    assert statistics.to_texts()["score"] == "0.000±1.960"


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("opponent", {"scale": [9, 1]}, r"judge.scale=\[9, 1\]: expected the lowest and the highest"),
        ("opponent", {"scale": [1, 5, 9]}, "expected the lowest and the highest"),
        ("https://host/v1", {"name": "a", "scale": [1, 10]}, "judge.scale: 10: expected single characters"),
    ],
)
def test_unusable_scales_are_refused(model: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeConfig(model, mode=JudgeMode.scores, **settings)  # type: ignore[arg-type]


def test_ratings_need_scores_and_scores_are_no_soft_labels() -> None:
    config = make_config(2, rows="judged_ratings")
    config.objective = KtoObjective()
    config.judge = JudgeConfig("opponent")
    with pytest.raises(ConfigError, match="feedback.rows=judged_ratings needs scores of single answers"):
        check_feedback(config)
    config.judge = JudgeConfig("opponent", mode=JudgeMode.scores)
    check_feedback(config)
    config.feedback.rows = "judged_pairs"
    config.objective = PsipoObjective(psi="logit")
    with pytest.raises(ConfigError, match="objective.psi=logit needs soft preferences"):
        check_feedback(config)


def test_a_template_for_scores_shows_one_answer() -> None:
    template = load_template("score", ["1", "2", "3"], 100, 1)
    question = template.ask("Sort: ba", ["ab"], reversed_scale=True)
    assert "from 3 (worst) to 1 (best)" in question.text
    assert question.ending == "Score: ["
    with pytest.raises(ConfigError, match="judge.template=pairwise cannot be rendered"):
        load_template("pairwise", ["1", "2", "3"], 100, 1)
