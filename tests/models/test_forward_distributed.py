"""GroupLogps inside DDP and FSDP2 on two CPU processes: the gradients are those of one process."""

import faulthandler
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

KINDS = ("ddp", "fsdp2", "fsdp2, checkpointed", "fsdp2, compiled")


def worker(rank: int, port: int, folder: str) -> None:
    # Processes that wait for each other print where, and end.
    faulthandler.dump_traceback_later(300, exit=True)
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, world_size=2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for kind in KINDS:
        compare_gradients(rank, kind)
    dist.destroy_process_group()
    Path(folder, f"done-{rank}").touch()


def compare_gradients(rank: int, kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    from spin.config.training import Dtype
    from spin.models.forward import GroupLogps
    from spin.models.packing import Group

    torch.manual_seed(0)
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(300) for _ in range(count)]

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    net = GroupLogps(
        LlamaForCausalLM(config).eval(),
        Dtype.float32,
        gradient_checkpointing=kind == "fsdp2, checkpointed",
        sharded=kind != "ddp",
    )
    groups = [Group(tokens(20), [tokens(rng.randint(1, 30)) for _ in range(2)]) for _ in range(4)]
    assert net.choose(groups[:2]) is None
    net(groups).values.sum().backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    names = sorted(net.state_dict())
    if kind == "fsdp2, compiled":
        compile_layers(net)
    mine = groups[2 * rank : 2 * rank + 2]
    if kind == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
        with wrapped.no_sync():
            (2 * wrapped(mine[:1]).values.sum()).backward()  # both exchange means
        (2 * wrapped(mine[1:]).values.sum()).backward()
        found = {name: p.grad for name, p in net.named_parameters()}
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in net.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        (2 * net(mine).values.sum()).backward()
        found = {name: p.grad.full_tensor() for name, p in net.named_parameters()}  # type: ignore[union-attr]
        assert sorted(net.state_dict()) == names
    assert (compiled_graphs() > 0) == (kind == "fsdp2, compiled")
    for name, grad in expected.items():
        assert (found[name] - grad).norm() < 1e-5 * grad.norm(), (kind, name)  # type: ignore[operator]


def compile_layers(net: Any) -> None:
    """Compile the layers as on a GPU, without a compiler of kernels."""
    from spin.models.kernels import attention
    from spin.models.layer_calls import set_layer_calls

    torch.compile = partial(torch.compile, backend="eager")  # type: ignore[assignment]
    # The loop over segments of a CPU is not made for the compiler; a GPU has a kernel in its place.
    apply = torch.compiler.disable(attention.GroupAttention.apply)
    attention.GroupAttention = SimpleNamespace(apply=apply)  # type: ignore[assignment, misc]
    net.compiled = True
    set_layer_calls(net.model, checkpointing=False, compiled=True)


def compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(worker, (store.port, str(tmp_path)), nprocs=2)
    assert {file.name for file in tmp_path.glob("done-*")} == {"done-0", "done-1"}
