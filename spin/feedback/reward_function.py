"""A function of the user's as a reward source, such as a verifier of the final answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from spin.errors import ConfigError
from spin.feedback.sample_group import SampleGroup

TRIALS = (("What is 2 + 2?", "It is 4", "4"), ("What is 2 + 2?", "", "4"))
"""Prompts, answers and truths that a function must accept before a run begins."""


class FunctionReward:
    """Rewards of a function ``f(prompt, answer, truth, **parameters)``, called for each sample.

    All three are texts: the last turn of the prompt, the sample, and the ground truth. A truncated
    sample is passed like any other.
    """

    def __init__(self, name: str, function: Callable[..., Any], parameters: dict[str, Any]) -> None:
        self._name = name
        self._function = function
        self._parameters = parameters

    def score(self, groups: list[SampleGroup]) -> list[list[float]]:
        """See RewardSource.

        Raises:
            RuntimeError: The function failed, or returned no number.
        """
        rewards = []
        for group in groups:
            prompt = group.prompt
            group_rewards = []
            for sample in group.samples:
                # Name prompt and sample, so that the author of the function can repeat the call.
                try:
                    value = self._function(prompt.prompt_text, sample.text, prompt.completion_text, **self._parameters)
                    group_rewards.append(float(value))
                except Exception as error:  # whatever a user's function can raise
                    raise RuntimeError(
                        f"reward function {self._name} failed for prompt {prompt.prompt_id}, sample "
                        f"{sample.sample_index}, answer {sample.text!r}: {type(error).__name__}: {error}"
                    ) from error
            rewards.append(group_rewards)
        return rewards


def check_function(key: str, target: str, function: Callable[..., Any], parameters: dict[str, Any]) -> str:
    """Call a function on made-up texts.

    Args:
        key: The config key that names the function.
        target: Its import path.
        function: The function.
        parameters: Its keyword arguments.

    Returns:
        One line with the texts and what it returned.

    Raises:
        ConfigError: The function failed, or returned no finite number.
    """
    returned = []
    for trial in TRIALS:
        call = f"{key}: {target}{trial} with {parameters}"
        try:
            value = function(*trial, **parameters)
        except Exception as error:  # whatever a user's function can raise
            raise ConfigError(
                f"{call} raised {type(error).__name__}: {str(error)[:200]}; expected f(prompt, answer, truth) "
                "that returns a number for any texts"
            ) from error
        # A text has no __float__; numbers of numpy and torch have it.
        if not hasattr(value, "__float__") or not math.isfinite(float(value)):
            raise ConfigError(f"{call} returned {value!r:.80}; expected a finite number, the higher the better")
        returned.append(f"{trial} gives {float(value):.4g}")
    return f"{key}: {target}(prompt, answer, truth): {', '.join(returned)}"
