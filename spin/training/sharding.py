"""How training workers share a model: `training.sharding=none` is DDP, `full` is FSDP2.

Both are done by accelerate. With `full`, a decoder layer is whole only while it computes, and the
rest of the model (embedding, last norm, head) during a forward pass. Gradients, both moments and
the float32 weights stay in parts. `full` does not reduce memory in these cases:

- a worker loads the whole model and scores with it; the model is split when training begins
- under autocast, the backward pass keeps the bfloat16 copies of each layer, which are half the size
  of the float32 weights; `training.gradient_checkpointing` computes them again instead
- rank 0 gathers the result in main memory, tensor by tensor, to write it
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.tensor import DTensor

from spin.config.training import Dtype, Sharding
from spin.errors import ConfigError
from spin.models.model_size import training_bytes


def make_accelerator(sharding: Sharding) -> Accelerator:
    """Return the accelerator of this process."""
    cpu = not torch.cuda.is_available()
    if sharding is Sharding.none:
        # DDP would keep a second copy of all gradients in its buckets.
        buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        return Accelerator(cpu=cpu, kwargs_handlers=[buckets])
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        # Each worker saves and loads its own part.
        state_dict_type="SHARDED_STATE_DICT",
        # All workers load the whole model, because they score with it before training.
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=cpu, fsdp_plugin=plugin)
    # On CPUs accelerate ignores the plugin without a warning, although FSDP2 of torch works there.
    # A process that is alone (the scorer of a split placement) keeps the whole model.
    if accelerator.distributed_type is DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def prepare(accelerator: Accelerator, scorer: Any, optimizer: Any) -> tuple[Any, Any]:
    """Wrap model and optimizer for all workers; with FSDP2 each decoder layer is a unit.

    Raises:
        ConfigError: FSDP2 is wanted, and the model does not name its layers.
    """
    if accelerator.is_fsdp2:
        found = {type(module).__name__ for module in scorer.model.modules()}
        # The list may also name parts that this model was built without.
        layers = sorted(found & set(scorer.model._no_split_modules or ()))
        if not layers:
            kind = type(scorer.model).__name__
            raise ConfigError(
                f"training.sharding=full: {kind} does not name its layers (_no_split_modules); "
                "expected a decoder that does, or take training.sharding=none"
            )
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layers
    return accelerator.prepare(scorer, optimizer)


def full_state(model: Any) -> dict[str, Tensor]:
    """Return the whole state dict of a sharded model in main memory. Collective.

    Returns:
        The state dict on rank 0, where tied weights are one tensor; an empty one elsewhere.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if name in state:
            # It was gathered once for each of its names.
            state[name] = state[first]
    return state


def clip_gradient(model: Any, max_norm: float) -> float:
    """Limit the norm of a model's gradient, and return the norm that it had. Collective.

    accelerate's function would compare the parameters with those of each of its models. This
    raises an error for the second sharded one.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return float(norm)


def count_held_bytes(weights: int, adapter_weights: int, base_dtype: Dtype, sharding: Sharding, workers: int) -> int:
    """Return the memory of training on each worker beside its tokens, with AdamW.

    It consists of weights, gradients and two moments. With `full`, the units that are whole at one
    time, with their gradients, are counted as one copy of the weights: each worker held that much
    before training.

    Args:
        weights: Number of weights of the model.
        adapter_weights: Number of values in A and B; 0 if all weights are trained.
        base_dtype: Dtype of frozen weights.
        sharding: How the workers share the model.
        workers: Number of workers.
    """
    if sharding is Sharding.none:
        return int(training_bytes(weights, adapter_weights, base_dtype, moments=2))
    # Weights alone: no gradients and no moments.
    whole_copy = training_bytes(weights, adapter_weights, base_dtype, moments=-1)
    return int(whole_copy + training_bytes(weights, adapter_weights, base_dtype, moments=2, parts=workers))
