"""Optimizer steps on a fake GPU, which has shapes and devices and no values; prints JSON.

It is a process of its own, because torch names its fake device once in a process. A tensor of main
memory among those of the device raises. `Watch` counts what would let the CPU wait for the device.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.backend_registration as backends
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import spin
from spin.config.objective import KtoObjective, SftObjective, SpinObjective, TspinObjective
from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import GrpoObjective
from spin.config.reward_model import BradleyTerryObjective
from spin.config.training import Dtype, TrainingConfig
from spin.data.examples import Completion, Example, RankedPair
from spin.data.rollouts import Rollout
from spin.models.forward import GroupLogps
from spin.models.kernels import flex
from spin.models.layouts import ForwardChoice
from spin.models.scalar_head import GroupRewards
from spin.objectives.objective import StepBatch
from spin.objectives.registry import make_objective
from spin.training.batches import group_by_prompt
from spin.training.optimizer import make_optimizer
from spin.training.trainer import Trainer

NAME = "fakegpu"
ROOT = Path(spin.__file__).parent
WAITING = ("aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::bincount")
"""Operations whose result has a size that the CPU must learn."""
MASKED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
CAST = ("linear", "matmul", "mm", "bmm")
"""Operations that autocast computes in bfloat16, as far as models use them."""


class Module(backends._DummyBackendModule):
    """torch.fakegpu, which autocast asks for its dtypes."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> list[torch.library.Library]:
    """Name the device, and let autocast know it as it knows CUDA. The result must be kept."""
    backends._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    key = torch._C.DispatchKey.AutocastPrivateUse1
    every = torch.library.Library("_", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")

    def make_cast(operation: Any) -> Any:
        def run(*tensors: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                halves = [tensor if tensor is None else tensor.to(torch.bfloat16) for tensor in tensors]
                return operation(*halves)

        return run

    for name in CAST:
        aten.impl(name, make_cast(getattr(torch.ops.aten, name).default), "AutocastPrivateUse1")
    return [every, aten]


def on_device(values: Any) -> bool:
    return isinstance(values, torch.Tensor) and values.device.type == NAME


def make_value(dtype: torch.dtype) -> Any:
    """A value to read off the device."""
    if dtype is torch.bool:
        return True
    if dtype.is_floating_point:
        return 1.0
    return 1


class Watch(TorchDispatchMode):
    """Counts reads, masks and copies that wait, each with the function of spin that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.queued = 0
        """Copies to the device that do not wait."""
        self.products: Counter[str] = Counter()
        """Matrix products and attentions by dtype."""

    def note(self, what: str) -> None:
        frame: Any = sys._getframe(1)
        while not Path(frame.f_code.co_filename).is_relative_to(ROOT):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename).relative_to(ROOT)
        self.waits[f"{what}: {path} {frame.f_code.co_qualname}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name
        if name == "aten::is_pinned":
            return False
        if name == "aten::_pin_memory":
            return args[0]
        if not on_device(args[0] if args else None):
            return self.copy_from_memory(func, name, args, kwargs)
        if name == "aten::_local_scalar_dense":
            self.note("read")
            return make_value(args[0].dtype)
        if name in WAITING:
            self.note(name)
        if name == "aten::bincount":  # a fake device cannot tell the size of its result
            return torch.empty(args[2], dtype=torch.long, device=NAME)
        if name in MASKED and any(index is not None and index.dtype is torch.bool for index in args[1]):
            self.note("mask")
        if name == "aten::_to_copy" and torch.device(kwargs.get("device") or NAME).type != NAME:
            self.note("copy to main memory")
        if name in ("aten::mm", "aten::bmm", "torch_attn::_varlen_attn"):
            self.products[f"{name} {args[0].dtype}"] += 1
        return func(*args, **kwargs)

    def copy_from_memory(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Run an operation on main memory, or copy its result to the device."""
        device = kwargs.get("device")
        if name != "aten::_to_copy" or device is None or torch.device(device).type != NAME:
            return func(*args, **kwargs)
        if kwargs.get("non_blocking"):
            self.queued += 1
        else:
            self.note("copy to the device")
        return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=device)


def read_list(self: FakeTensor) -> Any:
    """Read a whole tensor at once; `tolist` of a fake tensor reads each value by itself."""
    return np.full(self.shape, self.flatten()[0].item()).tolist()


def make_model(config: Any, kind: Any) -> Any:
    """A model whose parameters and buffers are on the device."""
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.float32).eval()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=NAME)
                module._parameters[name] = torch.nn.Parameter(empty)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=NAME)
    model.tie_weights()
    return model


def make_rows(kind: str, count: int = 4) -> list[Example]:
    """Rows of prompts and completions of different lengths."""
    rows = []
    for number in range(count):
        prompt, chosen, rejected = [5] * (30 + number), [7] * (15 + number), [9] * 20
        completions = [Completion(chosen, True, 1.0, 1.0, 0.9), Completion(rejected, False, 1.0, 1.0, 0.1)]
        ranked: tuple[RankedPair, ...] = ()
        match kind:
            case "target":
                completions = completions[:1]
            case "three":
                completions.append(Completion([11] * 8, False, 1.0))
            case "rollout":
                figures = {name: [0.5] * len(chosen) for name in ("old_logps", "base_logps", "advantages")}
                rollout = Rollout(number, 0, 0, prompt, chosen, "stop", 1.0, -3.0, **figures)
                completions = [Completion(chosen, False, 1.0, rollout=rollout)]
            case "ranking":
                ranked = (RankedPair(0, 1, 1.0, 0.0),)
        mismatched = ()
        if kind == "mismatched":
            mismatched = (Completion([13] * 9, True, 1.0),)
        rows.append(Example(f"row {number}", prompt, tuple(completions), mismatched=mismatched, ranked_pairs=ranked))
    return rows


def take_step(
    config: Any,
    objective: ObjectiveConfig,
    rows: str = "pair",
    dtype: Dtype = Dtype.bfloat16,
    checkpointing: bool = False,
) -> dict[str, Any]:
    """Take the step of the trainer on two passes, and score the rows; return what was counted."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    began = time.perf_counter()
    watch = Watch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        kind, wrap = AutoModelForCausalLM, GroupLogps
        if rows == "ranking":
            kind, wrap = AutoModelForSequenceClassification, GroupRewards
            config.num_labels = 1
        model = make_model(config, kind)
        trainer = Trainer(dtype)
        trainer.accelerator.state.device = torch.device(NAME)
        choice = ForwardChoice("shared", flash=dtype is Dtype.bfloat16, compiled=False)
        trainer.scorer = wrap(model, dtype, gradient_checkpointing=checkpointing, choice=choice)
        training = TrainingConfig(micro_batch_tokens=150)
        optimizer = make_optimizer(model, training)
        batch = StepBatch(make_rows(rows), make_objective(objective))
        with watch:
            trainer.step(trainer.scorer, optimizer, batch, training, check_start=False)
            step = dict(watch.waits)
            watch.waits.clear()
            with torch.no_grad():
                trainer.scorer(group_by_prompt(batch.rows)[0]).sums()
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        assert len(moments) == len(list(model.parameters()))
        assert all(on_device(moment) and moment.dtype is torch.float32 for moment in moments)
    return {
        "step": step,
        "score": dict(watch.waits),
        "queued": watch.queued,
        "products": dict(watch.products),
        "seconds": time.perf_counter() - began,
    }


def copy_queries(query: Any, key: Any, value: Any, score_mod: Any, mask: Any, **settings: Any) -> Any:
    """Take the place of FlexAttention, which asks for the names of real devices."""
    tables = [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices]
    at = torch.zeros(1, dtype=torch.long, device=NAME)
    assert all(map(on_device, [query, key, value, *tables, mask.mask_mod(at, at, at, at)]))
    return query + (key.sum() + value.sum())


def main() -> None:
    """Take the steps."""
    from transformers import LlamaConfig, Qwen2Config

    libraries = register()
    FakeTensor.tolist = read_list  # type: ignore[method-assign]
    llama = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
    qwen = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}

    def small() -> Any:
        return LlamaConfig(num_hidden_layers=2, vocab_size=100, pad_token_id=0, **tiny)

    found = {
        "Llama-7B": take_step(LlamaConfig(num_hidden_layers=2, **llama), SpinObjective()),
        "Qwen-0.5B": take_step(
            Qwen2Config(num_hidden_layers=2, vocab_size=151936, tie_word_embeddings=True, **qwen), SpinObjective()
        ),
        "checkpointing": take_step(small(), SpinObjective(), checkpointing=True),
        "sft": take_step(small(), SftObjective(), "target"),
        "kto": take_step(small(), KtoObjective(), "mismatched"),
        "tspin": take_step(small(), TspinObjective(), "three"),
        "grpo": take_step(small(), GrpoObjective(), "rollout"),
        "bradley_terry": take_step(small(), BradleyTerryObjective(), "ranking"),
    }
    flex._compiled = lambda: copy_queries
    found["float32"] = take_step(small(), SpinObjective(), dtype=Dtype.float32)
    del libraries
    print(json.dumps(found))


if __name__ == "__main__":
    main()
