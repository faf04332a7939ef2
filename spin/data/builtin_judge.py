"""Questions to a judge of the sorted letters, with the replies of a known rule.

The rule: an answer that begins with a needless phrase is worse than one that does not. The order of
the letters does not matter. The forms of the questions are those of the templates `plain` and
`plain_score` of `spin.feedback`.
"""

from __future__ import annotations

import random

Row = dict[str, str]

WRONG = 0.2
"""Share of the answers whose letters are in a random order."""

EQUAL = 0.25
"""Share of the comparisons of the training set in which the rule prefers neither answer."""

SCALE = (0, 5)
"""Lowest and highest score."""


def write_answer(word: str, opening: str, rng: random.Random) -> str:
    """Return an answer with an opening, which may be empty; one of five has its letters wrong."""
    letters = sorted(word)
    if rng.random() < WRONG:
        letters = rng.sample(word, len(word))
    return opening + "".join(letters)


def make_comparison(word: str, phrases: tuple[str, ...], rng: random.Random, may_be_equal: bool) -> Row:
    """Return the question which of two answers is better, with A or B as the reply.

    Args:
        word: The word to be sorted.
        phrases: The needless phrases.
        rng: Source of the answers and of their order.
        may_be_equal: Whether both answers may be equally good; the reply is then random.
    """
    openings = ["", rng.choice(phrases)]
    if may_be_equal and rng.random() < EQUAL:
        openings = rng.choice([["", ""], [rng.choice(phrases), rng.choice(phrases)]])
    rng.shuffle(openings)
    better = rng.choice("AB")
    if not openings[0] and openings[1]:
        better = "A"
    elif openings[0] and not openings[1]:
        better = "B"
    first, second = (write_answer(word, opening, rng) for opening in openings)
    return {"prompt": f"Sort: {word}\nA: {first}\nB: {second}", "completion": f"Better: {better}"}


def make_score(word: str, phrases: tuple[str, ...], rng: random.Random) -> Row:
    """Return the question how good an answer is, with the best or the worst score as the reply."""
    opening = ""
    if rng.random() < 0.5:
        opening = rng.choice(phrases)
    # On one scale alone: the tiny model does not learn what a reversed scale means.
    worst, best = SCALE
    score = best
    if opening:
        score = worst
    question = f"Sort: {word}\nAnswer: {write_answer(word, opening, rng)}\nScore from {worst} to {best}"
    return {"prompt": question, "completion": f"Score: {score}"}
