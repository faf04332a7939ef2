"""Measure the training step of a reward model: rankings against separate pairs, and against TRL.

    python scripts/bench/reward.py                                   K = 4 and 9, and TRL at K = 2
    python scripts/bench/reward.py --size tiny --rounds 1            a smoke test

`ranking` takes one optimizer step over prompts with K answers each, all pairs of a prompt in it.
`separate` trains on the same pairs in K(K − 1)/2 steps of one pair a prompt, as a set of shuffled
comparisons does; of these steps, at most `--most-steps` are timed, and their mean stands for all.
TRL's RewardTrainer takes a step over pairs (K = 2), with its defaults and without gradient
checkpointing; `spin` takes a step over the same pairs after each of its steps.

All run in one process, in turn. Time is process CPU time on one thread (on CUDA wall clock), the
best of the rounds. Weights are random, in float32. The loss of the first and the last step is
printed, since spin and TRL must agree on it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.cases import LEARNING_RATE, RATIOS, SIZES, Case, Clock, save_model
from spin.config.reward_model import BradleyTerryObjective
from spin.config.training import Dtype, TrainingConfig
from spin.data.examples import Example, from_ranking
from spin.data.records import Ranking
from spin.models.packing import token_cost
from spin.models.policy import Policy, policy_digest
from spin.models.scalar_head import Head
from spin.objectives.objective import StepBatch
from spin.objectives.registry import make_objective
from spin.training.batches import group_by_prompt
from spin.training.optimizer import make_optimizer
from spin.training.trainer import Trainer

CENTER = 0.01
"""Weight of the centring term, the same for both."""


def make_rankings(case: Case, num_prompts: int, num_answers: int) -> list[Ranking]:
    """Return prompts with ranked answers; lengths are lognormal with σ = 0.5 around the mean."""
    rng = random.Random(f"{case.ratio} {case.vocab} {num_answers}")
    prompt, completion = RATIOS[case.ratio]

    def draw_tokens(mean: int) -> list[int]:
        count = min(4 * mean, max(8, round(mean * rng.lognormvariate(-0.125, 0.5))))
        return [rng.randrange(3, case.vocab) for _ in range(count)]

    rankings = []
    for index in range(num_prompts):
        answers = [draw_tokens(completion) for _ in range(num_answers)]
        ranks = [float(place) for place in range(num_answers)]
        rankings.append(Ranking(index, draw_tokens(prompt), answers, ranks, 1.0, 0.0, None))
    return rankings


def split_pairs(rankings: list[Ranking]) -> list[list[Ranking]]:
    """Return the pairs of rankings as steps of one pair a prompt."""
    num_answers = len(rankings[0].completions)
    steps = []
    for better, worse in combinations(range(num_answers), 2):
        step = []
        for row in rankings:
            answers = [row.completions[better], row.completions[worse]]
            step.append(Ranking(row.ranking_id, row.prompt_ids, answers, [0.0, 1.0], 1.0, 0.0, None))
        steps.append(step)
    return steps


class RewardStepper:
    """A reward model of spin that takes optimizer steps."""

    def __init__(self, folder: str, clock: Clock, rows: list[Example]) -> None:
        """Load the model with a head of zeros, and choose the layout on some rows."""
        self._clock = clock
        self._training = TrainingConfig(learning_rate=LEARNING_RATE, batch_size=len(rows))
        policy = Policy(folder, policy_digest(Path(folder)))
        self._trainer = Trainer(Dtype.float32)
        self._trainer.find_token_budget(policy)
        self._trainer.load(policy, self._training, Head.scalar)
        self._trainer.choose_layout(self._training, group_by_prompt(rows)[0], Head.scalar)
        assert self._trainer.note is None, self._trainer.note
        optimizer = make_optimizer(self._trainer.model, self._training)
        self._model, self._optimizer = self._trainer.accelerator.prepare(self._trainer.scorer, optimizer)
        self._objective = make_objective(BradleyTerryObjective(center_coefficient=CENTER))

    def step(self, rankings: list[Ranking]) -> tuple[float, float]:
        """Take a step; returns its seconds and its loss."""
        batch = StepBatch([from_ranking(row) for row in rankings], self._objective)
        began = self._clock.now()
        metrics = self._trainer.step(self._model, self._optimizer, batch, self._training, check_start=False)
        return self._clock.now() - began, metrics["loss"]


def count_computed(rankings: list[Ranking]) -> int:
    """Return the tokens that the shared layout computes."""
    groups, _ = group_by_prompt([from_ranking(row) for row in rankings])
    return sum(token_cost(group, "shared") for group in groups)


def compare_rankings(folder: str, case: Case, num_answers: int, args: argparse.Namespace) -> None:
    """Print tokens and seconds of a ranking step, and of the same pairs one by one."""
    rankings = make_rankings(case, args.prompts, num_answers)
    steps = split_pairs(rankings)
    # Steps of the separate pairs are chosen evenly, since all of them cost about the same.
    stride = max(1, len(steps) // args.most_steps)
    timed = steps[::stride]
    clock = Clock()
    stepper = RewardStepper(folder, clock, [from_ranking(row) for row in rankings])
    # The first step warms up: caches, and the optimizer's moments.
    stepper.step(rankings)
    together: list[float] = []
    apart: list[float] = []
    for _ in range(args.rounds):
        together.append(stepper.step(rankings)[0])
        seconds = [stepper.step(step)[0] for step in timed]
        apart.append(sum(seconds) / len(seconds) * len(steps))
    tokens = count_computed(rankings)
    separate_tokens = sum(count_computed(step) for step in steps)
    print(
        f"K = {num_answers}, {args.prompts} prompts: ranking {tokens:,} tokens {min(together):.2f} s; "
        f"{len(steps)} separate pairs {separate_tokens:,} tokens {min(apart):.2f} s; "
        f"{separate_tokens / tokens:.2f}× the tokens, {min(apart) / min(together):.2f}× the time",
        flush=True,
    )


def compare_trl(folder: str, case: Case, checkpointing: bool, args: argparse.Namespace) -> None:
    """Print seconds and losses of steps of RewardTrainer and of spin over the same pairs."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import (
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        PrinterCallback,
        TrainerCallback,
    )
    from trl import RewardConfig, RewardTrainer

    clock = Clock()
    rankings = make_rankings(case, args.pairs, 2)
    stepper = RewardStepper(folder, clock, [from_ranking(row) for row in rankings])
    ours: list[tuple[float, float]] = []
    theirs: list[float] = []
    losses: list[float] = []

    class Recorder(RewardTrainer):
        def _prepare_dataset(self, dataset: Any, *arguments: Any, **settings: Any) -> Any:
            return dataset  # token ids already

        # Keep the loss: the trainer logs it rounded.
        def compute_loss(self, *arguments: Any, **settings: Any) -> Any:
            loss = super().compute_loss(*arguments, **settings)
            losses.append(float(loss.detach()))
            return loss

    # A step of spin follows each step of TRL, so that both meet the same load of the machine.
    class Hold(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *arguments: Any, **settings: Any) -> None:
            self.began = clock.now()

        def on_step_end(self, *arguments: Any, **settings: Any) -> None:
            theirs.append(clock.now() - self.began)
            ours.append(stepper.step(rankings))

    raw = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")
    # A head of zeros, as spin's.
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.score.weight.data.zero_()
    rows = []
    for row in rankings:
        chosen, rejected = ([*row.prompt_ids, *ids] for ids in row.completions)
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
    with tempfile.TemporaryDirectory() as out:
        config = RewardConfig(
            output_dir=out,
            center_rewards_coefficient=CENTER,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_steps=args.rounds + 1,
            max_length=None,
            per_device_train_batch_size=args.pairs,
            gradient_checkpointing=checkpointing,
            bf16=False,
            use_cpu=not clock.cuda,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Recorder(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Hold()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # The first step warms up.
    best, best_theirs = min(seconds for seconds, _ in ours[1:]), min(theirs[1:])
    name = "defaults" if checkpointing else "no checkpointing"
    print(
        f"K = 2, {args.pairs} pairs, TRL with {name}: {best_theirs:.2f} s, spin {best:.2f} s, "
        f"{best_theirs / best:.2f}×; loss TRL {losses[0]:.6f} → {losses[-1]:.6f}, "
        f"spin {ours[0][1]:.6f} → {ours[-1][1]:.6f}",
        flush=True,
    )


def main() -> None:
    """Measure all cases and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratio", choices=RATIOS, default="1:1", help="prompt to completion, in tokens")
    parser.add_argument("--size", choices=SIZES, default="m16", help="m16 has about 16 million weights")
    parser.add_argument("--answers", nargs="+", type=int, default=[4, 9], help="K of the rankings")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a step of TRL")
    parser.add_argument("--rounds", type=int, default=2, help="timed steps; the best counts")
    parser.add_argument("--most-steps", type=int, default=6, help="steps of separate pairs that are timed")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    case = Case("spin", args.ratio, "float32", args.size, "lognormal", (0,), None)
    with tempfile.TemporaryDirectory() as folder:
        save_model(case, folder)
        for num_answers in args.answers:
            compare_rankings(folder, case, num_answers, args)
        for checkpointing in (True, False):
            compare_trl(folder, case, checkpointing, args)


if __name__ == "__main__":
    main()
