"""Compare two answers with a judge that was asked in both orders.

    forward   q₁ = P("1" | A first, B second)
    backward  q₂ = P("1" | B first, A second)
    preference p(A is better than B) = (q₁ + 1 − q₂) / 2
    bias towards the first place      = (q₁ + q₂) / 2 − ½

arXiv 2309.00267, §2.1.1. A preference for a place has no influence on p if both orders are asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from spin.config.judge import Contestants, JudgedPairChoice
from spin.config.run import RunConfig
from spin.data.judge_records import Judgement
from spin.feedback.judge_labels import LabelProbabilities, find_failure
from spin.feedback.judge_template import AskJudge, JudgeTemplate, Question
from spin.feedback.sample_group import SampleGroup

TRUTH = -1
"""Index of the ground truth among the answers of a prompt; samples count from 0."""


def combine_orders(
    prompt_id: int,
    pair: tuple[int, int],
    forward: LabelProbabilities,
    backward: LabelProbabilities | None,
    min_mass: float,
) -> Judgement:
    """Return the judgement of two answers from the judge's probabilities in both orders.

    Args:
        prompt_id: The prompt.
        pair: Indices of answers A and B.
        forward: Probabilities of the labels for place 1 and place 2, with A in place 1.
        backward: The same with B in place 1; None if one order alone was asked.
        min_mass: A judgement with less mass in either order is a failure.
    """
    q_forward = forward.probabilities[0]
    preference = q_forward
    q_backward = mass_backward = math.nan
    replies = [forward]
    if backward is not None:
        q_backward = backward.probabilities[0]
        mass_backward = backward.mass
        preference = (q_forward + 1 - q_backward) / 2
        replies.append(backward)

    return Judgement(
        prompt_id=prompt_id,
        first=pair[0],
        second=pair[1],
        forward=q_forward,
        backward=q_backward,
        preference=preference,
        mass_forward=forward.mass,
        mass_backward=mass_backward,
        failure=find_failure(replies, min_mass),
    )


def find_bias(judgement: Judgement) -> float:
    """Return how far the judge prefers the first place, from −½ to ½."""
    return (judgement.forward + judgement.backward) / 2 - 0.5


def picks_same_place(judgement: Judgement) -> bool:
    """Return whether the judge prefers the same place in both orders, whichever answer is there."""
    return (judgement.forward > 0.5) == (judgement.backward > 0.5)


def is_tie(judgement: Judgement, tie_band: float) -> bool:
    """Return whether the preference is closer to ½ than `tie_band`."""
    return abs(judgement.preference - 0.5) < tie_band


def list_contestants(group: SampleGroup, contestants: Contestants) -> list[int]:
    """Return the indices of the answers that are judged."""
    samples = [sample.sample_index for sample in group.samples]
    if contestants is Contestants.truth_and_samples:
        return [TRUTH, *samples]
    return samples


def list_texts(group: SampleGroup) -> dict[int, str]:
    """Return the texts of the answers of a prompt by their index."""
    texts = {sample.sample_index: sample.text for sample in group.samples}
    texts[TRUTH] = group.prompt.completion_text
    return texts


def compare_answers(
    ask: AskJudge, config: RunConfig, template: JudgeTemplate, groups: Sequence[SampleGroup]
) -> list[Judgement]:
    """Let a judge compare the answers of each prompt.

    Args:
        ask: Asks the judge.
        config: Config of the iteration.
        template: The question.
        groups: The prompts with their samples.
    """
    # Every pair of answers in both orders, or in the first one alone.
    settings = config.feedback.judged
    keys: list[tuple[int, tuple[int, int]]] = []
    questions: list[Question] = []
    for group in groups:
        texts = list_texts(group)
        prompt = group.prompt.prompt_text
        answers = list_contestants(group, settings.contestants)
        for first, second in list_comparisons(answers, settings.pairs is JudgedPairChoice.truth):
            keys.append((group.prompt.prompt_id, (first, second)))
            questions.append(template.ask(prompt, [texts[first], texts[second]]))
            if config.judge.both_orders:
                questions.append(template.ask(prompt, [texts[second], texts[first]]))

    # Ask all at once, so that an engine can work in batches.
    replies = iter(ask(questions))
    judgements = []
    for prompt_id, pair in keys:
        forward = next(replies)
        backward = None
        if config.judge.both_orders:
            backward = next(replies)
        judgements.append(combine_orders(prompt_id, pair, forward, backward, settings.min_mass))
    return judgements


def list_comparisons(answers: Sequence[int], against_truth: bool) -> list[tuple[int, int]]:
    """Return the pairs of answers that a judge compares.

    Args:
        answers: Indices of the answers of a prompt.
        against_truth: Only compare the ground truth with each other answer.
    """
    if against_truth:
        return [(TRUTH, answer) for answer in answers if answer != TRUTH]
    return list(combinations(answers, 2))


def make_preference_matrix(answers: Sequence[int], judgements: Sequence[Judgement]) -> list[list[float]]:
    """Return p_ij = P(answer i is better than answer j); ½ for i = j, and NaN if it failed.

    Args:
        answers: Indices of the answers, in the order of rows and columns.
        judgements: The judgements of one prompt.
    """
    position = {answer: index for index, answer in enumerate(answers)}
    matrix = [[math.nan] * len(answers) for _ in answers]
    for index in range(len(answers)):
        matrix[index][index] = 0.5
    for judgement in judgements:
        if judgement.failure is not None:
            continue
        # The same judgement, read from both sides.
        first = position[judgement.first]
        second = position[judgement.second]
        matrix[first][second] = judgement.preference
        matrix[second][first] = 1 - judgement.preference
    return matrix
