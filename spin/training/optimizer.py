"""The optimizer of a stage and its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spin.config.training import Optimizer, TrainingConfig


def make_optimizer(model: Any, training: TrainingConfig) -> Any:
    """A fresh optimizer: each stage starts with one, as in the paper."""
    settings: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer is Optimizer.adamw:
        return torch.optim.AdamW(
            model.parameters(), fused=True, **settings
        )  # one pass over each tensor in place of a dozen
    return torch.optim.RMSprop(model.parameters(), **settings)


def make_schedule(optimizer: Any, training: TrainingConfig, steps: int) -> Callable[[int], float]:
    """The learning rate at each of `steps` places: linear warm-up over `warmup_ratio` of them, then the decay asked for."""
    from transformers import get_scheduler

    warmup = int(
        training.warmup_ratio * steps
    )  # rounded down: the first warm-up step has rate 0, and a stage of one step must learn
    name = "constant_with_warmup" if training.lr_schedule.name == "constant" else training.lr_schedule.name
    [share] = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps).lr_lambdas
    return lambda place: training.learning_rate * share(place)
