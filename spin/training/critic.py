"""The critic of PPO in a training stage: a model of its own, or a head on the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import PpoObjective
from spin.config.training import Dtype, TrainingConfig
from spin.models.packing import Group
from spin.models.policy import Policy, check_policy
from spin.models.scalar_head import GroupValues, load_reward_model
from spin.models.token_logps import TokenLogps
from spin.objectives.completion_logps import Member
from spin.objectives.objective import StepBatch
from spin.objectives.ppo import PpoLoss
from spin.training.optimizer import make_optimizer, make_schedule, set_rates
from spin.training.passes import explain_out_of_memory
from spin.training.sharding import clip_gradient, exchange_in_pass, prepare
from spin.training.step0_check import check_old_values


def find_critic_rate(objective: ObjectiveConfig, training: TrainingConfig) -> float:
    """Return the learning rate of a critic, or of its head."""
    assert isinstance(objective, PpoObjective)
    return objective.critic_learning_rate or training.learning_rate


class Critic(ABC):
    """Trains the values of the states before the tokens of answers."""

    def __init__(self, accelerator: Accelerator, objective: PpoLoss, dtype: Dtype) -> None:
        """Set up the losses.

        Args:
            accelerator: The workers.
            objective: The losses.
            dtype: Dtype of the matrix products.
        """
        self._accelerator = accelerator
        self._objective = objective
        self._dtype = dtype
        self._sums = torch.zeros(len(PpoLoss.VALUE_SUMS), dtype=torch.float64, device=accelerator.device)

    @property
    @abstractmethod
    def model(self) -> Any:
        """Return the trained module."""

    def weights_kept(self) -> AbstractContextManager[None]:
        """Compute once what is derived from the weights, for all passes of a step."""
        return nullcontext()

    def exchange_in_pass(self, is_last: bool) -> AbstractContextManager[Any]:
        """Return the context of a pass that says what workers exchange, see `exchange_in_pass`."""
        return nullcontext()

    @abstractmethod
    def loss_in_pass(
        self, batch: StepBatch, outputs: TokenLogps, members: Sequence[Member], check_start: bool
    ) -> Tensor | float:
        """Return the critic's loss in a forward pass of the policy; 0 for a model of its own.

        Args:
            batch: All rows of the step.
            outputs: Log-probabilities of the pass, with the values of a head.
            members: The rows of the pass.
            check_start: Whether the values must be those of the rows.

        Raises:
            TrainingError: The check failed.
        """

    @abstractmethod
    def add_gradient(
        self, batch: StepBatch, groups: Sequence[Group], members: Sequence[Member], check_start: bool
    ) -> None:
        """Add the gradient of a forward pass of the critic itself; a head has none.

        Args:
            batch: All rows of the step.
            groups: The prompts and completions of the pass.
            members: The rows of the pass.
            check_start: Whether the values must be those of the rows.

        Raises:
            TrainingError: The check failed.
        """

    def step(self, batch: StepBatch, place: int) -> dict[str, float]:
        """End an optimizer step, and return the figures of the critic.

        Args:
            batch: All rows of the step.
            place: Place of the step on the learning-rate schedule.
        """
        sums = self._accelerator.reduce(self._sums, "sum")
        self._sums = torch.zeros_like(self._sums)
        return self._objective.name_value_metrics(batch, sums)

    def _compute_loss(
        self, batch: StepBatch, values: TokenLogps, members: Sequence[Member], check_start: bool
    ) -> Tensor:
        """Return the loss of the values of a pass, and add its figures to those of the step."""
        if check_start:
            check_old_values(values, members, self._dtype)
        output = self._objective.compute_value_loss(batch, values, members)
        self._sums += output.metric_sums
        return output.loss


class SeparateCritic(Critic):
    """A critic that is a model of its own, with forward passes of its own."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: PpoLoss,
        dtype: Dtype,
        training: TrainingConfig,
        steps: int,
        policy: Policy,
        layout: str,
    ) -> None:
        """Load the critic, and make its optimizer.

        Args:
            accelerator: See Critic.
            objective: See Critic.
            dtype: See Critic.
            training: Settings of the stage.
            steps: Number of optimizer steps of the schedule.
            policy: A critic, a reward model, or a policy that gets a head of zeros.
            layout: The layout of the forward passes.

        Raises:
            CheckpointError: The files were altered.
        """
        super().__init__(accelerator, objective, dtype)
        check_policy(policy)
        model = load_reward_model(Path(policy.path), device=accelerator.device)
        scorer = GroupValues(model, dtype, layout, training.gradient_checkpointing, accelerator.is_fsdp2)
        self._max_grad_norm = training.max_grad_norm
        own = replace(training, learning_rate=find_critic_rate(objective.ppo, training))
        optimizer = make_optimizer(model, own)
        self._rates_at = make_schedule(optimizer, own, steps)
        self._prepared, self._optimizer = prepare(accelerator, scorer, optimizer)

    @property
    def model(self) -> Any:
        """Return the Hugging Face model."""
        return self._accelerator.unwrap_model(self._prepared).model

    def weights_kept(self) -> AbstractContextManager[None]:
        """See Critic."""
        kept: AbstractContextManager[None] = self._accelerator.unwrap_model(self._prepared).weights_kept()
        return kept

    def exchange_in_pass(self, is_last: bool) -> AbstractContextManager[Any]:
        """See Critic."""
        return exchange_in_pass(self._accelerator, self._prepared, is_last)

    def loss_in_pass(
        self, batch: StepBatch, outputs: TokenLogps, members: Sequence[Member], check_start: bool
    ) -> Tensor | float:
        """See Critic."""
        return 0.0

    def add_gradient(
        self, batch: StepBatch, groups: Sequence[Group], members: Sequence[Member], check_start: bool
    ) -> None:
        """See Critic."""
        with explain_out_of_memory(groups):
            loss = self._compute_loss(batch, self._prepared(groups), members, check_start)
            # The exchange divides by the number of workers.
            self._accelerator.backward(loss * self._accelerator.num_processes)

    def step(self, batch: StepBatch, place: int) -> dict[str, float]:
        """See Critic."""
        clip_gradient(self._prepared, self._max_grad_norm)
        set_rates(self._optimizer, self._rates_at(place))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return super().step(batch, place)


class CriticHead(Critic):
    """A critic that is a head on the policy: its loss is a part of the policy's own passes.

    The weights below it follow both losses. The head is a group of parameters of the policy's
    optimizer: it starts with zeros and needs a higher learning rate. The trainer limits the norm of
    the gradient over both.
    """

    def __init__(self, accelerator: Accelerator, objective: PpoLoss, dtype: Dtype, head: nn.Module) -> None:
        """Take the head.

        Args:
            accelerator: See Critic.
            objective: See Critic.
            dtype: See Critic.
            head: The head, which is a part of the policy's prepared module.
        """
        super().__init__(accelerator, objective, dtype)
        self._head = head

    @property
    def model(self) -> Any:
        """Return the head."""
        return self._head

    def loss_in_pass(
        self, batch: StepBatch, outputs: TokenLogps, members: Sequence[Member], check_start: bool
    ) -> Tensor | float:
        """See Critic."""
        return self._compute_loss(batch, outputs.as_values(), members, check_start)

    def add_gradient(
        self, batch: StepBatch, groups: Sequence[Group], members: Sequence[Member], check_start: bool
    ) -> None:
        """See Critic."""
