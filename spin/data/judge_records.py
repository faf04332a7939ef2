"""The records of a judge's work, stored as rows of parquet files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Judgement:
    """A judge's comparison of two answers to one prompt, asked in both orders.

    Example: ``Judgement(3, 0, 1, 0.79, 0.45, 0.67, 0.94, 0.90, None)``.
    """

    prompt_id: int
    first: int
    """Sample index of an answer; −1: the ground truth."""
    second: int
    """Sample index of the answer that it is compared with."""
    forward: float
    """P(place 1 is better) with `first` in place 1; NaN if the judge gave no label."""
    backward: float
    """P(place 1 is better) with `second` in place 1; NaN with `judge.both_orders=false`."""
    preference: float
    """P(`first` is better than `second`), the mean of both orders; NaN if there is none."""
    mass_forward: float
    """Probability of all labels together, with `first` in place 1."""
    mass_backward: float
    failure: str | None
    """Why the preference cannot be used: ``mass`` (the labels have too little probability) or
    ``too_long``; None if it can."""


@dataclass(frozen=True)
class JudgedScore:
    """A judge's score of one answer, asked on the scale and on the reversed scale.

    Example: ``JudgedScore(3, 0, 0.57, 0.60, 0.54, 0.95, 0.93, None)``.
    """

    prompt_id: int
    sample_index: int
    """−1: the ground truth."""
    score: float
    """From −1 (the worst) to 1 (the best): the mean of both scales; NaN if there is none."""
    forward: float
    """Score on the scale whose highest number is the best; NaN if the judge gave no number."""
    backward: float
    """Score on the scale whose lowest number is the best; NaN with `judge.both_scales=false`."""
    mass_forward: float
    """Probability of all numbers together."""
    mass_backward: float
    failure: str | None
    """As of a Judgement."""
