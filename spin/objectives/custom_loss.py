"""Import a user's own loss, and try it on made-up pairs before anything is started."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spin.config.objective import CustomObjective
from spin.config.run import import_target
from spin.errors import ConfigError, single_line
from spin.objectives.losses import PairLogps


def load_custom_loss(config: CustomObjective) -> Callable[..., Tensor]:
    """Return the function that `objective._target_` names.

    Raises:
        ConfigError: It cannot be imported, or is no function.
    """
    loss = import_target("objective._target_", config._target_)
    if not callable(loss):
        raise ConfigError(
            f"objective._target_={config._target_} is a {type(loss).__name__}; expected a function of PairLogps"
        )
    return loss  # type: ignore[no-any-return]


def try_custom_loss(config: CustomObjective) -> str:
    """Call the function that `objective._target_` names on two made-up pairs.

    Returns:
        One line with the losses and their gradient.

    Raises:
        ConfigError: It cannot be imported or called, or does not return a finite loss for each
            pair with a finite gradient.
    """
    name = f"objective._target_={config._target_}"
    loss = load_custom_loss(config)
    pairs = _make_pairs()
    try:
        values = loss(pairs, **config.parameters)
    except Exception as error:  # whatever a user's function can raise
        reason = single_line(str(error)) or type(error).__name__
        raise ConfigError(
            f"{name} fails on two made-up pairs with parameters={dict(config.parameters)}: {reason}; expected a "
            "function of PairLogps and these keyword arguments"
        ) from error

    # One finite number for each pair, through which a gradient reaches the policy.
    expected = "expected a tensor with one loss for each pair, Shape (2,)"
    if not isinstance(values, Tensor):
        raise ConfigError(f"{name} returns {type(values).__name__} for two made-up pairs; {expected}")
    if values.shape != (2,):
        raise ConfigError(f"{name} returns Shape {tuple(values.shape)} for two made-up pairs; {expected}")
    if not bool(torch.isfinite(values).all()):
        raise ConfigError(f"{name} returns {values.tolist()} for two made-up pairs; expected finite numbers")
    if not values.requires_grad:
        raise ConfigError(f"{name} returns losses without a gradient; compute them from logps.policy_chosen and others")

    # The gradient of the sum of both losses, which a step passes on to the policy.
    inputs = {"policy_chosen": pairs.policy_chosen, "policy_rejected": pairs.policy_rejected}
    gradients = torch.autograd.grad(values.sum(), list(inputs.values()), allow_unused=True)
    parts = []
    for field, gradient in zip(inputs, gradients, strict=True):
        if gradient is None:
            parts.append(f"none for {field}")
            continue
        if not bool(torch.isfinite(gradient).all()):
            raise ConfigError(
                f"{name}: the gradient for {field} of two made-up pairs is {gradient.tolist()}; expected finite "
                "numbers, also where policy and reference are equal, as in the first step"
            )
        parts.append(f"{_show(gradient)} for {field}")
    return (
        f"{name} on two made-up pairs, the second with policy = reference: losses {_show(values)}, Shape (2,); "
        f"gradient {', '.join(parts)}"
    )


def _show(values: Tensor) -> str:
    """Return numbers as text with four digits."""
    return f"[{', '.join(f'{value:.4g}' for value in values.tolist())}]"


def _make_pairs() -> PairLogps:
    """Return two pairs, the second with equal log-probabilities, as at the start of training."""

    def column(first: float, second: float, trained: bool = False) -> Tensor:
        return torch.tensor([first, second], dtype=torch.float64, requires_grad=trained)

    return PairLogps(
        policy_chosen=column(-4.0, -5.0, trained=True),
        policy_rejected=column(-6.0, -7.0, trained=True),
        reference_chosen=column(-5.0, -5.0),
        reference_rejected=column(-5.5, -7.0),
        chosen_tokens=column(3, 4),
        rejected_tokens=column(5, 2),
        preference=column(1.0, 1.0),
        chosen_win_rate=column(1.0, 1.0),
        rejected_win_rate=column(0.0, 0.0),
    )
