"""The critic of PPO in a training stage: a model of its own with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from spin.config.training import Dtype, TrainingConfig
from spin.models.packing import Group
from spin.models.policy import Policy, check_policy
from spin.models.scalar_head import GroupValues, load_reward_model
from spin.objectives.objective import Member, StepBatch
from spin.objectives.ppo import PpoLoss
from spin.training.optimizer import make_optimizer, make_schedule
from spin.training.passes import explain_out_of_memory
from spin.training.sharding import prepare
from spin.training.step0_check import check_old_values


class Critic:
    """Trains the values of the states before the tokens of answers."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: Policy,
        objective: PpoLoss,
        training: TrainingConfig,
        dtype: Dtype,
        layout: str,
        steps: int,
    ) -> None:
        """Load the critic, and make its optimizer.

        Args:
            accelerator: The workers.
            policy: A critic, a reward model, or a policy that gets a head of zeros.
            objective: The losses.
            training: Settings of the stage.
            dtype: Dtype of the matrix products.
            layout: The layout of the forward passes.
            steps: Number of optimizer steps of the schedule.

        Raises:
            CheckpointError: The files were altered.
        """
        check_policy(policy)
        self._accelerator = accelerator
        self._objective = objective
        self._dtype = dtype
        self._max_grad_norm = training.max_grad_norm
        rate = objective.ppo.critic_learning_rate or training.learning_rate
        own_training = replace(training, learning_rate=rate)
        model = load_reward_model(Path(policy.path)).to(accelerator.device)
        scorer = GroupValues(model, dtype, layout, training.gradient_checkpointing)
        optimizer = make_optimizer(model, own_training)
        self._rate_at = make_schedule(optimizer, own_training, steps)
        self._prepared, self._optimizer = prepare(accelerator, scorer, optimizer)
        self._sums = torch.zeros(len(PpoLoss.VALUE_SUMS), dtype=torch.float64, device=accelerator.device)

    @property
    def model(self) -> Any:
        """Return the Hugging Face model."""
        return self._accelerator.unwrap_model(self._prepared).model

    def weights_kept(self) -> AbstractContextManager[None]:
        """Compute once what is derived from the weights, for all passes of a step."""
        kept: AbstractContextManager[None] = self._accelerator.unwrap_model(self._prepared).weights_kept()
        return kept

    def without_exchange(self) -> AbstractContextManager[None]:
        """Exchange no gradients in the passes inside the context."""
        context: AbstractContextManager[None] = self._accelerator.no_sync(self._prepared)
        return context

    def add_gradient(
        self, batch: StepBatch, groups: Sequence[Group], members: Sequence[Member], check_start: bool
    ) -> None:
        """Add the gradient of one forward pass.

        Args:
            batch: All rows of the step.
            groups: The prompts and completions of the pass.
            members: The rows of the pass.
            check_start: Whether the values must be those of the rows.

        Raises:
            TrainingError: The check failed.
        """
        with explain_out_of_memory(groups):
            values = self._prepared(groups)
            if check_start:
                check_old_values(values, members, self._dtype)
            output = self._objective.compute_value_loss(batch, values, members)
            self._sums += output.metric_sums
            # The exchange divides by the number of workers.
            self._accelerator.backward(output.loss * self._accelerator.num_processes)

    def step(self, batch: StepBatch, place: int) -> dict[str, float]:
        """Take one optimizer step, and return the figures of the critic.

        Args:
            batch: All rows of the step.
            place: Place of the step on the learning-rate schedule.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate_at(place)
        sums = self._accelerator.reduce(self._sums, "sum")
        self._sums = torch.zeros_like(self._sums)
        self._accelerator.clip_grad_norm_(self._prepared.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return self._objective.name_value_metrics(batch, sums)
