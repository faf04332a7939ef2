"""Measure the speed of the model's forward and backward pass on this CPU, and the layout it takes.

`spin check` does it, in some seconds, so that its times are those of this machine and this model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from spin.config.run import RunConfig
from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.models.cpu_memory import keep_freed_memory, limit_kernel_caches
from spin.models.forward import GroupLogps
from spin.models.loading import load_policy
from spin.models.lora import inject_adapter, make_lora_config
from spin.models.packing import Group
from spin.models.token_budget import CPU_TOKEN_CAP
from spin.preflight.hardware import CPU_FLOPS
from spin.preflight.operations import BACKWARD, FORWARD
from spin.run_dir.paths import RunLayout

PASS_SECONDS = 8.0
"""Seconds that one pass may take at CPU_FLOPS, a cautious rate; passes are made shorter for it."""

LEAST_TOKENS = 128
"""A pass with fewer tokens says nothing about the speed of a long one."""

MAX_PASSES = 5
"""Passes of each kind; the first one of several is not timed."""

TOTAL_SECONDS = 3.0
"""After this time, no further pass of a kind begins."""

SHORT_PROMPT, SHORT_COMPLETION = 32, 16
"""Tokens of the rows on which the layout is checked; whether it is exact depends on no length."""

DECODE_FACTOR = 2.5
"""Time of a token in vLLM on a CPU, in units of its time in a forward pass of many tokens. Measured
with Llama of 253 M weights: 2.4; with the built-in model 2.5, the next one included."""

ENGINE_TOKEN_SECONDS = 1e-5
"""Seconds that vLLM takes for a token besides the model, of requests that run together."""

UNCERTAINTY = 1.5
"""Factor within which three real runs ended: docs/performance.md."""


@dataclass(frozen=True)
class SpeedProbe:
    """The speed, layout and layers of a model on this CPU."""

    layout: str
    """shared, packed or padded."""
    has_fast_layers: bool
    """True if the layers of spin compute, and not those of transformers."""
    note: str | None
    """The reason for a slower layout; None if the first one was taken."""
    forward_flops: float
    """FLOP/s of a forward pass, two operations per weight and token; a prompt counts once for each
    of its completions."""
    train_flops: float
    """FLOP/s of a forward and a backward pass, six operations per weight and token."""
    weights: int
    """Number of weights of the model."""

    def find_flops(self, work: str) -> float:
        """Return the FLOP/s that one worker or engine reaches in a kind of work of `WORK`."""
        if work == "train":
            return self.train_flops
        operations = FORWARD * self.weights
        generating = operations / (DECODE_FACTOR * operations / self.forward_flops + ENGINE_TOKEN_SECONDS)
        if work == "generate":
            return generating
        if work == "benchmark":  # one token generated, two scored
            return 3 / (1 / generating + 2 / self.forward_flops)
        return self.forward_flops

    def describe(self) -> str:
        """Return one line on layout and layers."""
        layers = "the fast layers of spin"
        if not self.has_fast_layers or self.layout == "padded":
            layers = "the layers of transformers"
        text = f"training: layout {self.layout}, {layers}, {self.train_flops / 1e9:.3g} GFLOP/s measured on this CPU"
        if self.note is not None:
            text += f"; {self.note}"
        return text


def probe_speed(config: RunConfig, model_folder: Path, prepared: RunLayout, weights: int) -> SpeedProbe | None:
    """Return the measured speed of a training worker; None if the model is too large for it.

    Args:
        config: Config of the run.
        model_folder: Folder of the model.
        prepared: Where the prepared sets are.
        weights: Number of weights of the model.
    """
    num_tokens = min(CPU_TOKEN_CAP, int(PASS_SECONDS * CPU_FLOPS / ((FORWARD + BACKWARD) * weights)))
    fits = 3 * 4 * weights < psutil.virtual_memory().available
    if num_tokens < LEAST_TOKENS or not fits:
        return None
    groups = list_groups(prepared, num_tokens)
    if not groups:
        return None
    torch.set_num_threads(config.cluster.trainer_threads)
    keep_freed_memory()
    limit_kernel_caches()
    scorer = load_scorer(config, model_folder)
    note = scorer.choose([shorten(group) for group in groups[:2]])

    # Two operations per weight and token of a forward pass.
    tokens = sum(len(group.completions) * len(group.prompt_ids) + sum(map(len, group.completions)) for group in groups)
    operations = FORWARD * weights * tokens
    forward = time_passes(lambda: run_forward(scorer, groups))
    train = time_passes(lambda: run_training(scorer, groups))
    return SpeedProbe(
        scorer.layout,
        scorer.fast is not None,
        note,
        operations / forward,
        operations * (FORWARD + BACKWARD) / FORWARD / train,
        weights,
    )


def list_groups(prepared: RunLayout, num_tokens: int) -> list[Group]:
    """Return prompts with two completions each, of about `num_tokens` tokens together.

    Until the run has answers of the model, the ground truth and its reverse stand for both.
    """
    for name in ("train", "warmup"):
        if prepared.prompts(name).exists():
            break
    else:
        return []
    groups, total = [], 0
    for row in read_rows(prepared.prompts(name), Prompt, 0, max(2, num_tokens)):
        groups.append(Group(row.prompt_ids, [row.completion_ids, row.completion_ids[::-1]]))
        total += len(row.prompt_ids) + 2 * len(row.completion_ids)
        if total >= num_tokens and len(groups) > 1:
            break
    return groups


def shorten(group: Group) -> Group:
    """Return the first tokens of a group."""
    return Group(group.prompt_ids[:SHORT_PROMPT], [ids[:SHORT_COMPLETION] for ids in group.completions])


def load_scorer(config: RunConfig, model_folder: Path) -> GroupLogps:
    """Return the model as a training worker holds it, with a new adapter where the run has one."""
    dtype = torch.float32
    if config.adapter.enabled:
        dtype = getattr(torch, config.adapter.base_dtype.name)
    model = load_policy(model_folder, config.model.trust_remote_code, dtype)
    if config.adapter.enabled:
        inject_adapter(model, make_lora_config(config.adapter))
    return GroupLogps(model, config.model.dtype, config.training.layout.name, config.training.gradient_checkpointing)


def time_passes(run: Callable[[], None]) -> float:
    """Return the median seconds of a pass."""
    seconds: list[float] = []
    while len(seconds) < MAX_PASSES and sum(seconds) < TOTAL_SECONDS:
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    if len(seconds) > 1:
        del seconds[0]
    return statistics.median(seconds)


def run_forward(scorer: GroupLogps, groups: Sequence[Group]) -> None:
    """Score the groups."""
    with torch.no_grad():
        scorer(groups)


def run_training(scorer: Any, groups: Sequence[Group]) -> None:
    """Compute gradients on the groups."""
    scorer.zero_grad()
    scorer(groups).sums().sum().backward()
