"""FSDP2 gathers the matrices of a layer in bfloat16, once in a step, and no number changes."""

import faulthandler
import os
import random
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from spin.config.training import Dtype, Sharding
from spin.models.forward import GroupLogps
from spin.models.packing import Group
from spin.training.sharding import exchange_in_pass, find_others, make_accelerator, prepare
from tests.models.test_forward import SHAPE
from tests.models.test_forward_distributed import compile_layers

KINDS = ("llama", "qwen", "gpt2", "llama, compiled", "llama, checkpointed")
PASSES = 3


def make_model(kind: str) -> Any:
    """Return a model whose norms are no powers of two, so that rounding them to bfloat16 shows."""
    torch.manual_seed(0)
    if kind == "gpt2":
        # A layer whose norms are 1 % of it or less, as in models of a real size.
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=128, n_layer=3, n_head=4))
    elif kind == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return model.eval()


def make_groups() -> list[Group]:
    """Return four groups of two completions."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(300) for _ in range(count)]

    return [Group(tokens(9), [tokens(rng.randint(1, 12)) for _ in range(2)]) for _ in range(4)]


class CountedExchanges(TorchDispatchMode):
    """Counts what workers exchange, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.found[function.__name__.split(".")[0]] += 1
        return function(*args, **(kwargs or {}))


def worker(rank: int, port: int, folder: str) -> None:
    # Processes that wait for each other print where, and end.
    faulthandler.dump_traceback_later(300, exit=True)
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    accelerator = make_accelerator(Sharding.full)
    for kind in KINDS:
        compare(accelerator, rank, kind)
    dist.destroy_process_group()
    Path(folder, f"done-{rank}").touch()


def compare(accelerator: Any, rank: int, kind: str) -> None:
    """Compare log-probabilities, gradients, and one optimizer step with those of whole weights."""
    groups = make_groups()[2 * rank : 2 * rank + 2]
    net = GroupLogps(
        make_model(kind), Dtype.bfloat16, "packed", gradient_checkpointing=kind.endswith("checkpointed"), sharded=True
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    if kind.endswith("compiled"):
        compile_layers(net)
    expected = net(groups).values
    net(groups).values.sum().backward()
    gradients = {}
    for name, parameter in net.named_parameters():
        dist.all_reduce(parameter.grad)
        # In the order in which the passes add up.
        gradients[name] = sum(parameter.grad / 2 for _ in range(PASSES))
    stepped = {name: parameter.detach() - 0.5 * gradients[name] for name, parameter in net.named_parameters()}
    net.zero_grad()

    wrapped, optimizer = prepare(accelerator, net, optimizer)
    counts = CountedExchanges()
    with counts:
        for number in range(PASSES):
            with exchange_in_pass(accelerator, wrapped, number == PASSES - 1):
                values = wrapped(groups).values
                torch.testing.assert_close(values, expected, rtol=0, atol=0)
                values.sum().backward()
    # The three layers and the rest are gathered once, and their gradients are reduced in each pass.
    assert counts.found == {"_allgather_base_": 4, "_reduce_scatter_base_": 4 * PASSES}, (kind, counts.found)
    for name, parameter in wrapped.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=0, atol=0)
    optimizer.step()
    for name, parameter in wrapped.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.full_tensor(), stepped[name], rtol=0, atol=0)
    assert not torch.equal(wrapped(groups).values, expected)


@pytest.mark.slow
def test_a_sharded_model_in_bfloat16_has_the_numbers_of_a_whole_one_and_is_gathered_once_in_a_step(
    tmp_path: Path,
) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(tmp_path)), nprocs=2)
    assert {file.name for file in tmp_path.glob("done-*")} == {"done-0", "done-1"}


def test_norms_are_outside_of_products_and_a_layer_of_experts_stays_a_unit_in_float32() -> None:
    layer: Any = make_model("llama").model.layers[0]
    assert find_others(layer) == [layer.input_layernorm, layer.post_attention_layernorm]
    gpt2: Any = make_model("gpt2").transformer.h[0]
    assert find_others(gpt2) == [gpt2.ln_1, gpt2.ln_2]
    experts = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1))
    assert find_others(experts.model.layers[0]) is None
