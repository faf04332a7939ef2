"""The rows of policy gradients: single answers with a reward and figures of each token."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rollout:
    """An answer of the opponent with its reward; lists of floats have one value for each token.

    Example: ``Rollout(3, 0, 1, [1, 9, 4], [5, 2], "stop", 1.0, -0.7)``.
    """

    prompt_id: int
    """Position in the training set."""
    sample_index: int
    iteration: int
    """Iteration whose opponent, π_old, sampled the answer."""
    prompt_ids: list[int]
    completion_ids: list[int]
    finish_reason: str
    """``stop`` or ``length``; a truncated answer has no end of turn."""
    reward: float
    """Weighted sum of all reward sources, limited and with the penalty of a truncated answer."""
    sampler_logp: float
    """The engine's log-probability of the answer, to compare with the trainer's."""
    old_logps: list[float] = field(default_factory=list)
    """log π_old of each token, in nats; empty until the opponent has scored the answer."""
    base_logps: list[float] = field(default_factory=list)
    """log π_base of each token; empty with `objective.kl_weight=0`."""
    values: list[float] = field(default_factory=list)
    """Value of the state before each token, of the critic; empty without a critic."""
    advantages: list[float] = field(default_factory=list)
    """How much better than expected each token turned out, in units of the reward."""
    returns: list[float] = field(default_factory=list)
    """Targets of the critic, advantage plus value; empty without a critic."""
