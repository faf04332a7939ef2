"""Check that the disk has space for all that a run still writes: policies, states and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from spin.config.adapter import AdapterConfig, Serve
from spin.config.training import Optimizer, TrainingConfig
from spin.errors import ConfigError
from spin.report.formatting import format_bytes
from spin.run_dir.run_state import RunState
from spin.run_dir.unit import PROMOTED_KINDS, TRAINED_KINDS, Unit
from spin.wording import count_of

MOMENTS = {Optimizer.adamw: 2, Optimizer.rmsprop: 1}
"""Float32 moments per weight of each optimizer."""

DISK_BYTES_PER_TOKEN = 5
"""Bytes of a token in a file of samples or pairs, on average: id, text and log-probability."""

FLOAT32_BYTES = 4
"""Bytes of a weight in a policy, and of a moment in a trainer state."""


@dataclass(frozen=True)
class PolicySizes:
    """Numbers of values that training writes."""

    policy: int
    """Values of a promoted policy, with the adapter beside it."""
    reward_model: int
    """Values of a reward model, which is always a whole one."""
    trained: int
    """Trained values, which a saved state holds with their moments."""

    def with_critic(self, weights: int) -> PolicySizes:
        """Return the sizes with a critic of so many weights beside each policy and state."""
        return replace(self, policy=self.policy + weights, trained=self.trained + weights)


def find_sizes(adapter: AdapterConfig, weights: int, adapter_weights: int, reward_weights: int) -> PolicySizes:
    """Return the numbers of values that a run writes.

    Args:
        adapter: Settings of adapters.
        weights: Number of weights of the model.
        adapter_weights: Number of values in A and B; 0 without adapters.
        reward_weights: Trained values of a reward model with an adapter; 0: none has one.
    """
    if not adapter.enabled:
        return PolicySizes(weights, weights, weights)
    policy = adapter_weights
    if adapter.serve is Serve.merged:
        policy += weights
    return PolicySizes(policy, weights, max(adapter_weights, reward_weights))


def list_disk_parts(
    state: RunState,
    sizes: PolicySizes,
    count_tokens: Callable[[Unit], float],
    find_training: Callable[[Unit], TrainingConfig],
    keep: int | None,
) -> dict[str, int]:
    """Return the bytes that are still to be written, at most, by their description.

    Args:
        state: The state of the run.
        sizes: Numbers of values of a policy and of a state.
        count_tokens: Function that returns the tokens of a unit of rows.
        find_training: Function that returns the training settings of a policy.
        keep: `keep.policies`.
    """
    todo = state.todo()

    # Samples and pairs.
    tokens = 0.0
    for unit in todo:
        if unit.kind in ("samples", *TRAINED_KINDS):
            tokens += count_tokens(unit)
    row_bytes = int(DISK_BYTES_PER_TOKEN * tokens)

    # Policies, and the saved states of the trainer that needs most of them.
    policies = [unit for unit in todo if unit.kind in PROMOTED_KINDS]
    policy_bytes = FLOAT32_BYTES * sizes.policy
    model_bytes = FLOAT32_BYTES * sizes.reward_model
    states = 0
    state_bytes = 0
    for unit in policies:
        training = find_training(unit)
        if training.save_every != (0, 0.0):
            # A new state is written before an old one is deleted.
            written = len(list(unit.stage.trainer.glob("step-*")))
            states = max(states, training.keep + 1 - written)
            state_bytes = max(state_bytes, FLOAT32_BYTES * (1 + MOMENTS[training.optimizer]) * sizes.trained)
    # The best and the newest one are on the disk beside those that are kept, also in the baseline.
    # Of reward models, it is the first and the newest one.
    written_models = sum(unit.kind == "reward_model" for unit in policies)
    written_policies = len(policies) - written_models
    if keep is not None:
        written_policies = min(written_policies, 2 * (keep + 2))
        written_models = min(written_models, keep + 2)
    policies_text = count_of(written_policies, "policy", "policies")
    parts = {
        f"{policies_text} of {format_bytes(policy_bytes)}": written_policies * policy_bytes,
        f"{count_of(written_models, 'reward model')} of {format_bytes(model_bytes)}": written_models * model_bytes,
        f"{count_of(states, 'trainer state')} of {format_bytes(state_bytes)}": states * state_bytes,
        f"{format_bytes(row_bytes)} of samples and pairs": row_bytes,
    }
    return {text: count for text, count in parts.items() if count}


def check_disk_space(run_dir: str, parts: Mapping[str, int], free: int) -> None:
    """Raise ConfigError when what is still to be written does not fit.

    Args:
        run_dir: The run directory, for the message.
        parts: Bytes by description, from `list_disk_parts`.
        free: Free bytes on the disk.
    """
    needed = sum(parts.values())
    if free >= needed:
        return
    names = ", ".join(parts)
    way_out = "free some or choose another disk"
    if "states" in names:
        way_out += ", or save no trainer states (training.checkpoint_every=0)"
    raise ConfigError(
        f"run_dir={run_dir} has {format_bytes(free)} free, but {format_bytes(needed)} are to "
        f"be written: {names}; {way_out}"
    )
