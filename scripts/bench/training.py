"""The training step against TRL's DPOTrainer: the same model, pairs, batch size and precision, interleaved step by step.

    python scripts/bench/training.py                     the table: 3 ratios of prompt to completion × 2 precisions × 4 systems
    python scripts/bench/training.py --levers            one lever at a time
    python scripts/bench/training.py --size tiny --seeds 0 --steps 1       a smoke test of a minute

Every system runs in a process of its own (its peak memory is that of the whole process) and does one optimizer step of 8 pairs at a time, in turn
with the others; step k is on draw k of the lengths (`--seeds`), round and round. Time is process CPU time on one thread, the best step of each draw;
on CUDA it is the wall clock of a synchronised step. Tokens are those of prompt and completion of both halves, without padding. `one epoch` counts
one reference pass in for each step. `of peak` is the utilisation: the operations that a step needs, over its time, over the rate of a large product
measured in the same process.

    spin          Trainer.score and Trainer's own step, as a run calls them; the token budget is found as a run finds it
    trl_*         three configurations of DPOTrainer, described in trl_trainer.py; trl_fair is the fair mark

What it leaves out: reading of files (TRL's step includes its collator), several devices. Weights are random: speed does not depend on them.

torch.compile: of the layers' forward and backward functions (attention left out, dynamic shapes, m16, 2:1, torch 2.13 on a CPU) it gave 0.88–0.96× of the
reference pass's speed and 0.98–1.00× of the step's in float32, 1.02× and 1.06× in bfloat16, for 90–116 CPU seconds of compiling that new lengths ask
for again: it does not pay, and there is no option for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.cases import (
    BETA,
    LEARNING_RATE,
    LENGTHS,
    PAIRS,
    RATIOS,
    SIZES,
    Case,
    Clock,
    count_tokens,
    make_pairs,
    needed_flops,
    save_model,
)
from scripts.bench.trl_trainer import trl_worker

SYSTEMS = ("spin", "trl_default", "trl_best", "trl_fair")
LEVERS = {
    "padded, model's own logits": {"layout": "padded"},
    "packed, fused head": {"layout": "packed", "fast": False},
    "shared prompt, fused head": {"layout": "shared", "fast": False},
    "… and the hand-written layers": {"layout": "shared", "trim": False},
    "… and the last layer trimmed": {"layout": "shared"},
}
ROW = (
    "system",
    "prompt_to_completion",
    "dtype",
    "vocab_size",
    "tokens_per_second",
    "cpu_seconds",
    "peak_memory_bytes",
    "loss",
)
"""What `--json` writes of each system; `cpu_seconds` are those of the reference pass and the step of one draw, on average."""


def spin_worker(case: Case, pipe: Any) -> None:
    """Scores a draw's reference at ("reference", draw), trains one step at ("step", draw), until ("end",); answers (seconds, loss)."""
    import spin.models.forward
    from spin.config.objective import SpinObjective
    from spin.config.training import Dtype, Layout, TrainingConfig
    from spin.data.records import Completion, Example
    from spin.models.kernels.decoder import FastDecoder
    from spin.models.packing import Group
    from spin.models.policy import Policy, policy_digest
    from spin.objectives.objective import Objective, StepBatch
    from spin.training.optimizer import make_optimizer
    from spin.training.trainer import Trainer

    clock, lever = Clock(), LEVERS.get(case.lever, {})
    if not lever.get("fast", True):
        spin.models.forward.supports = lambda model: False
    FastDecoder.trim = bool(lever.get("trim", True))
    layout = Layout[str(lever.get("layout", "auto"))]
    training = TrainingConfig(
        learning_rate=LEARNING_RATE, batch_size=PAIRS, micro_batch_tokens=case.token_budget, layout=layout
    )
    policy = Policy(case.model, policy_digest(Path(case.model)))
    trainer = Trainer(Dtype(case.dtype))
    trainer.find_token_budget(policy)
    draws = [
        [
            Example(f"pair {i}", x, (Completion(y, True), Completion(z, False)))
            for i, (x, y, z) in enumerate(make_pairs(case, seed))
        ]
        for seed in case.seeds
    ]
    groups = [[Group(row.prompt_ids, [half.ids for half in row.completions]) for row in rows] for rows in draws]
    trainer.score(policy, groups[0][:2], training)  # loads the model and settles the layout
    assert trainer.note is None, trainer.note
    pipe.send("ready")
    while (command := pipe.recv())[0] == "reference":
        draw, began = command[1], clock.now()
        scores = trainer.score(policy, groups[draw], training)
        pipe.send((clock.now() - began, 0.0))
        draws[draw] = [row.with_reference(logps) for row, logps in zip(draws[draw], scores, strict=True)]
    model, optimizer = trainer.accelerator.prepare(trainer.scorer, make_optimizer(trainer.model, training))
    criterion, first = Objective(SpinObjective(beta=BETA)), True
    while command[0] != "end":
        began = clock.now()
        metrics = trainer._step(model, optimizer, StepBatch(draws[command[1]], criterion), training, check_start=first)
        pipe.send((clock.now() - began, metrics["loss"]))
        command, first = pipe.recv(), False
    pipe.send((clock.peak_bytes(), clock.matmul_rate(case.dtype)))


def worker(case: Case, pipe: Any) -> None:
    (spin_worker if case.system == "spin" else trl_worker)(case, pipe)


def measure(cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    """Run `cases` side by side, a step of each in turn: one to warm up, then `rounds` of each draw."""
    os.environ |= {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    context = get_context("spawn")
    draws = len(cases[0].seeds)
    with tempfile.TemporaryDirectory() as folder:
        save_model(cases[0], folder)
        runs = []
        for case in cases:
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(replace(case, model=folder), theirs), daemon=True)
            process.start()
            theirs.close()
            assert ours.recv() == "ready"
            runs.append((case, ours, process))

        def ask(pipe: Any, *command: Any) -> Any:
            pipe.send(command)
            return pipe.recv()

        references: dict[tuple[Case, int], list[float]] = defaultdict(list)
        steps: dict[tuple[Case, int], list[float]] = defaultdict(list)
        losses: dict[Case, list[float]] = defaultdict(list)
        for index in range(2 * draws):
            for case, pipe, _ in runs:
                references[case, index % draws].append(ask(pipe, "reference", index % draws)[0])
        for index in range(rounds * draws + 1):
            for case, pipe, _ in runs:
                seconds, loss = ask(pipe, "step", index % draws)
                losses[case].append(loss)
                if index:
                    steps[case, index % draws].append(seconds)
        rows = []
        for case, pipe, process in runs:
            peak, rate = ask(pipe, "end")
            process.join()
            pairs = [make_pairs(case, seed) for seed in case.seeds]
            step = [min(steps[case, draw]) for draw in range(draws)]
            epoch = [min(references[case, draw]) + step[draw] for draw in range(draws)]
            tokens = sum(map(count_tokens, pairs))
            rows.append(
                {"system": case.system, "prompt_to_completion": case.ratio, "dtype": case.dtype, "vocab_size": case.vocab, "tokens_per_second": tokens / sum(epoch),
                 "cpu_seconds": sum(epoch) / draws, "peak_memory_bytes": peak, "loss": losses[case][-1], "case": case, "epoch": epoch,
                 "steps_alone": tokens / sum(step), "utilisation": sum(needed_flops(case, draw) for draw in pairs) / sum(step) / rate}
            )  # fmt: skip
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table of one ratio and precision."""
    ours, case = rows[0], rows[0]["case"]
    print(
        f"\nprompt:completion {case.ratio}, {case.lengths} lengths, {case.dtype}, {case.size}, {len(case.seeds)} draws"
    )
    print(
        f"{'':32}{'tokens/s':>9}{'one epoch':>10}{'spin is':>9}{'draws':>12}{'peak MiB':>9}{'of it':>7}{'of peak':>9}  last loss"
    )
    for row in rows:
        ratio, memory = (
            ours["tokens_per_second"] / row["tokens_per_second"],
            ours["peak_memory_bytes"] / row["peak_memory_bytes"],
        )
        by_draw = [theirs / own for theirs, own in zip(row["epoch"], ours["epoch"], strict=True)]
        speeds = f"{row['steps_alone']:9.0f}{row['tokens_per_second']:10.0f}{ratio:8.2f}×{f'{min(by_draw):.2f}–{max(by_draw):.2f}':>12}"
        memories = f"{row['peak_memory_bytes'] / 2**20:9.0f}{memory:7.2f}"
        print(
            f"{row['case'].lever or row['system']:32}{speeds}{memories}{row['utilisation']:9.0%}  {row['loss']:.6f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ratios", nargs="+", choices=RATIOS, default=list(RATIOS), help="prompt to completion, in tokens"
    )
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=SYSTEMS,
        default=list(SYSTEMS),
        help="the first one is what the others are compared with",
    )
    parser.add_argument("--size", choices=SIZES, default="m16", help="of the model: m16 has 16 million weights or so")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=["lognormal"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a draw of lengths for each")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each draw; the best counts")
    parser.add_argument("--token-budget", type=int, help="tokens of spin's micro-batches; left out: found, as in a run")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--levers", action="store_true", help="spin alone, from the plain padded way to all that it does"
    )
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for dtype in args.dtypes:
        for lengths in args.lengths:
            for ratio in args.ratios:
                base = Case("spin", ratio, dtype, args.size, lengths, tuple(args.seeds), args.token_budget)
                cases = (
                    [replace(base, lever=name) for name in reversed(LEVERS)]
                    if args.levers
                    else [replace(base, system=system) for system in args.systems]
                )
                table = measure(cases, args.steps)
                print_rows(table)
                rows += table
                if args.json:
                    args.json.write_text(json.dumps([{key: row[key] for key in ROW} for row in rows], indent=1))


if __name__ == "__main__":
    main()
