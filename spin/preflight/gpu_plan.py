"""The memory of each stage on one GPU, and the advice where a stage does not fit.

The tokens of a pass come from the function that the training workers call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spin.cluster.placement import Role, plan_placement, role_demands
from spin.config.adapter import AdapterConfig
from spin.config.cluster import Placement
from spin.config.policy_gradient import has_own_critic
from spin.config.training import Dtype, Sharding
from spin.feedback.judge_setup import max_engine_length
from spin.generation.requests import count_batch_tokens
from spin.models.model_size import FLOAT32_BYTES, VALUE_BYTES, training_bytes
from spin.models.token_budget import bytes_per_token, gpu_factor, gpu_head_bytes, layer_bytes
from spin.preflight.disk_space import MOMENTS
from spin.preflight.estimate import Estimate
from spin.report.formatting import format_bytes
from spin.training.pass_budget import TrainedModel, plan_token_budget

CONTEXT_BYTES = 1 << 30
"""Memory of a GPU that one process takes besides tensors: CUDA and its libraries; a guess."""

CPUS = 1024.0
"""CPU cores of a machine that is not here: enough for every actor."""

KINDS = ("weights", "gradients", "moments", "activations", "engine weights", "key-value cache")
"""Kinds of memory, in the order of the columns."""


@dataclass(frozen=True)
class StageMemory:
    """One stage on one of its GPUs."""

    stage: str
    tokens: int
    """Tokens of a pass, at most."""
    parts: dict[str, float]
    """Bytes by kind, of KINDS."""
    total: float
    """Bytes that are taken at one time, with those of processes that wait."""


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes and settings of training, of which the memory of one worker follows."""

    model: TrainedModel
    vocabulary: int
    dtype: Dtype
    sharding: Sharding
    workers: int
    checkpointing: bool
    compiled: bool
    moments: int
    longest: int
    """Tokens of the longest pair, which is never split."""
    available: float
    """Bytes for a training worker on its GPU."""

    def count_tokens(self) -> int:
        """Return the tokens of a pass, as the training workers find them."""
        return plan_token_budget(
            self.model,
            "cuda",
            int(self.available),
            self.dtype,
            self.sharding,
            self.workers,
            self.checkpointing,
            self.compiled,
        )

    def held(self) -> dict[str, float]:
        """Return the bytes of weights, gradients and moments of one worker.

        With `sharding=full` what is whole in a step is weights too.
        """
        held = dict.fromkeys(("weights", "gradients", "moments"), 0.0)
        parts = 1
        if self.sharding is Sharding.full:
            parts = self.workers
        for model in self.model.each():
            # Weights alone: no gradients and no moments.
            held["weights"] += model.training_bytes(moments=-1, parts=parts)
            if self.sharding is Sharding.full:
                held["weights"] += model.whole_bytes(self.dtype)
            gradient_bytes = FLOAT32_BYTES * (model.trained or model.weights) / parts
            held["gradients"] += gradient_bytes
            held["moments"] += self.moments * gradient_bytes
        return held

    def pass_bytes(self, tokens: int) -> float:
        """Return the bytes of the tokens of a pass until its backward pass, with the head's."""
        value_bytes = VALUE_BYTES[self.dtype]
        token_bytes = gpu_factor(self.compiled) * bytes_per_token(self.model.config, value_bytes, self.checkpointing)
        return tokens * token_bytes + gpu_head_bytes(tokens, self.vocabulary, value_bytes)

    def least_bytes(self) -> float:
        """Return the bytes of passes that hold one pair; workers score with the whole model."""
        training = sum(self.held().values()) + self.pass_bytes(self.longest)
        return max(training, sum(self.scoring(self.longest).values()))

    def traffic(self) -> tuple[float, float]:
        """Return the bytes that FSDP2 lets a worker receive: once in a step, and in each pass.

        In bfloat16, weights are gathered once in a step, matrices of layers in bfloat16. In float32
        each pass gathers them forward and backward. Each pass reduces gradients in float32.
        """
        if self.sharding is Sharding.none:
            return 0.0, 0.0
        in_step, in_pass = 0.0, 0.0
        for model in self.model.each():
            in_pass += FLOAT32_BYTES * (model.trained or model.weights)
            if self.dtype is Dtype.bfloat16:
                in_step += model.gathered_bytes()
            else:
                in_pass += 2 * model.training_bytes(moments=-1)
        share = (self.workers - 1) / self.workers
        return share * in_step, share * in_pass

    @property
    def fits(self) -> bool:
        """Return whether the longest pair can be trained on."""
        return self.least_bytes() <= self.available

    def scoring(self, tokens: int) -> dict[str, float]:
        """Return the bytes of a worker that scores, with the whole model and no gradients."""
        model, value_bytes = self.model, VALUE_BYTES[self.dtype]
        one_layer = gpu_factor(False) * sum(layer_bytes(model.config, value_bytes))
        return {
            "weights": training_bytes(model.weights, model.trained, model.base_dtype, moments=-1),
            "activations": tokens * one_layer + gpu_head_bytes(tokens, self.vocabulary, value_bytes),
        }


def make_training_plan(estimate: Estimate, model: Path) -> TrainingPlan:
    """Return the plan of the training of a run.

    Args:
        estimate: The estimate of the run, for GPUs.
        model: Folder of the model.
    """
    from transformers import AutoConfig

    config, training = estimate.config, estimate.config.training
    text_config: Any = AutoConfig.from_pretrained(model, trust_remote_code=config.model.trust_remote_code)
    base_dtype = Dtype.float32
    if config.adapter.enabled:
        base_dtype = config.adapter.base_dtype
    own_critic = any(has_own_critic(one.objective) for one in estimate.iteration_configs)
    trained = TrainedModel(
        text_config.get_text_config(), estimate.weights, estimate.adapter_weights, base_dtype, own_critic
    )
    available: float = estimate.device.memory - count_contexts(estimate) * CONTEXT_BYTES
    if engine_stays(estimate):
        available -= sum(estimate.engine_memory())
    return TrainingPlan(
        trained,
        estimate.shape.vocabulary,
        config.model.dtype,
        training.sharding,
        training.workers,
        training.gradient_checkpointing,
        training.compile_layers,
        MOMENTS[training.optimizer],
        config.max_prompt_length + 2 * config.generation.max_tokens,
        available,
    )


def shares_gpu(estimate: Estimate) -> bool:
    """Return whether an engine and a training worker have one GPU."""
    demands = role_demands(estimate.config, float(estimate.device.count))
    return any(demand.role is Role.trainer and demand.shares_with is not None for demand in demands)


def engine_stays(estimate: Estimate) -> bool:
    """Return whether an engine keeps its memory on the GPU of a training worker that works."""
    return shares_gpu(estimate) and estimate.config.cluster.placement is not Placement.colocated


def count_contexts(estimate: Estimate) -> int:
    """Return the number of processes on the GPU of a training worker."""
    return 1 + shares_gpu(estimate)


def count_used_gpus(estimate: Estimate) -> int:
    """Return the number of GPUs that a run occupies."""
    gpus = {"GPU": float(estimate.device.count), "CPU": CPUS}
    plan = plan_placement(estimate.config, [gpus])
    return int(sum(bundle["GPU"] for _, bundles in plan.groups for bundle in bundles))


def plan_stages(estimate: Estimate, plan: TrainingPlan) -> list[StageMemory]:
    """Return the memory of each stage of an iteration on one of its GPUs."""
    config = estimate.config
    tokens = config.training.micro_batch_tokens or plan.count_tokens()
    engine = dict(zip(("engine weights", "key-value cache"), estimate.engine_memory(), strict=True))
    scoring = plan.scoring(tokens)
    training = {**plan.held(), "activations": plan.pass_bytes(tokens)}

    # The memory of processes that wait on the same GPU counts too.
    contexts = float(count_contexts(estimate) * CONTEXT_BYTES)
    waiting = contexts
    if engine_stays(estimate):
        waiting += sum(engine.values())
    generating = contexts + sum(engine.values())
    if engine_stays(estimate):
        generating += scoring["weights"]
    score_total = waiting + sum(scoring.values())
    return [
        StageMemory("generate", count_batch_tokens(max_engine_length(config)), engine, generating),
        StageMemory("score", tokens, scoring, score_total),
        StageMemory("train", tokens, training, waiting + sum(training.values())),
        StageMemory("benchmark", tokens, {**engine, **scoring}, max(generating, score_total)),
    ]


def advise(estimate: Estimate, plan: TrainingPlan) -> list[str]:
    """Return a line on each part that does not fit, with settings that would; none if all fit."""
    lines = []
    device, generation = estimate.device, estimate.config.generation
    weights, cache = estimate.engine_memory()
    longest = max_engine_length(estimate.config)
    sequence = VALUE_BYTES[estimate.config.model.dtype] * estimate.shape.cache_values * longest
    if cache < sequence / generation.tensor_parallel_size:
        share = generation.find_memory_share(estimate.config.cluster.placement)
        lines.append(
            f"does not fit: an engine has {format_bytes(weights)} of weights in "
            f"{format_bytes(share * device.memory)} of a GPU; raise "
            "generation.gpu_memory_utilization or generation.tensor_parallel_size"
        )
    if not plan.fits:
        found = list_fitting(estimate, plan) or ["none of sharding=full, adapter=lora and 128 GPUs is enough"]
        lines.append(
            f"does not fit: training needs {format_bytes(plan.least_bytes())} on each GPU for the longest pair alone, "
            f"and {format_bytes(plan.available)} are free; what fits: {'; '.join(found)}"
        )
    return lines


def list_fitting(estimate: Estimate, plan: TrainingPlan) -> list[str]:
    """Return changes of settings with which training fits, each with the memory that it needs."""
    count = estimate.device.count
    full = {"sharding": Sharding.full}
    changes: dict[str, dict[str, Any]] = {}
    if not plan.checkpointing:
        changes["training.gradient_checkpointing=true"] = {"checkpointing": True}
    if plan.sharding is Sharding.none and count > 1:
        changes[f"training.sharding=full training.workers={count}"] = {**full, "workers": count}
    found = _try_changes(plan, changes)
    if not estimate.config.adapter.enabled:
        for dtype in Dtype:
            # A hundredth of the weights is more than an adapter of rank 16 has.
            lora = replace(plan.model, trained=max(1, plan.model.weights // 100), base_dtype=dtype)
            text = "adapter=lora"
            if dtype is not AdapterConfig.base_dtype:
                text += f" adapter.base_dtype={dtype.name} model.dtype={dtype.name}"
            fitting = _try_changes(plan, {text: {"model": lora}})
            found += fitting
            if fitting:
                break
    more = {}
    for power in range(1, 8):
        workers = 2**power
        if workers > count:
            more[f"{workers} GPUs with training.sharding=full training.workers={workers}"] = {
                **full,
                "workers": workers,
            }
    return found + _try_changes(plan, more)[:1]


def _try_changes(plan: TrainingPlan, changes: dict[str, dict[str, Any]]) -> list[str]:
    """Return the changes of a plan that fit, as text."""
    found = []
    for text, values in changes.items():
        changed = replace(plan, **values)
        if changed.fits:
            found.append(f"{text} ({format_bytes(changed.least_bytes())})")
    return found
