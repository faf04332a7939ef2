"""What a row costs under a config: from the log-probabilities of a forward pass to a loss, and the figures that are logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from spin.config.objective import CustomObjective, ObjectiveConfig, loss_arguments
from spin.config.run import import_target
from spin.config.training import Dtype
from spin.data.records import Example
from spin.errors import TrainingError
from spin.objectives.losses import OBJECTIVES, LossFunction, PairLogps, RatingLogps

STEP0_TOLERANCE = {Dtype.float32: 1e-4, Dtype.bfloat16: 2e-2}
"""Nats per token by which two passes of the same weights over differently packed batches may differ."""


Members = Sequence[tuple[Example, tuple[int, ...]]]
"""Examples of one forward pass, each with the places of its halves in the pass's log-probabilities."""


class Objective:
    """An objective with its settings. Raises ConfigError when a custom one cannot be imported."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self._objective = (
            LossFunction(import_target("objective._target_", config._target_))
            if isinstance(config, CustomObjective)
            else OBJECTIVES[config.name]
        )
        self._arguments = loss_arguments(config)
        self.rows, self.z, self.sft_weight = self._objective.rows, self._objective.z, config.sft_weight
        self.beta: float = float(self._arguments.get("beta", 1.0))
        """What scales the logged rewards."""

    def real(self, chosen: Tensor) -> Tensor:
        """Losses of truths. Shape (batch,)."""
        return self._objective.loss(chosen, **self._arguments)

    def pairs(self, logps: PairLogps, z: Tensor | None) -> Tensor:
        """Losses of pairs. Shape (batch,)."""
        return self._objective.loss(logps, *([] if z is None else [z]), **self._arguments)

    def ratings(self, logps: RatingLogps, z: Tensor) -> Tensor:
        """Losses of ratings. Shape (batch,)."""
        return self._objective.loss(logps, z, **self._arguments)


@dataclass
class StepBatch:
    """One optimizer step's rows: how their losses are averaged, over all forward passes and workers, and what is logged."""

    examples: Sequence[Example]
    criterion: Objective
    others: Sequence[Example] = field(default_factory=list)
    """For a mismatched z: each row's prompt with the completions of another."""

    LOGGED: ClassVar[tuple[str, ...]] = (
        *(
            "loss",
            "chosen",
            "logps/chosen",
            "rewards/chosen",
            "rejected",
            "logps/rejected",
            "rewards/rejected",
            "pairs",
            "rewards/margins",
            "rewards/accuracies",
        ),
    )
    """Sums over the step: of the loss, then of desirable halves, of the others, and of pairs, each with its count first."""

    def __post_init__(self) -> None:
        truths = [len(half.ids) for row in self.examples for half in row.completions if half.desirable]
        self.real_tokens = max(1, sum(truths))
        units = {
            "real": self.real_tokens,
            "pairs": len(self.examples),
            "ratings": sum(len(row.completions) for row in self.examples),
        }
        self.denominator = units[self.criterion.rows]
        self.tokens = sum(row.tokens for row in self.examples)

    def losses(self, logps: Tensor, members: Members, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """This pass's part of the step's mean loss, Shape (), and its part of the sums that are logged, Shape (len(LOGGED),)."""
        completions = [
            (half, place) for row, places in members for half, place in zip(row.completions, places, strict=True)
        ]
        policy = logps[[place for _, place in completions]]  # [halves]
        reference = logps.new_tensor([half.reference_logp for half, _ in completions])
        desirable = torch.tensor([half.desirable for half, _ in completions], device=logps.device)
        match self.criterion.rows:
            case "real":
                losses = self.criterion.real(policy)
            case "pairs":
                losses = self.criterion.pairs(self._pairs(policy, reference, [half.ids for half, _ in completions]), z)
            case _:
                assert z is not None
                losses = self.criterion.ratings(RatingLogps(policy, reference, desirable), z)
        loss = losses.sum() / self.denominator - self.criterion.sft_weight * policy[desirable].sum() / self.real_tokens
        with torch.no_grad():
            return loss, self._logged(loss, policy, reference, desirable, [len(row.completions) for row, _ in members])

    @staticmethod
    def _pairs(policy: Tensor, reference: Tensor, ids: list[list[int]]) -> PairLogps:
        tokens = policy.new_tensor([len(completion) for completion in ids])
        return PairLogps(policy[0::2], policy[1::2], reference[0::2], reference[1::2], tokens[0::2], tokens[1::2])

    def _logged(
        self, loss: Tensor, policy: Tensor, reference: Tensor, desirable: Tensor, completions: list[int]
    ) -> Tensor:
        rewards = self.criterion.beta * (policy - reference)
        of = [value.sum() for mask in (desirable, ~desirable) for value in (mask.double(), policy[mask], rewards[mask])]
        paired = torch.tensor([count == 2 for count in completions for _ in range(count)], device=policy.device)
        both = rewards[paired].view(-1, 2)
        margins = both[:, 0] - both[:, 1]
        return torch.stack(
            [loss, *of, margins.new_tensor(float(len(margins))), margins.sum(), (margins > 0).double().sum()]
        ).double()

    def metrics(self, sums: Tensor, z: Tensor | None) -> dict[str, Any]:
        """The step's figures under the field's names, from the sums over all workers. `kl` is KTO's z; elsewhere the mean of log π_ref − log π over rejected
        completions, which estimates KL(π_ref‖π) where the reference wrote them.
        """
        total = dict(zip(self.LOGGED, sums.tolist(), strict=True))
        count = (
            dict.fromkeys(self.LOGGED[2:4], "chosen")
            | dict.fromkeys(self.LOGGED[5:7], "rejected")
            | dict.fromkeys(self.LOGGED[8:], "pairs")
        )
        figures = {name: total[name] / total[of] for name, of in count.items() if total[of]}
        if self.criterion.rows == "real":  # no reference: no rewards
            figures = {"logps/chosen": figures["logps/chosen"]}
        elif z is not None and z.dim() == 0:
            figures["kl"] = float(z)
        elif total["rejected"]:
            figures["kl"] = -figures["rewards/rejected"] / self.criterion.beta
        return {"loss": total["loss"], **figures, "tokens": self.tokens}


def check_step0(
    logps: Tensor, members: list[tuple[Example, tuple[int, ...]]], dtype: Dtype, criterion: Objective
) -> None:
    """Before the first update the main player is its reference: refuse to train unless every log-ratio is 0 within the dtype's rounding."""
    if criterion.rows == "real":
        return
    for row, places in members:
        for half, place in zip(row.completions, places, strict=True):
            gap, allowed = float(logps[place]) - half.reference_logp, STEP0_TOLERANCE[dtype] * max(1, len(half.ids))
            if not abs(gap) <= allowed:  # NaN too
                raise TrainingError(
                    f"step 0: log π − log π_ref of {row.name} is {gap:.3g}, expected 0 within {allowed:.3g}: "
                    "the rows were not scored with the weights about to be trained"
                )
