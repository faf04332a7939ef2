"""What the dataclasses of all objectives share: kinds of rows, needs, reference, range checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from spin.config.ranges import bounded, check_ranges
from spin.errors import require


class RowType(Enum):
    """The rows that a loss is computed for."""

    completion = "completion"
    """The target completion of a prompt."""
    pair = "pair"
    """A chosen and a rejected completion of one prompt."""
    rating = "rating"
    """A completion that is desirable or not; a pair counts as two."""
    ranking = "ranking"
    """Several ranked completions of one prompt; for reward models."""
    rollout = "rollout"
    """An answer of the opponent with its reward."""


class Need(Enum):
    """What an objective needs beside the log-probabilities of the policy."""

    reference = "reference"
    """Log-probabilities of the reference policy."""
    step_statistics = "step_statistics"
    """Figures over all rows of an optimizer step, from a forward pass without gradient."""
    start_answers = "start_answers"
    """The answers of iteration 0's opponent to the same prompts."""
    all_rows = "all_rows"
    """All rows of the iteration before the first step, so that training cannot overlap."""


class Reference(Enum):
    """The policy whose log-probabilities the trained policy is compared with."""

    opponent = "opponent"
    """The last promoted policy."""
    base = "base"
    """The policy that iteration 0 started from."""
    mixture = "mixture"
    """Opponent and base, with the log-probabilities (1 − α) log π_opponent + α log π_base."""


@dataclass
class ObjectiveConfig:
    """The loss that training minimises."""

    row_type: ClassVar[RowType] = RowType.pair
    needs: ClassVar[frozenset[Need]] = frozenset({Need.reference})
    name: str = MISSING
    """Name of the objective; `objective=NAME` sets it."""
    sft_weight: float = bounded(0.0, at_least=0, at_most=1_000_000)
    """Weight of an added token-mean NLL of the target, at least 0.

    Raise it when the likelihood of the target falls."""

    def __post_init__(self) -> None:
        check_ranges(self, "objective.")

    @property
    def needs_base(self) -> bool:
        """Return whether rows are scored by the base beside the opponent."""
        return False


@dataclass
class PreferenceObjective(ObjectiveConfig):
    """Any objective that compares the policy with a reference."""

    reference: Reference = Reference.base
    """Reference policy: base or opponent, and for spin and ipo also mixture."""

    @property
    def needs_base(self) -> bool:
        """Return whether rows are scored by the base beside the opponent."""
        return self.reference is Reference.mixture

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.needs_base or isinstance(self, MixtureObjective),
            f"objective.reference=mixture: objective={self.name} takes base or opponent; "
            "spin and ipo also take a mixture",
        )


@dataclass
class MixtureObjective(PreferenceObjective):
    """An objective whose reference may be a mixture of opponent and base."""

    base_weight: float = bounded(0.0, at_least=0, below=1)
    """Weight α of the base with `reference=mixture`, above 0 and below 1; else 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs_base:
            require(
                0 < self.base_weight < 1,
                f"objective.base_weight={self.base_weight}: expected above 0 and below 1 with reference=mixture",
            )
        else:
            require(
                self.base_weight == 0,
                f"objective.base_weight={self.base_weight}: expected 0 with reference={self.reference.name}, "
                "or set objective.reference=mixture",
            )
