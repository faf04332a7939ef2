"""The optimizer of a stage and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spin.config.training import LrSchedule, Optimizer, TrainingConfig


def make_optimizer(model: Any, training: TrainingConfig) -> Any:
    """Return a new optimizer; each stage starts with one, as in arXiv 2401.01335."""
    settings: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    # With an adapter, the weights of the base are frozen.
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if training.optimizer is Optimizer.adamw:
        # Fused: one pass over each tensor instead of a dozen.
        return torch.optim.AdamW(parameters, fused=True, eps=training.adam_epsilon, **settings)
    return torch.optim.RMSprop(parameters, **settings)


def make_schedule(optimizer: Any, training: TrainingConfig, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step.

    The rate rises linearly over `warmup_ratio` of the steps and then falls as `lr_schedule` says.

    Args:
        optimizer: The optimizer, of which the schedule reads the base rate.
        training: Settings of the stage.
        steps: Number of optimizer steps of the schedule.
    """
    from transformers import get_scheduler

    # Rounded down: the first warm-up step has rate 0, and a stage of one step must learn.
    warmup = int(training.warmup_ratio * steps)
    name = training.lr_schedule.name
    settings: dict[str, Any] = {}
    if training.lr_schedule is LrSchedule.constant:
        name = "constant_with_warmup"
    if training.lr_schedule is LrSchedule.cosine_to_tenth:
        name = "cosine_with_min_lr"
        settings = {"min_lr_rate": 0.1}
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=settings
    )
    [share] = scheduler.lr_lambdas
    return lambda place: training.learning_rate * share(place)
