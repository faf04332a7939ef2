"""Training workers under `training.sharding`: `none`, each holds the whole model (DDP), or `full`, each holds a part of it (FSDP2), both by accelerate.

Under `full` a decoder layer is whole only while it computes, the rest of the model (embedding, last norm, head) while a pass computes; gradients, both moments
and the float32 weights that the optimizer changes stay in parts. What is not saved:

- a worker loads the model whole and scores with it whole; it is shared out when training begins
- under autocast the backward pass keeps each layer's bfloat16 copies, half of the float32 weights; `training.gradient_checkpointing` makes them again instead
- rank 0 gathers the outcome in its main memory, tensor by tensor, to write it
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.tensor import DTensor

from spin.config.training import Sharding
from spin.errors import ConfigError


def make_accelerator(sharding: Sharding) -> Accelerator:
    """The accelerator of this process. A process that is alone holds the whole model: the scorer of a split placement."""
    cpu = not torch.cuda.is_available()
    if sharding is Sharding.none:
        return Accelerator(cpu=cpu)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type="SHARDED_STATE_DICT",  # each worker saves and loads its own part
        cpu_ram_efficient_loading=False,  # all workers score with the whole model before it is shared out
    )
    accelerator = Accelerator(cpu=cpu, fsdp_plugin=plugin)
    if (
        accelerator.distributed_type is DistributedType.MULTI_CPU
    ):  # there accelerate leaves the plugin aside without a word; torch's FSDP2 knows CPUs
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def prepare(accelerator: Accelerator, scorer: Any, optimizer: Any) -> tuple[Any, Any]:
    """`accelerator.prepare`, each decoder layer of `scorer.model` being a unit of its own. Raises ConfigError where the model does not name its layers."""
    if accelerator.is_fsdp2:
        found = {type(module).__name__ for module in scorer.model.modules()}
        layers = sorted(
            found & set(scorer.model._no_split_modules or ())
        )  # it may also name parts that this model was built without
        if not layers:
            kind = type(scorer.model).__name__
            raise ConfigError(
                f"training.sharding=full: {kind} does not say what its layers are (_no_split_modules); expected a decoder that does, or take none"
            )
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layers
    return accelerator.prepare(scorer, optimizer)


def full_state(model: Any) -> dict[str, Tensor]:
    """The state dict of a model that is shared out, whole and in main memory: rank 0's; the others get nothing. Collective. Tied weights are one tensor."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if name in state:
            state[name] = state[first]  # gathered once for each of its names
    return state


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out, whole on every worker. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copies_of_weights(sharding: Sharding, workers: int) -> float:
    """What training holds on each worker beside its tokens, in sizes of the float32 weights: weights, gradients and two moments.

    With `full`, the units that are whole at a time and their gradients are taken for as much as the weights, which each worker has held whole before.
    """
    return 4.0 if sharding is Sharding.none else 1 + 4 / workers
