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

from spin.data.records import Judgement
from spin.feedback.judge_labels import LabelProbabilities

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

    # The first reason that applies is the one that is counted.
    failure = None
    for reply in replies:
        if failure is None:
            failure = reply.failure
        if failure is None and (reply.mass < min_mass or math.isnan(reply.probabilities[0])):
            failure = "mass"
    return Judgement(
        prompt_id=prompt_id,
        first=pair[0],
        second=pair[1],
        forward=q_forward,
        backward=q_backward,
        preference=preference,
        mass_forward=forward.mass,
        mass_backward=mass_backward,
        failure=failure,
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
