"""How training workers share a model: `training.sharding=none` is DDP, `full` is FSDP2.

accelerate drives both. With `full`, gradients, both moments and the float32 weights stay in parts.
What is gathered for a pass depends on `model.dtype`:

- float32: a decoder layer is whole only while it computes, and the rest of the model (embedding,
  last norm, head) during an optimizer step.
- bfloat16: the matrices of the layers are gathered in bfloat16, once in an optimizer step. Their
  products are in bfloat16 in any case, so no number changes. Together with the rest, which stays in
  float32, they take less memory than the whole float32 model with which a worker scores.

`full` does not reduce memory while a worker loads and scores with the whole model, and when rank 0
gathers the result in main memory, tensor by tensor, to write it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from spin.config.training import Dtype, Sharding
from spin.errors import ConfigError

MOST_OTHER_WEIGHTS = 0.01
"""Largest share of a layer that is not in matrices, and is then whole in float32 during a step."""


def make_accelerator(sharding: Sharding) -> Accelerator:
    """Return the accelerator of this process."""
    cpu = not torch.cuda.is_available()
    if sharding is Sharding.none:
        # DDP would keep a second copy of all gradients in its buckets.
        buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        return Accelerator(cpu=cpu, kwargs_handlers=[buckets])
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
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
    if not accelerator.is_fsdp2:
        return accelerator.prepare(scorer, optimizer)
    names = {id(parameter): name for name, parameter in scorer.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    shard(scorer, accelerator.device.type, accelerator.num_processes)
    set_parameters(scorer, optimizer, groups)
    # accelerate leaves a sharded model as it is, but finds the optimizer's parameters by their
    # address, which all empty parts share.
    scorer, optimizer = accelerator.prepare(scorer, optimizer)
    set_parameters(scorer, optimizer, groups)
    return scorer, optimizer


def set_parameters(scorer: Any, optimizer: Any, groups: list[list[str]]) -> None:
    """Give an optimizer the parameters of each of its groups by name."""
    parameters = dict(scorer.named_parameters())
    for group, names in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [parameters[name] for name in names]


def shard(scorer: Any, device_type: str, workers: int) -> None:
    """Let FSDP2 hold the parameters of a module around a causal LM, in place. Collective.

    Raises:
        ConfigError: The model does not name its layers.
    """
    # Imported here, because most runs share nothing.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # The list may also name parts that this model was built without.
    names = set(scorer.model._no_split_modules or ())
    layers = [module for module in scorer.model.modules() if type(module).__name__ in names]
    if not layers:
        kind = type(scorer.model).__name__
        raise ConfigError(
            f"training.sharding=full: {kind} does not name its layers (_no_split_modules); "
            "expected a decoder that does, or take training.sharding=none"
        )
    mesh = init_device_mesh(device_type, (workers,))
    others: list[list[nn.Module] | None] = [None] * len(layers)
    if scorer.dtype is Dtype.bfloat16:
        others = [find_others(layer) for layer in layers]
    # Gathered in bfloat16, a norm would be another one. FSDP2 has one dtype for each unit, so norms
    # belong to the unit of the whole module, which looks for parameters outside of the layers.
    # They are not units of their own, whose hooks would split a compiled layer.
    scorer.others = nn.ModuleList()
    whole_units = []
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer, modules in zip(reversed(layers), reversed(others), strict=True):
        if modules is None:
            fully_shard(layer, mesh=mesh)
            continue
        ignored = {parameter for module in modules for parameter in module.parameters(recurse=False)}
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=ignored, reshard_after_forward=False)
        scorer.others.extend(modules)
        whole_units.append(layer)
    fully_shard(scorer, mesh=mesh)
    del scorer.others
    # A list, which does not make them modules of the scorer.
    scorer.whole_units = [scorer, *whole_units]


def find_others(layer: nn.Module) -> list[nn.Module] | None:
    """Return the modules of a layer with parameters outside of matrix products.

    Returns:
        Norms, as a rule; None if they hold so much that they must not be whole during a step, as
        the experts of some models do.
    """
    from transformers.pytorch_utils import Conv1D

    others, held = [], 0
    for module in layer.modules():
        own = list(module.parameters(recurse=False))
        if own and not isinstance(module, nn.Linear | Conv1D):
            others.append(module)
            held += sum(parameter.numel() for parameter in own)
    if held > MOST_OTHER_WEIGHTS * sum(parameter.numel() for parameter in layer.parameters()):
        return None
    return others


def exchange_in_pass(accelerator: Accelerator, model: Any, is_last: bool) -> AbstractContextManager[Any]:
    """Return the context of one of the passes of a step, which says what workers exchange.

    DDP exchanges gradients in the last pass alone. FSDP2 never holds whole gradients and exchanges
    them in each; layers in bfloat16 stay whole until the last backward pass.
    """
    if not accelerator.is_fsdp2:
        return nullcontext() if is_last else accelerator.no_sync(model)
    for unit in model.whole_units:
        unit.set_reshard_after_backward(is_last, recurse=False)
    return nullcontext()


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
