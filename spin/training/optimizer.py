"""The optimizer of a stage and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from spin.config.training import LrSchedule, Optimizer, TrainingConfig


def make_optimizer(model: Any, training: TrainingConfig, head: Any = None, head_rate: float = 0.0) -> Any:
    """Return a new optimizer; each stage starts with one, as in arXiv 2401.01335.

    Args:
        model: The model.
        training: Settings of the stage.
        head: A head beside the model, which is a second group of parameters; None without one.
        head_rate: Learning rate of the head.
    """
    settings: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    # With an adapter, the weights of the base are frozen.
    parameters: Any = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if head is not None:
        parameters = [{"params": parameters}, {"params": list(head.parameters()), "lr": head_rate}]
    if training.optimizer is Optimizer.adamw:
        # Fused: one pass over each tensor instead of a dozen.
        return torch.optim.AdamW(parameters, fused=True, eps=training.adam_epsilon, **settings)
    return torch.optim.RMSprop(parameters, **settings)


def make_schedule(optimizer: Any, training: TrainingConfig, steps: int) -> Callable[[int], list[float]]:
    """Return the learning rates of the optimizer's groups of parameters as a function of the step.

    The rate rises linearly over `warmup_ratio` of the steps and then falls as `lr_schedule` says.

    Args:
        optimizer: The optimizer, of which the schedule reads the base rates.
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
    base_rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=settings
    )
    share = scheduler.lr_lambdas[0]
    return lambda place: [rate * share(place) for rate in base_rates]


def set_rates(optimizer: Any, rates: Sequence[float]) -> None:
    """Set the learning rate of each group of parameters of an optimizer."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
