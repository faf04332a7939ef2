"""A user's own loss is tried on made-up pairs at launch."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from spin.config.objective import CustomObjective
from spin.errors import ConfigError
from spin.objectives.custom_loss import load_custom_loss, try_custom_loss
from spin.objectives.losses import dpo


def hinge(logps: Any, beta: float) -> torch.Tensor:
    return torch.relu(1 - beta * logps.margin)


LOSSES = {
    "a_number": (3, "is a int; expected a function"),
    "prints": (print, "returns NoneType for two made-up pairs"),
    "a_mean": (lambda logps: logps.margin.mean(), r"returns Shape \(\) for two made-up pairs"),
    "not_finite": (lambda logps: logps.margin / 0, "expected finite numbers"),
    "detached": (lambda logps: logps.margin.detach(), "returns losses without a gradient"),
    "other_arguments": (hinge, "fails on two made-up pairs with parameters={}: .*beta"),
    "raises": (lambda logps: logps.rewards, "fails on two made-up pairs .*rewards"),
}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("own_losses")
    monkeypatch.setitem(sys.modules, "own_losses", module)
    return module


def test_a_function_with_its_parameters_is_taken(module: ModuleType) -> None:
    module.hinge = hinge
    assert load_custom_loss(CustomObjective(_target_="own_losses.hinge", parameters={"beta": 0.1})) is hinge
    config = CustomObjective(_target_="spin.objectives.losses.dpo", parameters={"beta": 0.2})
    assert load_custom_loss(config) is dpo


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_no_loss_is_refused_in_one_line(module: ModuleType, name: str) -> None:
    value, expected = LOSSES[name]
    setattr(module, name, value)
    with pytest.raises(ConfigError, match=expected) as caught:
        try_custom_loss(CustomObjective(_target_=f"own_losses.{name}"))
    assert "\n" not in str(caught.value)


def test_a_function_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="objective._target_=os.system fails on two made-up pairs"):
        try_custom_loss(CustomObjective(_target_="os.system"))


def test_what_a_loss_returned_is_told_with_its_gradient(module: ModuleType) -> None:
    # The first pair has chosen −4 and rejected −6, the second −5 and −7: both margins are 2.
    module.squared = lambda logps: (logps.policy_chosen - logps.policy_rejected) ** 2
    line = try_custom_loss(CustomObjective(_target_="own_losses.squared"))
    assert line == (
        "objective._target_=own_losses.squared on two made-up pairs, the second with policy = reference: "
        "losses [4, 4], Shape (2,); gradient [4, 4] for policy_chosen, [-4, -4] for policy_rejected"
    )
    module.chosen_only = lambda logps: -logps.policy_chosen
    line = try_custom_loss(CustomObjective(_target_="own_losses.chosen_only"))
    assert line.endswith("gradient [-1, -1] for policy_chosen, none for policy_rejected")


def test_a_gradient_that_is_infinite_in_the_first_step_is_refused(module: ModuleType) -> None:
    # The root of 0 has an infinite slope: the second pair is as at the start of training.
    module.root = lambda logps: torch.sqrt((logps.policy_chosen - logps.reference_chosen).clamp(min=0))
    with pytest.raises(ConfigError, match="the gradient for policy_chosen of two made-up pairs"):
        try_custom_loss(CustomObjective(_target_="own_losses.root"))
