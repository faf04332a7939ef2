"""One dataclass an objective: the keys of `conf/objective/*.yaml`, checked. The fields that a loss takes carry the names of its arguments."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from spin.errors import require


class Reference(Enum):
    """Whose log-probabilities the policy's are compared with: the last promoted checkpoint, or the policy that iteration 0 started from."""

    opponent = "opponent"
    base = "base"


class SpinLink(Enum):
    """The loss ℓ of SPIN, arXiv 2401.01335 section 4."""

    logistic = "logistic"
    hinge = "hinge"
    exponential = "exponential"


class SlicLink(Enum):
    """`calibrated` is SLiC-HF's and takes no reference (what it logs as rewards is against `reference` all the same); `margin` is a hinge on βΔ."""

    calibrated = "calibrated"
    margin = "margin"


@dataclass
class ObjectiveConfig:
    """What the main player minimises."""

    name: str = MISSING
    sft_weight: float = 0.0
    """Adds this many times the token-mean NLL of the ground truth: the cure when its likelihood falls."""

    def __post_init__(self) -> None:
        for name in ("sft_weight", "delta", "regularization", "desirable_weight", "undesirable_weight"):
            require(getattr(self, name, 0.0) >= 0, f"objective.{name}={getattr(self, name, 0.0)}: expected at least 0")
        beta = getattr(self, "beta", 1.0)
        require(beta > 0, f"objective.beta={beta}: expected above 0")


@dataclass
class SftObjective(ObjectiveConfig):
    """Token-mean negative log-likelihood of the real completion: nothing is generated."""

    name: str = "sft"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.sft_weight == 0,
            f"objective.sft_weight={self.sft_weight}: expected 0, since objective=sft is this term itself",
        )


@dataclass
class PreferenceObjective(ObjectiveConfig):
    """Any objective that compares the policy with a reference."""

    reference: Reference = Reference.base


@dataclass
class SpinObjective(PreferenceObjective):
    """ℓ(βΔ) against the opponent, arXiv 2401.01335 eq. 4.7."""

    name: str = "spin"
    reference: Reference = Reference.opponent
    beta: float = 0.1
    link: SpinLink = SpinLink.logistic

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.reference is Reference.opponent,
            "objective.reference=base: SPIN's reference is the opponent; objective=dpo takes the base",
        )


@dataclass
class DpoObjective(PreferenceObjective):
    """arXiv 2305.18290."""

    name: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.label_smoothing < 0.5,
            f"objective.label_smoothing={self.label_smoothing}: expected at least 0 and below 0.5",
        )


@dataclass
class IpoObjective(PreferenceObjective):
    """arXiv 2310.12036."""

    name: str = "ipo"
    beta: float = 0.1
    length_normalize: bool = False
    """False: sums, as in the paper; true: per-token means, as in TRL and HALOs."""


@dataclass
class SlicObjective(PreferenceObjective):
    """arXiv 2305.10425."""

    name: str = "slic"
    link: SlicLink = SlicLink.calibrated
    beta: float = 0.1
    """Scale of the `margin` link."""
    delta: float = 1.0
    """Margin of the `calibrated` link, in nats."""
    regularization: float = 0.1
    """λ of the `calibrated` link."""


@dataclass
class KtoObjective(PreferenceObjective):
    """arXiv 2402.01306; the only one that also takes ratings."""

    name: str = "kto"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclass
class KtoPairObjective(PreferenceObjective):
    """KTO's form on pairs, with batch means in place of its estimate of the KL."""

    name: str = "kto_pair"
    beta: float = 0.1


@dataclass
class CustomObjective(PreferenceObjective):
    """A function of your own: `_target_` is called with PairLogps and `parameters`, and returns one loss a pair, Shape (batch,)."""

    name: str = "custom"
    _target_: str = MISSING
    parameters: dict[str, Any] = field(default_factory=dict)


def loss_arguments(objective: ObjectiveConfig) -> dict[str, Any]:
    """The keyword arguments of the loss; enums by name."""
    if isinstance(objective, CustomObjective):
        return dict(objective.parameters)
    values = {
        f.name: getattr(objective, f.name)
        for f in dataclasses.fields(objective)
        if f.name not in ("name", "reference", "sft_weight")
    }
    return {key: value.name if isinstance(value, Enum) else value for key, value in values.items()}


OBJECTIVE_CONFIGS: dict[str, type[ObjectiveConfig]] = {
    kind.name: kind
    for kind in (
        SftObjective,
        SpinObjective,
        DpoObjective,
        IpoObjective,
        SlicObjective,
        KtoObjective,
        KtoPairObjective,
        CustomObjective,
    )
}
"""By name."""


def register_objectives(store: ConfigStore) -> None:
    """One schema an objective in Hydra's store."""
    for kind in OBJECTIVE_CONFIGS.values():
        store.store(group="objective", name=f"{kind.name}_schema", node=kind)
