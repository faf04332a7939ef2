"""Scores that a judge gives to single answers, as the expectation over a scale of numbers.

    forward   E = Σ_ℓ ℓ · P(ℓ) on the scale whose highest number is the best, mapped to −1 … 1
    backward  −E on the scale whose lowest number is the best
    score     (forward + backward) / 2
    bias towards high numbers = (forward − backward) / 2

arXiv 2309.00267, §2.2.2. A preference for high numbers has no influence on the score if both scales
are asked (such a bias: arXiv 2602.02219).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from spin.config.run import RunConfig
from spin.data.judge_records import JudgedScore
from spin.feedback.judge_comparison import TRUTH, list_contestants, list_texts
from spin.feedback.judge_labels import LabelProbabilities, find_failure
from spin.feedback.judge_template import AskJudge, JudgeTemplate, Question
from spin.feedback.sample_group import SampleGroup


def combine_scales(
    prompt_id: int,
    sample_index: int,
    forward: LabelProbabilities,
    backward: LabelProbabilities | None,
    min_mass: float,
) -> JudgedScore:
    """Return the score of an answer from the judge's probabilities on both scales.

    Args:
        prompt_id: The prompt.
        sample_index: The answer.
        forward: Probabilities of the numbers, lowest first, if the highest is the best.
        backward: The same, lowest first, if the lowest is the best; None if it was not asked.
        min_mass: A score with less mass on either scale is a failure.
    """
    numbers = range(len(forward.probabilities))
    score_forward = forward.expectation(numbers)
    score = score_forward
    score_backward = mass_backward = math.nan
    replies = [forward]
    if backward is not None:
        score_backward = -backward.expectation(numbers)
        mass_backward = backward.mass
        score = (score_forward + score_backward) / 2
        replies.append(backward)
    return JudgedScore(
        prompt_id=prompt_id,
        sample_index=sample_index,
        score=score,
        forward=score_forward,
        backward=score_backward,
        mass_forward=forward.mass,
        mass_backward=mass_backward,
        failure=find_failure(replies, min_mass),
    )


def score_answers(
    ask: AskJudge, config: RunConfig, template: JudgeTemplate, groups: Sequence[SampleGroup]
) -> list[JudgedScore]:
    """Let a judge score the answers of each prompt.

    Args:
        ask: Asks the judge.
        config: Config of the iteration.
        template: The question.
        groups: The prompts with their samples.
    """
    # Every answer on both scales, or on the first one alone.
    keys: list[tuple[int, int]] = []
    questions: list[Question] = []
    for group in groups:
        texts = list_texts(group)
        for answer in list_contestants(group, config.feedback.judged.contestants):
            keys.append((group.prompt.prompt_id, answer))
            questions.append(template.ask(group.prompt.prompt_text, [texts[answer]]))
            if config.judge.both_scales:
                questions.append(template.ask(group.prompt.prompt_text, [texts[answer]], reversed_scale=True))

    # Ask all at once, so that an engine can work in batches.
    replies = iter(ask(questions))
    scores = []
    for prompt_id, answer in keys:
        forward = next(replies)
        backward = None
        if config.judge.both_scales:
            backward = next(replies)
        scores.append(combine_scales(prompt_id, answer, forward, backward, config.feedback.judged.min_mass))
    return scores


def find_scale_bias(score: JudgedScore) -> float:
    """Return how far the judge prefers high numbers, from −1 to 1."""
    return (score.forward - score.backward) / 2


def picks_same_end(score: JudgedScore) -> bool:
    """Return whether the judge gives high numbers, or low ones, on both scales."""
    return (score.forward > 0) == (score.backward < 0)


def make_score_matrix(answers: Sequence[int], scores: Sequence[JudgedScore], tie_band: float) -> list[list[float]]:
    """Return 1 where answer i has the higher score, 0 where j has it, ½ if they are about equal.

    Args:
        answers: Indices of the answers, in the order of rows and columns.
        scores: The scores of one prompt.
        tie_band: Scores that are closer to each other are about equal.

    Returns:
        The matrix; NaN where the score of either answer failed, except for i = j.
    """
    score_of = {score.sample_index: score.score for score in scores if score.failure is None}
    matrix = []
    for row, first in enumerate(answers):
        preferences = []
        for column, second in enumerate(answers):
            preference = 0.5
            difference = score_of.get(first, math.nan) - score_of.get(second, math.nan)
            if row != column and math.isnan(difference):
                preference = math.nan
            elif row != column and abs(difference) >= tie_band and difference != 0:
                preference = float(difference > 0)
            preferences.append(preference)
        matrix.append(preferences)
    return matrix


def compare_with_truth(scores: Sequence[JudgedScore]) -> list[float]:
    """Return for each scored sample 1 if the ground truth of its prompt has a higher score, else 0.

    Equal scores give ½. Samples of prompts whose ground truth has no score are left out.
    """
    truths = {score.prompt_id: score.score for score in scores if score.sample_index == TRUTH and not score.failure}
    agreements = []
    for score in scores:
        if score.sample_index == TRUTH or score.failure is not None or score.prompt_id not in truths:
            continue
        truth = truths[score.prompt_id]
        agreements.append(float(truth > score.score) + 0.5 * (truth == score.score))
    return agreements
