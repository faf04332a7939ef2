"""The objectives by name."""

from __future__ import annotations

from spin.config.objective_base import ObjectiveConfig
from spin.objectives.bradley_terry import BradleyTerryLoss
from spin.objectives.kto import KtoLoss, KtoPairLoss
from spin.objectives.objective import Objective
from spin.objectives.pair_objectives import PairLoss, SftLoss
from spin.objectives.policy_gradient import PolicyGradientLoss
from spin.objectives.ppo import PpoLoss
from spin.objectives.psipo import PsipoLoss
from spin.objectives.tspin import TspinLoss

OBJECTIVE_CLASSES: dict[str, type[Objective]] = {
    "bradley_terry": BradleyTerryLoss,
    "sft": SftLoss,
    "kto": KtoLoss,
    "kto_pair": KtoPairLoss,
    "psipo": PsipoLoss,
    "tspin": TspinLoss,
    "rloo": PolicyGradientLoss,
    "grpo": PolicyGradientLoss,
    "ppo": PpoLoss,
}
"""The objectives that are no PairLoss."""


def make_objective(config: ObjectiveConfig) -> Objective:
    """Return the objective of a config group.

    Raises:
        ConfigError: The function of a custom objective cannot be imported.
    """
    return OBJECTIVE_CLASSES.get(config.name, PairLoss)(config)
