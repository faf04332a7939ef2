"""Make the estimate of a run from its model and its data, or from a config.json alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from spin.config.run import RunConfig
from spin.models.model_size import count_config_weights, count_weights, has_weights, read_shape
from spin.preflight.adapter_check import count_reward_trained, count_trained
from spin.preflight.estimate import Estimate
from spin.preflight.hardware import find_device
from spin.preflight.memory import count_other_engines
from spin.preflight.prepare_data import RANKING_SETS
from spin.preflight.set_sizes import COMPLETION_COLUMNS, measure_sets
from spin.run_dir.files import existing_folder
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.plan import plan_units
from spin.run_dir.run_state import RunState

ASSUMED_PROMPTS = 1000
"""Prompts of data that cannot be counted, unless the config limits them."""


def estimate_run(
    config: RunConfig, configs: list[RunConfig], layout: RunLayout, ledger: Ledger, model: Path, sets: RunLayout
) -> Estimate:
    """Estimate what is left of a run; `configs` are those of the iterations, `sets` the data."""
    return estimate_sizes(config, configs, layout, ledger, model, *measure_sets(sets))


def estimate_sizes(
    config: RunConfig,
    configs: list[RunConfig],
    layout: RunLayout,
    ledger: Ledger,
    model: Path,
    rows: Mapping[str, int],
    tokens: Mapping[str, int],
) -> Estimate:
    """Estimate what is left of a run with sets of so many rows and tokens."""
    # A plan for other machines needs no weights, only a config.json.
    if config.cluster.assume is not None and not has_weights(model):
        weights = count_config_weights(model, config.model.trust_remote_code)
    else:
        weights = count_weights(model)
    trained = (count_trained(config, model), count_reward_trained(config, model))
    state = RunState(plan_units(layout, config, configs, rows), ledger)
    disk = shutil.disk_usage(existing_folder(layout.root))
    shape = read_shape(model, config.training.gradient_checkpointing, config.model.trust_remote_code)
    others, device = count_other_engines(config, weights), find_device(config)
    return Estimate(
        config, configs, state, dict(rows), dict(tokens), weights, device, disk.free, *trained, shape, others
    )


def assume_sets(config: RunConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Return rows and tokens of sets that cannot be read without a tokenizer.

    Each prompt and each answer is as long as the config allows.
    """
    rows = dict.fromkeys([*COMPLETION_COLUMNS, *RANKING_SETS], config.data.limit or ASSUMED_PROMPTS)
    if config.generation.prompts_per_iteration is not None:
        rows["train"] = config.generation.prompts_per_iteration
    rows["heldout"] = config.data.eval_limit
    longest = config.max_prompt_length + config.generation.max_tokens
    return rows, {name: count * longest for name, count in rows.items()}
