"""Objectives that learn from the rewards of several answers to a prompt: RLOO and GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from spin.config.objective_base import Need, ObjectiveConfig, RowType
from spin.config.ranges import bounded
from spin.errors import require


class Aggregate(Enum):
    """How the losses of tokens become the loss of an optimizer step."""

    token = "token"
    """The mean over all tokens of the step: a long answer weighs more than a short one."""
    sequence = "sequence"
    """The mean over the answers of their means over tokens: all answers weigh the same."""
    constant = "constant"
    """The sum over all tokens, divided by the number of answers times `objective.constant`."""


class Ratio(Enum):
    """The probability ratio of policy and opponent that is clipped."""

    token = "token"
    """The ratio of each token."""
    sequence = "sequence"
    """The ratio of the whole answer, the product over its tokens."""
    sequence_mean = "sequence_mean"
    """The geometric mean over the tokens of an answer, as in GSPO, arXiv 2507.18071."""


class CriticModel(Enum):
    """The model that gives the values of PPO."""

    separate = "separate"
    """A model of its own, with an optimizer of its own."""
    shared = "shared"
    """A head on the hidden states of the policy, trained in the same forward and backward pass."""


@dataclass
class PolicyGradientObjective(ObjectiveConfig):
    """A clipped policy gradient on answers of the opponent, which is the old policy π_old."""

    row_type: ClassVar[RowType] = RowType.rollout
    needs: ClassVar[frozenset[Need]] = frozenset({Need.reference})
    clip: float = bounded(0.2, above=0, below=1)
    """Ratios below 1 − clip are clipped, above 0 and below 1."""
    clip_high: float | None = bounded(None, above=0, at_most=1_000_000)
    """Ratios above 1 + clip_high are clipped, above 0; null takes `clip`."""
    kl_weight: float = bounded(0.05, at_least=0, at_most=1_000_000)
    """Weight κ of the KL divergence to the policy that iteration 0 started from, at least 0.

    With 0 that policy is not needed, and answers are not scored under it."""
    aggregate: Aggregate = Aggregate.token
    """How tokens are summed: token (mean over tokens), sequence (mean over answers) or constant."""
    constant: int = bounded(256, at_least=1, at_most=10_000_000)
    """Tokens by which each answer is divided with `aggregate=constant`, at least 1.

    The config files set `generation.max_tokens`."""
    ratio: Ratio = Ratio.token
    """Ratio of policy and opponent: token, sequence or sequence_mean."""
    target_kl: float | None = bounded(None, above=0, at_most=1_000_000)
    """Ends the training of an iteration once the policy is further from the opponent; null: never.

    In nats per token, above 0; it is an estimate over the answers of one step. A share of clipped
    tokens above 0.3 ends the training too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.sft_weight == 0,
            f"objective.sft_weight={self.sft_weight}: expected 0, since the rows of objective={self.name} "
            "have no target completion",
        )

    @property
    def needs_base(self) -> bool:
        """Return whether rows are scored by the base beside the opponent."""
        return self.kl_weight > 0

    @property
    def clip_range(self) -> tuple[float, float]:
        """Return the lowest and the highest ratio that is not clipped."""
        high = self.clip_high
        if high is None:
            high = self.clip
        return 1 - self.clip, 1 + high


@dataclass
class GroupObjective(PolicyGradientObjective):
    """A policy gradient whose baseline comes from the other answers to the same prompt."""

    drop_equal: bool = True
    """Drop and count the answers to a prompt whose rewards are all equal: their advantage is 0."""


@dataclass
class RlooObjective(GroupObjective):
    """Leave-one-out baseline, KL divergence in the reward, arXiv 2402.14740."""

    name: str = "rloo"
    aggregate: Aggregate = Aggregate.sequence
    ratio: Ratio = Ratio.sequence


@dataclass
class GrpoObjective(GroupObjective):
    """Rewards relative to those of the group, KL divergence in the loss, arXiv 2402.03300."""

    name: str = "grpo"
    normalise: bool = True
    """Divide the advantages of a prompt by the standard deviation of its rewards.

    False leaves it out, as in Dr. GRPO, arXiv 2503.20783."""


@dataclass
class PpoObjective(PolicyGradientObjective):
    """A critic as baseline, KL divergence in the reward of each token, arXiv 2203.02155."""

    name: str = "ppo"
    gamma: float = bounded(1.0, at_least=0, at_most=1)
    """Discount γ of later rewards, 0 to 1."""
    lam: float = bounded(0.95, at_least=0, at_most=1)
    """Decay λ of the advantage estimate, 0 to 1: 0 trusts the critic, 1 the rewards."""
    whiten: bool = True
    """Shift and scale the advantages of a step to mean 0 and variance 1."""
    value_weight: float = bounded(0.1, at_least=0, at_most=1_000_000)
    """Weight of the critic's loss, at least 0."""
    value_clip: float = bounded(0.2, above=0, at_most=1_000_000)
    """By how much a value may move away from its old one in an iteration, above 0."""
    critic: CriticModel = CriticModel.separate
    """The critic: separate (a model of its own) or shared (a head on the policy).

    A separate critic starts from the reward model of the run if there is one, else from the
    opponent. All its weights are trained, also with `adapter=lora`. A head starts with zeros: that
    of a reward model fits other hidden states."""
    critic_learning_rate: float | None = bounded(None, above=0, at_most=10)
    """Learning rate of the critic, above 0; null takes `training.learning_rate`.

    With `critic=shared` it is that of the head alone."""
    ptx_weight: float = bounded(0.0, at_least=0, at_most=1_000_000)
    """Weight of the token-mean NLL of `data.ptx` beside the answers (PPO-ptx), at least 0."""
    ptx_rows: int = bounded(32, at_least=1, at_most=1_000_000)
    """Rows of `data.ptx` in a step with `ptx_weight` above 0, at least 1."""


def has_critic_head(objective: ObjectiveConfig) -> bool:
    """Return whether the critic is a head on the policy."""
    return isinstance(objective, PpoObjective) and objective.critic is CriticModel.shared


def has_own_critic(objective: ObjectiveConfig) -> bool:
    """Return whether a critic is trained that is a model of its own."""
    return isinstance(objective, PpoObjective) and objective.critic is CriticModel.separate


def has_same_critic(one: ObjectiveConfig, other: ObjectiveConfig) -> bool:
    """Return whether both objectives train a critic, and of the same kind."""
    return isinstance(one, PpoObjective) and isinstance(other, PpoObjective) and one.critic is other.critic
