"""Config group `objective`: one dataclass per objective, with checks.

The fields that a loss takes have the names of its arguments.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from spin.config.objective_base import MixtureObjective, Need, ObjectiveConfig, PreferenceObjective, Reference, RowType
from spin.config.policy_gradient import GrpoObjective, PpoObjective, RlooObjective
from spin.config.ranges import bounded
from spin.errors import require


class SpinLink(Enum):
    """The loss ℓ of SPIN, arXiv 2401.01335 section 4."""

    logistic = "logistic"
    """log(1 + exp(-t)); the paper's choice."""
    hinge = "hinge"
    """max(0, 1 - t)."""
    exponential = "exponential"
    """exp(-t)."""


class SlicLink(Enum):
    """The loss of SLiC, arXiv 2305.10425."""

    calibrated = "calibrated"
    """SLiC-HF's loss, without a reference; the logged rewards still use `reference`."""
    margin = "margin"
    """A hinge on beta times the margin to the reference."""


@dataclass
class SftObjective(ObjectiveConfig):
    """Token-mean negative log-likelihood of the target; nothing is generated."""

    row_type: ClassVar[RowType] = RowType.completion
    needs: ClassVar[frozenset[Need]] = frozenset()
    name: str = "sft"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.sft_weight == 0,
            f"objective.sft_weight={self.sft_weight}: expected 0, since objective=sft is this term itself",
        )


@dataclass
class SpinObjective(MixtureObjective):
    """ℓ(βΔ) against the opponent, arXiv 2401.01335 eq. 4.7.

    With `reference=mixture`, KL-regularised self-play, arXiv 2404.04291.
    """

    name: str = "spin"
    reference: Reference = Reference.opponent
    beta: float = bounded(0.1, above=0, at_most=1_000_000)
    """Scale of the log-ratio to the reference, above 0."""
    link: SpinLink = SpinLink.logistic
    """Loss function: logistic, hinge or exponential."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.reference is not Reference.base,
            "objective.reference=base: SPIN's reference is the opponent; objective=dpo takes the base",
        )


@dataclass
class DpoObjective(PreferenceObjective):
    """Direct preference optimization, arXiv 2305.18290."""

    name: str = "dpo"
    beta: float = bounded(0.1, above=0, at_most=1_000_000)
    """Scale of the log-ratio to the reference, above 0."""
    label_smoothing: float = bounded(0.0, at_least=0, below=0.5)
    """Assumed share of wrong labels, at least 0 and below 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()


@dataclass
class IpoObjective(MixtureObjective):
    """Squared distance of the margin to a target, arXiv 2310.12036.

    With `reference=mixture`, INPO, arXiv 2407.00617.
    """

    name: str = "ipo"
    beta: float = bounded(0.1, above=0, at_most=1_000_000)
    """Scale of the log-ratio to the reference, above 0."""
    length_normalize: bool = False
    """False: sums of log-probabilities, as in the paper; true: means per token, as in TRL."""


@dataclass
class SlicObjective(PreferenceObjective):
    """Sequence likelihood calibration, arXiv 2305.10425."""

    name: str = "slic"
    link: SlicLink = SlicLink.calibrated
    """Loss function: calibrated or margin."""
    beta: float = bounded(0.1, above=0, at_most=1_000_000)
    """Scale of the `margin` link, above 0."""
    delta: float = bounded(1.0, at_least=0, at_most=1_000_000)
    """Margin of the `calibrated` link in nats, at least 0."""
    regularization: float = bounded(0.1, at_least=0, at_most=1_000_000)
    """Weight λ of the `calibrated` link's NLL term, at least 0."""


@dataclass
class KtoObjective(PreferenceObjective):
    """Kahneman-Tversky optimization, which also takes ratings, arXiv 2402.01306."""

    row_type: ClassVar[RowType] = RowType.rating
    needs: ClassVar[frozenset[Need]] = frozenset({Need.reference, Need.step_statistics, Need.all_rows})
    name: str = "kto"
    beta: float = bounded(0.1, above=0, at_most=1_000_000)
    """Scale of the log-ratio to the reference, above 0."""
    desirable_weight: float = bounded(1.0, at_least=0, at_most=1_000_000)
    """Weight of desirable completions, at least 0."""
    undesirable_weight: float = bounded(1.0, at_least=0, at_most=1_000_000)
    """Weight of undesirable completions, at least 0."""


@dataclass
class KtoPairObjective(PreferenceObjective):
    """KTO's form on pairs, with batch means in place of its estimate of the KL."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.reference, Need.step_statistics})
    name: str = "kto_pair"
    beta: float = bounded(0.1, above=0, at_most=1_000_000)
    """Scale of the log-ratio to the reference, above 0."""


@dataclass
class PsipoObjective(PreferenceObjective):
    """Fits the margin to a target from judged preferences, arXiv 2310.12036."""

    name: str = "psipo"
    psi: str = "identity"
    """Ψ: identity (IPO), logit, or the import path of a function of preferences, module.name."""
    tau: float = bounded(0.1, above=0, at_most=1_000_000)
    """Weight τ of the KL divergence to the reference, above 0."""
    clamp: float = bounded(1e-3, at_least=0, below=0.5)
    """Preferences are limited to [clamp, 1 − clamp] before any Ψ but the identity, below 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()


@dataclass
class SppoObjective(PreferenceObjective):
    """Fits the log-ratio of each completion to its win rate, arXiv 2405.00675."""

    name: str = "sppo"
    reference: Reference = Reference.opponent
    beta: float = bounded(0.001, above=0, at_most=1_000_000)
    """Scale of the log-ratio to the reference, above 0; 1/beta is the paper's η."""


@dataclass
class SpaceObjective(PreferenceObjective):
    """Judges chosen and rejected completions apart from each other, arXiv 2512.07175."""

    name: str = "space"
    reference: Reference = Reference.opponent
    mu: float = bounded(1.0, above=0, at_most=1_000_000)
    """Assumed ratio of rejected to chosen completions, above 0; the paper recommends 1."""


class TspinLink(Enum):
    """The loss ℓ of T-SPIN."""

    logistic = "logistic"
    """log(1 + exp(-t))."""
    exponential = "exponential"
    """exp(-t)."""


@dataclass
class TspinObjective(ObjectiveConfig):
    """SPIN without a reference, with the start policy's answers, arXiv 2601.08198."""

    # The opponent's log-probabilities are only logged, and checked before the first step.
    needs: ClassVar[frozenset[Need]] = frozenset({Need.reference, Need.start_answers})
    name: str = "tspin"
    beta: float = bounded(1.0, above=0, at_most=1_000_000)
    """Scale of the differences of log-probabilities, above 0; the paper's α."""
    start_weight: float = bounded(0.1, at_least=0, at_most=1_000_000)
    """Weight of the term on the start policy's answers, at least 0; the paper's β."""
    link: TspinLink = TspinLink.logistic
    """Loss function: logistic or exponential."""


@dataclass
class IrpoObjective(PreferenceObjective):
    """DPO with the NLL of the chosen completion, by its own length, arXiv 2404.19733."""

    name: str = "irpo"
    reference: Reference = Reference.opponent
    beta: float = bounded(0.1, above=0, at_most=1_000_000)
    """Scale of the log-ratio to the reference, above 0."""
    nll_weight: float = bounded(1.0, at_least=0, at_most=1_000_000)
    """Weight of the NLL per token of the chosen completion, at least 0."""


@dataclass
class CustomObjective(PreferenceObjective):
    """A loss function of your own: from PairLogps and `parameters` to a loss of each pair."""

    name: str = "custom"
    _target_: str = MISSING
    """Import path of the function, module.name."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function; any keys."""


def loss_arguments(objective: ObjectiveConfig) -> dict[str, Any]:
    """Return the keyword arguments of the loss; enums by name."""
    if isinstance(objective, CustomObjective):
        return dict(objective.parameters)
    arguments = {}
    for entry in dataclasses.fields(objective):
        # These are settings of the trainer.
        if entry.name in ("name", "reference", "base_weight", "sft_weight"):
            continue
        value = getattr(objective, entry.name)
        arguments[entry.name] = value.name if isinstance(value, Enum) else value
    return arguments


OBJECTIVE_CONFIGS: dict[str, type[ObjectiveConfig]] = {
    "sft": SftObjective,
    "spin": SpinObjective,
    "dpo": DpoObjective,
    "ipo": IpoObjective,
    "slic": SlicObjective,
    "kto": KtoObjective,
    "kto_pair": KtoPairObjective,
    "psipo": PsipoObjective,
    "sppo": SppoObjective,
    "space": SpaceObjective,
    "tspin": TspinObjective,
    "irpo": IrpoObjective,
    "rloo": RlooObjective,
    "grpo": GrpoObjective,
    "ppo": PpoObjective,
    "custom": CustomObjective,
}
"""The objectives by name."""


def register_objectives(store: ConfigStore) -> None:
    """Put the schema of each objective in Hydra's store."""
    for name, config_type in OBJECTIVE_CONFIGS.items():
        store.store(group="objective", name=f"{name}_schema", node=config_type)
