"""Compare the rewards of vLLM with those of the trainer before vLLM is used."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from spin.cluster.task_pool import run_tasks
from spin.config.reward_model import Backend
from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.errors import TrainingError
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.training.reference import allowed_engine_gap

COMPARED_ROWS = 8
"""Ground truths that are scored by both."""


def compare_backends(run: RunContext, model: Policy) -> None:
    """Score some ground truths by vLLM and by a trainer, once in a launch.

    Raises:
        TrainingError: The rewards differ by more than rounding explains.
    """
    if run.config.reward_model.backend is not Backend.vllm or run.has_compared_backends:
        return
    prompts = read_rows(run.layout.prompts("train"), Prompt, last=COMPARED_ROWS)
    groups = [Group(prompt.prompt_ids, [prompt.completion_ids]) for prompt in prompts]

    def call(actor: Any, _: None) -> Any:
        return actor.score_groups.remote(model, groups)

    [(_, expected)] = run.worker_groups.run_on_trainers(call, [None])
    [(_, found)] = run_tasks(run.worker_groups.make_reward_pool(call), [None])
    tolerance = allowed_engine_gap(run.config.model.dtype, run.worker_groups.engines_use_gpus)
    difference, allowed = find_difference(expected, found, tolerance)
    # Written so that NaN fails too.
    if not difference <= allowed:
        raise TrainingError(
            f"reward_model.backend=vllm: rewards of vLLM and of the trainer differ by up to {difference:.3g}, expected "
            f"at most {allowed:.3g} in {run.config.model.dtype.name}; take backend=trainer"
        )
    run.reporter.print(
        f"reward_model.backend=vllm: {len(groups)} rewards differ from the trainer's by up to {difference:.2g} "
        f"(allowed: {allowed:.2g})"
    )
    run.has_compared_backends = True


def find_difference(expected: list[list[float]], found: list[list[float]], tolerance: float) -> tuple[float, float]:
    """Return the largest difference of two lists of rewards, and the largest that is allowed.

    `tolerance` is in parts of the largest reward, if that is above 1.
    """
    expected_rewards = torch.tensor(list(chain.from_iterable(expected)), dtype=torch.float64)
    found_rewards = torch.tensor(list(chain.from_iterable(found)), dtype=torch.float64)
    largest = max(1.0, float(expected_rewards.abs().max()))
    # Unlike `max` of Python, that of torch is NaN if one value is.
    return float((expected_rewards - found_rewards).abs().max()), tolerance * largest
