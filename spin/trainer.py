"""One training stage: batch → log-probabilities → objective → step, on however many workers accelerate was started with.

What it leaves out: packing and fused heads (every batch is padded). Scoring and training share `forward`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from spin.config import Dtype, ObjectiveConfig, Optimizer, SftObjective, SpinObjective, TrainingConfig
from spin.logps import completion_logps
from spin.model import Policy, check_policy, load_policy
from spin.objectives import PairLogps, sft, spin, spin_at_start
from spin.records import rename_folder

TokenSequence = tuple[list[int], list[int]]
"""Prompt ids and completion ids of one sequence."""

STEP0_TOLERANCE = {Dtype.float32: 1e-4, Dtype.bfloat16: 2e-2}
"""Nats per token by which two passes of the same weights over differently padded batches may differ."""


class TrainingError(RuntimeError):
    """An invariant of training failed; the last promoted policy stands."""


@dataclass(frozen=True)
class Example:
    """What one row contributes: the real sequence and, for an objective on pairs, the generated one with both reference log-probabilities."""

    name: str
    prompt_ids: list[int]
    real_ids: list[int]
    generated_ids: list[int] | None = None
    reference_real_logp: float = 0.0
    reference_generated_logp: float = 0.0


def state_folder(states: Path, step: int) -> Path:
    """Where the state after `step` optimizer steps lies."""
    return states / f"step-{step:06d}"


def epoch_order(rows: int, seed: int, iteration: int, epoch: int) -> np.ndarray:
    """The order of one epoch's rows: depends on nothing but its arguments. `iteration` is -1 for the warm start. Shape (rows,)."""
    return np.random.default_rng([seed, iteration + 1, epoch]).permutation(rows)


class Trainer:
    """Holds one model at a time: the opponent while it scores, then the same weights as the main player while they are trained."""

    def __init__(self, dtype: Dtype, trust_remote_code: bool = False) -> None:
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), step_scheduler_with_optimizer=False)
        self.dtype = dtype
        self._trust_remote_code = trust_remote_code
        self._digest: str | None = None
        self.model: Any = None

    def load(self, policy: Policy) -> None:
        """Hold the weights of `policy`, unless they are held already. Raises CheckpointError when the files were altered."""
        if self._digest == policy.digest:
            return
        check_policy(policy)
        self.model, self._digest = None, None  # never two models in memory
        self.model = load_policy(Path(policy.path), self._trust_remote_code).to(self.accelerator.device)
        self._digest = policy.digest

    def forward(self, model: Any, sequences: Sequence[TokenSequence]) -> Tensor:
        """Summed completion log-probabilities of a right-padded batch. Shape (len(sequences),), float64."""
        device = self.accelerator.device
        longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        attention, completion_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(sequences):
            end = len(prompt) + len(completion)
            ids[row, :end] = torch.tensor(prompt + completion)
            attention[row, :end] = 1
            completion_mask[row, len(prompt) : end] = True
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype is Dtype.bfloat16):
            logits = model(input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False).logits  # [batch, length, vocab]
        return completion_logps(logits, ids.to(device), completion_mask.to(device))

    @torch.no_grad()
    def score(self, policy: Policy, sequences: Sequence[TokenSequence], micro_batch_size: int) -> list[float]:
        """Log-probabilities of `sequences` under `policy`, in their order; batches are cut from the sequences sorted by length."""
        self.load(policy)
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index][0]) + len(sequences[index][1]))
        logps = [0.0] * len(sequences)
        for start in range(0, len(order), micro_batch_size):
            chunk = order[start : start + micro_batch_size]
            for index, value in zip(chunk, self.forward(self.model, [sequences[index] for index in chunk]).tolist(), strict=True):
                logps[index] = value
        return logps

    def train(
        self,
        policy: Policy,
        examples: Sequence[Example],
        objective: ObjectiveConfig,
        training: TrainingConfig,
        seed: int,
        iteration: int,
        states: Path | None = None,
        resume_step: int = 0,
    ) -> Iterator[dict[str, float]]:
        """Train from `policy`; yields the metrics of each optimizer step. `self.model` holds the outcome.

        With `training.checkpoint_every`, ``states/step-000100`` holds everything that the next step depends on; `resume_step` goes on from one
        of these. A step that was saved says so in its metrics (``saved``), after the folder is whole.

        Raises TrainingError when the first step's log-probabilities are not the reference's, or a loss or gradient is not finite.
        """
        self.load(policy)
        self._digest = None  # from here on the weights are nobody's
        steps_per_epoch = math.ceil(len(examples) / training.batch_size)
        optimizer = make_optimizer(self.model, training)
        schedule = make_schedule(optimizer, training, steps_per_epoch * training.epochs)
        model, optimizer, schedule = self.accelerator.prepare(self.model, optimizer, schedule)
        if resume_step:
            assert states is not None
            self.accelerator.load_state(str(state_folder(states, resume_step)))
        for epoch in range(training.epochs):
            order = epoch_order(len(examples), seed, iteration, epoch)
            for index in range(steps_per_epoch):
                step = epoch * steps_per_epoch + index + 1
                if step <= resume_step:
                    continue
                batch = [examples[i] for i in order[index * training.batch_size : (index + 1) * training.batch_size]]
                first = epoch == 0 and index == 0
                rate = schedule.get_last_lr()[0]
                metrics = self._step(model, optimizer, batch, objective, training, check_start=first)
                schedule.step()
                total = steps_per_epoch * training.epochs
                saved = states is not None and training.checkpoint_every > 0 and step % training.checkpoint_every == 0 and step < total
                if saved and states is not None:
                    self._save(state_folder(states, step))
                yield {"step": step, "steps": total, "learning_rate": rate, "saved": saved, **metrics}
        self.model = self.accelerator.unwrap_model(model)
        self.accelerator.free_memory()

    def _save(self, folder: Path) -> None:
        """Weights, optimizer, schedule and random states of all workers, finished by rename."""
        temporary = folder.with_name(folder.name + ".tmp")
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            rename_folder(temporary, folder)

    def _step(self, model: Any, optimizer: Any, batch: list[Example], objective: ObjectiveConfig, training: TrainingConfig, check_start: bool) -> dict[str, float]:
        """One optimizer step over the whole batch; every worker takes every world-size-th row."""
        world = self.accelerator.num_processes
        mine = batch[self.accelerator.process_index :: world]
        denominator = sum(len(e.real_ids) for e in batch) if isinstance(objective, SftObjective) else len(batch)
        micro_steps = math.ceil(math.ceil(len(batch) / world) / training.micro_batch_size)  # the same on every worker
        sums = torch.zeros(7, dtype=torch.float64, device=self.accelerator.device)
        for micro in range(micro_steps):
            rows = mine[micro * training.micro_batch_size : (micro + 1) * training.micro_batch_size]
            weight = 1.0 if rows else 0.0
            rows = rows or batch[:1]  # a worker without rows still takes part in the gradient exchange, with weight 0
            with _sync(self.accelerator, model, last=micro == micro_steps - 1):
                losses, logged = self._losses(model, rows, objective, check_start and weight > 0)
                if not torch.isfinite(losses).all():
                    bad = [row.name for row, ok in zip(rows, torch.isfinite(losses).tolist(), strict=True) if not ok]
                    raise TrainingError(f"the loss of {', '.join(bad[:5])} is not finite; lower training.learning_rate, or look at these rows")
                self.accelerator.backward(weight * losses.sum() * world / denominator)  # DDP divides by the world size
            sums += weight * logged
        sums = self.accelerator.reduce(sums, "sum")
        norm = float(self.accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient is not finite in a batch of {', '.join(e.name for e in batch[:5])}, …; lower training.learning_rate")
        optimizer.step()
        optimizer.zero_grad()
        rows_total = len(batch)
        metrics = {"loss": float(sums[0]) / denominator, "grad_norm": norm, "logps/chosen": float(sums[1]) / rows_total}
        if not isinstance(objective, SftObjective):
            names = ("logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
            metrics |= {name: float(value) / rows_total for name, value in zip(names, sums[2:], strict=True)}
        return metrics

    def _losses(self, model: Any, rows: list[Example], objective: ObjectiveConfig, check_start: bool) -> tuple[Tensor, Tensor]:
        """Per-row losses, Shape (rows,), and the sums that are logged, Shape (7,)."""
        real = [(row.prompt_ids, row.real_ids) for row in rows]
        if isinstance(objective, SftObjective):
            logps = self.forward(model, real)
            losses = sft(logps)
            return losses, torch.stack([losses.detach().sum(), logps.detach().sum(), *[losses.new_zeros(())] * 5])
        assert isinstance(objective, SpinObjective)
        generated = [(row.prompt_ids, row.generated_ids or []) for row in rows]
        both = self.forward(model, real + generated)  # [2 × rows]
        reference = both.new_tensor([row.reference_real_logp for row in rows] + [row.reference_generated_logp for row in rows])
        n = len(rows)
        logps = PairLogps(both[:n], both[n:], reference[:n], reference[n:])
        losses = spin(logps, objective.beta, objective.link.name)
        if check_start:
            check_step0(both.detach(), reference, [len(c) for _, c in real + generated], rows, self.dtype, losses.detach(), objective)
        with torch.no_grad():
            chosen, rejected = objective.beta * (both[:n] - reference[:n]), objective.beta * (both[n:] - reference[n:])
            logged = [losses, both[:n], both[n:], chosen, rejected, chosen - rejected, (chosen > rejected).double()]
            return losses, torch.stack([value.detach().sum() for value in logged])


def check_step0(policy: Tensor, reference: Tensor, tokens: list[int], rows: list[Example], dtype: Dtype, losses: Tensor, objective: SpinObjective) -> None:
    """Before the first update the main player is its opponent: refuse to train unless every log-ratio is 0 within the dtype's rounding."""
    allowed = STEP0_TOLERANCE[dtype] * policy.new_tensor(tokens).clamp(min=1)
    off = (policy - reference).abs() > allowed
    if bool(off.any()) or not bool(torch.isfinite(reference).all()):
        worst = int((policy - reference).abs().nan_to_num(math.inf).argmax())
        gap = float(policy[worst] - reference[worst])
        raise TrainingError(
            f"step 0: log π − log π_ref of {rows[worst % len(rows)].name} is {gap:.3g}, expected 0 within {float(allowed[worst]):.3g}: "
            f"the pairs were not scored with the weights about to be trained (mean loss {float(losses.mean()):.6f}, expected {spin_at_start(objective.link.name):.6f})"
        )


def _sync(accelerator: Accelerator, model: Any, last: bool) -> Any:
    """Exchange gradients at the last micro-batch of a step only."""
    return nullcontext() if last else accelerator.no_sync(model)


def make_optimizer(model: Any, training: TrainingConfig) -> Any:
    """A fresh optimizer: each stage starts with one, as in the paper."""
    kind = {Optimizer.adamw: torch.optim.AdamW, Optimizer.rmsprop: torch.optim.RMSprop}[training.optimizer]
    return kind(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)


def make_schedule(optimizer: Any, training: TrainingConfig, steps: int) -> Any:
    """Linear warm-up over `warmup_ratio` of the steps, then the decay asked for."""
    from transformers import get_scheduler

    warmup = int(training.warmup_ratio * steps)  # rounded down: the first warm-up step has rate 0, and a stage of one step must learn
    name = "constant_with_warmup" if training.lr_schedule.name == "constant" else training.lr_schedule.name
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
