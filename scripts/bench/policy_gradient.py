"""Measure the training step of GRPO: answers that share their prompt, without sharing, and TRL.

    python scripts/bench/policy_gradient.py                             n = 4, 8 and 16
    python scripts/bench/policy_gradient.py --size tiny --rounds 1      a smoke test

A step takes `--prompts` prompts with n answers each. `shared` computes each prompt once for its
answers, `packed` once for each answer; both without padding. `TRL` is a step of GRPOTrainer on the
same rows, one prompt with its answers at a time, without gradient checkpointing; its generation is
replaced by the given rows. All three train with the loss that is a mean over tokens, without a
divergence to the start.

All run in one process and take turns: each round is a step of each. Time is process CPU time on one
thread (on CUDA wall clock). Printed are the best time of each and the median over the rounds of the
ratio, with its range. Weights are random, in float32. The losses of the last step are printed,
since they must agree.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from accelerate.state import GradientState

from scripts.bench.cases import LEARNING_RATE, RATIOS, SIZES, Case, Clock, save_model
from spin.config.policy_gradient import GrpoObjective
from spin.config.training import Dtype, Layout, TrainingConfig
from spin.data.examples import Example, from_rollout
from spin.data.rollouts import Rollout
from spin.models.policy import Policy, policy_digest
from spin.objectives.objective import StepBatch
from spin.objectives.registry import make_objective
from spin.training.optimizer import make_optimizer
from spin.training.rollout_scoring import add_advantages, score_rollouts
from spin.training.trainer import Trainer

OBJECTIVE = GrpoObjective(kl_weight=0.0)


def make_rollouts(case: Case, num_prompts: int, num_answers: int) -> list[Rollout]:
    """Return answers with random rewards; lengths are lognormal with σ = 0.5 around the mean."""
    rng = random.Random(f"{case.ratio} {case.vocab} {num_answers}")
    prompt, completion = RATIOS[case.ratio]

    def draw_tokens(mean: int) -> list[int]:
        count = min(4 * mean, max(8, round(mean * rng.lognormvariate(-0.125, 0.5))))
        return [rng.randrange(3, case.vocab) for _ in range(count)]

    rollouts = []
    for index in range(num_prompts):
        prompt_ids = draw_tokens(prompt)
        for answer in range(num_answers):
            answer_ids = draw_tokens(completion)
            rollouts.append(Rollout(index, answer, 0, prompt_ids, answer_ids, "stop", rng.random(), 0.0))
    return rollouts


def score(folder: str, rollouts: list[Rollout]) -> list[Rollout]:
    """Return the rows with log-probabilities under the model, and with advantages."""
    training = TrainingConfig()
    policy = Policy(folder, policy_digest(Path(folder)))
    scored = score_rollouts(Trainer(Dtype.float32), policy, None, None, rollouts, training)
    return add_advantages(scored, OBJECTIVE)


class Stepper:
    """A policy of spin that takes optimizer steps in a given layout."""

    def __init__(self, folder: str, clock: Clock, layout: Layout, rows: list[Example]) -> None:
        """Load the model."""
        self._clock = clock
        self._rows = rows
        self._training = TrainingConfig(learning_rate=LEARNING_RATE, batch_size=len(rows), layout=layout)
        policy = Policy(folder, policy_digest(Path(folder)))
        self._trainer = Trainer(Dtype.float32)
        self._trainer.find_token_budget(policy)
        self._trainer.load(policy, self._training)
        optimizer = make_optimizer(self._trainer.model, self._training)
        self._model, self._optimizer = self._trainer.accelerator.prepare(self._trainer.scorer, optimizer)
        self._objective = make_objective(OBJECTIVE)

    def step(self) -> tuple[float, float]:
        """Take a step; returns its seconds and its loss."""
        batch = StepBatch(self._rows, self._objective)
        began = self._clock.now()
        metrics = self._trainer.step(self._model, self._optimizer, batch, self._training, check_start=False)
        return self._clock.now() - began, metrics["loss"]


def pad_rollouts(rollouts: list[Rollout]) -> dict[str, torch.Tensor]:
    """Return the rows as GRPOTrainer keeps them: prompts padded left, answers padded right."""
    prompt_length = max(len(row.prompt_ids) for row in rollouts)
    answer_length = max(len(row.completion_ids) for row in rollouts)
    count = len(rollouts)
    tensors = {
        "prompt_ids": torch.zeros(count, prompt_length, dtype=torch.long),
        "prompt_mask": torch.zeros(count, prompt_length, dtype=torch.long),
        "completion_ids": torch.zeros(count, answer_length, dtype=torch.long),
        "completion_mask": torch.zeros(count, answer_length, dtype=torch.long),
        "old_per_token_logps": torch.zeros(count, answer_length),
        "advantages": torch.tensor([row.advantages[0] for row in rollouts], dtype=torch.float32),
    }
    for index, row in enumerate(rollouts):
        first, end = prompt_length - len(row.prompt_ids), len(row.completion_ids)
        tensors["prompt_ids"][index, first:] = torch.tensor(row.prompt_ids)
        tensors["prompt_mask"][index, first:] = 1
        tensors["completion_ids"][index, :end] = torch.tensor(row.completion_ids)
        tensors["completion_mask"][index, :end] = 1
        tensors["old_per_token_logps"][index, :end] = torch.tensor(row.old_logps)
    tensors["num_items_in_batch"] = tensors["completion_mask"].sum()
    return tensors


def run_trl(
    folder: str, rollouts: list[Rollout], num_answers: int, rounds: int, before_step: Callable[[], None]
) -> list[tuple[float, float]]:
    """Let GRPOTrainer take steps; returns the seconds and the loss of each.

    `before_step` is called before each one and not timed.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock()
    rows = pad_rollouts(rollouts)
    losses: list[float] = []
    steps: list[tuple[float, float]] = []

    class GivenRows(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return dict(rows)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    class Timer(TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            losses.clear()
            before_step()
            self.began = clock.now()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append((clock.now() - self.began, sum(losses)))

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    num_prompts = len(rollouts) // num_answers
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            beta=0.0,
            loss_type="dapo",
            num_generations=num_answers,
            max_completion_length=rows["completion_ids"].shape[1],
            per_device_train_batch_size=num_answers,
            gradient_accumulation_steps=num_prompts,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_steps=rounds,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not clock.cuda,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = GivenRows(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "<s>"}] * num_prompts),
            processing_class=tokenizer,
            callbacks=[Timer()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return steps


def compare(folder: str, case: Case, num_answers: int, prompts: int, rounds: int) -> dict[str, float]:
    """Print the seconds of a step, the ratios, and the losses of the last step, for all three.

    Returns:
        How much longer each of the others takes, the median over the rounds, by its name.
    """
    rollouts = score(folder, make_rollouts(case, prompts, num_answers))
    rows = [from_rollout(row) for row in rollouts]
    clock = Clock()
    steppers = {layout.name: Stepper(folder, clock, layout, rows) for layout in (Layout.shared, Layout.packed)}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in steppers}

    def step_each() -> None:
        # All accelerators of a process share this state, and TRL has set it for its first pass.
        shared_state = GradientState()
        before = shared_state.sync_gradients
        shared_state._set_sync_gradients(True)
        for name, stepper in steppers.items():
            measured[name].append(stepper.step())
        shared_state._set_sync_gradients(before)

    measured["TRL"] = run_trl(folder, rollouts, num_answers, rounds + 1, step_each)

    # The first step warms up.
    texts = []
    for name, steps in measured.items():
        seconds = min(time for time, _ in steps[1:])
        texts.append(f"{name} {seconds:.2f} s (loss {steps[-1][1]:.6f})")
    print(f"n = {num_answers}, {prompts} prompts: {', '.join(texts)}")
    medians = {}
    for name in ("packed", "TRL"):
        ratios = []
        for (theirs, _), (ours, _) in zip(measured[name][1:], measured["shared"][1:], strict=True):
            ratios.append(theirs / ours)
        medians[name] = statistics.median(ratios)
        print(f"  {name} ÷ shared: {medians[name]:.2f}× ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return medians


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="m16")
    parser.add_argument("--ratio", choices=RATIOS, default="2:1")
    parser.add_argument("--answers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    case = Case("spin", args.ratio, "float32", args.size, "lognormal", (), None)
    with tempfile.TemporaryDirectory() as folder:
        save_model(case, folder)
        for num_answers in args.answers:
            compare(folder, case, num_answers, args.prompts, args.rounds)


if __name__ == "__main__":
    main()
