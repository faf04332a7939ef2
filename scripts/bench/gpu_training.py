"""Time optimizer steps of one system on one GPU, for `scripts/bench/gpu.py`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.bench.gpu_cases import (
    STEPS,
    count_tokens,
    find_device,
    gpu_lock,
    make_pairs,
    needed_operations,
    read_clock,
)

TRL_MICRO_BATCH = 8
"""Pairs of a forward pass of DPOTrainer."""


def time_training(system: str, size: str, folder: str, lock: str, pairs: int, profile: str) -> dict[str, Any]:
    """Return speed, memory and loss of one system.

    Args:
        system: spin, spin-compiled, trl-best or trl-default.
        size: Name in SIZES.
        folder: The model.
        lock: File that is locked while the GPU is used.
        pairs: Pairs of a step.
        profile: File for the slowest kernels of a step of spin; empty for none.
    """
    if system.startswith("trl"):
        return time_trl(system, size, folder, lock, pairs)
    return time_spin(system, size, folder, lock, pairs, profile)


def time_spin(system: str, size: str, folder: str, lock: str, num_pairs: int, profile: str) -> dict[str, Any]:
    """Time scoring by the reference and optimizer steps of spin's Trainer."""
    from spin.config.objective import SpinObjective
    from spin.config.training import Dtype, TrainingConfig
    from spin.data.examples import Completion, Example
    from spin.models.packing import Group
    from spin.models.policy import Policy, policy_digest
    from spin.objectives.objective import StepBatch
    from spin.objectives.registry import make_objective
    from spin.training.optimizer import make_optimizer
    from spin.training.trainer import Trainer

    training = TrainingConfig(learning_rate=1e-6, batch_size=num_pairs, compile_layers=system == "spin-compiled")
    trainer = Trainer(Dtype.bfloat16)
    policy = Policy(folder, policy_digest(Path(folder)))
    drawn = [make_pairs(size, seed, num_pairs) for seed in range(STEPS + 1)]
    steps = []
    for pairs in drawn:
        rows = []
        for number, (prompt, chosen, rejected) in enumerate(pairs):
            rows.append(Example(f"pair {number}", prompt, (Completion(chosen, True), Completion(rejected, False))))
        steps.append(rows)
    with gpu_lock(lock):
        budget = trainer.find_token_budget(policy, compiled=training.compile_layers)
        trainer.load(policy, training)
        groups = [[Group(row.prompt_ids, [half.ids for half in row.completions]) for row in rows] for rows in steps]
        began = read_clock()
        trainer.choose_layout(training, groups[0])
        found = asdict(trainer.scorer.choice) | {"note": trainer.note, "choose_seconds": read_clock() - began}

        # Score with the reference; the first call compiles.
        scored, times = [], []
        for rows, own in zip(steps, groups, strict=True):
            began = read_clock()
            scores = trainer.score(policy, own, training)
            times.append(read_clock() - began)
            scored.append([row.with_reference(logps) for row, logps in zip(rows, scores, strict=True)])
        score_tokens = sum(count_tokens(pairs) for pairs in drawn[1:])
        found |= {"score_first_seconds": times[0], "score_tokens_per_second": score_tokens / sum(times[1:])}

        # Train.
        model, optimizer = trainer.accelerator.prepare(trainer.scorer, make_optimizer(trainer.model, training))
        objective = make_objective(SpinObjective())
        times, losses = [], []
        for number, rows in enumerate(scored):
            began = read_clock()
            metrics = trainer.step(model, optimizer, StepBatch(rows, objective), training, check_start=number == 0)
            times.append(read_clock() - began)
            losses.append(metrics["loss"])
        found |= describe(size, drawn, times, losses) | {"token_budget": budget}
        if profile:
            write_profile(profile, lambda: trainer.step(model, optimizer, StepBatch(rows, objective), training, False))
    return found


def describe(size: str, drawn: list[Any], times: list[float], losses: list[float]) -> dict[str, Any]:
    """Return the figures of the timed steps; the first step is left out."""
    from scripts.bench.gpu_cases import PEAK

    tokens = sum(count_tokens(pairs) for pairs in drawn[1:])
    operations = sum(needed_operations(size, pairs) for pairs in drawn[1:])
    seconds = sum(times[1:])
    peak = 0
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return {
        "first_step_seconds": times[0],
        "step_seconds": seconds / len(times[1:]),
        "tokens_per_second": tokens / seconds,
        "mfu": operations / seconds / PEAK,
        "peak_gib": peak / 2**30,
        "losses": losses,
    }


def write_profile(path: str, step: Any) -> None:
    """Write the kernels and operators that take most of the time of one step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    tables = [
        found.key_averages().table(sort_by=key, row_limit=45, max_name_column_width=90)
        for key in ("self_cuda_time_total", "self_cpu_time_total")
    ]
    Path(path).write_text("\n\n".join(tables))


def time_trl(system: str, size: str, folder: str, lock: str, num_pairs: int) -> dict[str, Any]:
    """Time optimizer steps of TRL's DPOTrainer on the same pairs.

    trl-best      reference precomputed, no gradient checkpointing
    trl-default   the defaults: reference model in memory, gradient checkpointing
    """
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    best = system == "trl-best"
    drawn = [make_pairs(size, seed, num_pairs) for seed in range(STEPS + 1)]
    rows = []
    for pairs in drawn:
        rows += [{"prompt_ids": prompt, "chosen_ids": real, "rejected_ids": made} for prompt, real, made in pairs]
    times: list[float] = []
    losses: list[float] = []

    class Steps(TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = read_clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.append(read_clock() - self.began)

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # token ids already

        def _get_train_sampler(self, *args: Any) -> Any:
            return SequentialSampler(rows)

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])
            super().log(logs, *args, **kwargs)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    micro_batch = min(TRL_MICRO_BATCH, num_pairs)
    with tempfile.TemporaryDirectory() as output, gpu_lock(lock):
        config = DPOConfig(
            output_dir=output,
            beta=0.1,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            max_steps=STEPS + 1,
            max_length=None,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=num_pairs // micro_batch,
            precompute_ref_log_probs=best,
            gradient_checkpointing=not best,
            bf16=True,
            use_cpu=find_device() == "cpu",
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[Steps()],
        )
        trainer.remove_callback(PrinterCallback)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    return describe(size, drawn, times, losses)
