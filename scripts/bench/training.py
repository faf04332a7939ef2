"""Measure the training step against TRL's DPOTrainer, interleaved step by step.

    python scripts/bench/training.py                                  the whole table
    python scripts/bench/training.py --levers                         one optimisation at a time
    python scripts/bench/training.py --adapter-rank 16                LoRA on all linear layers
    python scripts/bench/training.py --size tiny --seeds 0 --steps 1  a smoke test of a minute

The whole table has 3 ratios of prompt to completion, 2 precisions and 4 systems. Model, pairs,
batch size and precision are the same for all systems:

    spin     Trainer.score and the step of Trainer, with the token budget that a run would find
    trl_*    three configurations of DPOTrainer, see trl_trainer.py; trl_fair is the fair comparison

Every system runs in a process of its own, so peak memory is that of the process. It does one
optimizer step of 8 pairs at a time, in turn with the others. The steps take the draws of lengths
(`--seeds`) in turn. Time is process CPU time on one thread, the best step of each draw; on CUDA it
is the wall clock of a synchronised step. Tokens are those of prompt and completion of both halves,
without padding. `one epoch` adds one reference pass to each step. `of peak` is the utilisation: the
operations that a step needs, divided by its time and by the rate of a large matrix product in the
same process.

Not measured: reading of files (TRL's step includes its collator), several devices. Weights are
random, because speed does not depend on them. Results are in docs/performance.md.
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
"""Columns of `--json`. `cpu_seconds` is the mean over draws of reference pass and step."""


def spin_worker(case: Case, pipe: Any) -> None:
    """Score at ("reference", draw) and train at ("step", draw), until ("end",).

    Sends (seconds, loss) for each command.
    """
    import spin.models.forward
    from spin.config.adapter import AdapterConfig, AdapterMethod
    from spin.config.objective import SpinObjective
    from spin.config.training import Dtype, Layout, TrainingConfig
    from spin.data.examples import Completion, Example
    from spin.models.kernels.decoder import FastDecoder
    from spin.models.packing import Group
    from spin.models.policy import Policy, policy_digest
    from spin.objectives.objective import StepBatch
    from spin.objectives.registry import make_objective
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
    adapter = AdapterConfig()
    if case.adapter_rank:
        adapter = AdapterConfig(AdapterMethod.lora, case.adapter_rank, 2.0 * case.adapter_rank)
    trainer = Trainer(Dtype(case.dtype), adapter=adapter)
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
    objective, first = make_objective(SpinObjective(beta=BETA)), True
    while command[0] != "end":
        began = clock.now()
        metrics = trainer.step(model, optimizer, StepBatch(draws[command[1]], objective), training, check_start=first)
        pipe.send((clock.now() - began, metrics["loss"]))
        command, first = pipe.recv(), False
    pipe.send((clock.peak_bytes(), clock.matmul_rate(case.dtype)))


def worker(case: Case, pipe: Any) -> None:
    """Measure one system."""
    if case.system == "spin":
        spin_worker(case, pipe)
    else:
        trl_worker(case, pipe)


def measure(cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    """Run `cases` side by side, a step of each in turn.

    One step warms up, then each draw has `rounds` steps.
    """
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
            flops = sum(needed_flops(case, draw) for draw in pairs)
            rows.append(
                {
                    "system": case.system,
                    "prompt_to_completion": case.ratio,
                    "dtype": case.dtype,
                    "vocab_size": case.vocab,
                    "tokens_per_second": tokens / sum(epoch),
                    "cpu_seconds": sum(epoch) / draws,
                    "peak_memory_bytes": peak,
                    "loss": losses[case][-1],
                    "case": case,
                    "epoch": epoch,
                    "steps_alone": tokens / sum(step),
                    "utilisation": flops / sum(step) / rate,
                }
            )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the table of one ratio and precision."""
    ours, case = rows[0], rows[0]["case"]
    print(
        f"\nprompt:completion {case.ratio}, {case.lengths} lengths, {case.dtype}, {case.size}, {len(case.seeds)} draws"
    )
    speed_titles = f"{'tokens/s':>9}{'one epoch':>10}{'spin is':>9}{'draws':>12}"
    print(f"{'':32}{speed_titles}{'peak MiB':>9}{'of it':>7}{'of peak':>9}  last loss")
    for row in rows:
        ratio = ours["tokens_per_second"] / row["tokens_per_second"]
        memory = ours["peak_memory_bytes"] / row["peak_memory_bytes"]
        by_draw = [theirs / own for theirs, own in zip(row["epoch"], ours["epoch"], strict=True)]
        span = f"{min(by_draw):.2f}–{max(by_draw):.2f}"
        speeds = f"{row['steps_alone']:9.0f}{row['tokens_per_second']:10.0f}{ratio:8.2f}×{span:>12}"
        memories = f"{row['peak_memory_bytes'] / 2**20:9.0f}{memory:7.2f}"
        print(
            f"{row['case'].lever or row['system']:32}{speeds}{memories}{row['utilisation']:9.0%}  {row['loss']:.6f}",
            flush=True,
        )


def main() -> None:
    """Measure all cases, print their tables and write their rows."""
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
        help="the others are compared with the first",
    )
    parser.add_argument(
        "--size", choices=SIZES, default="m16", help="size of the model: m16 has about 16 million weights"
    )
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=["lognormal"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one draw of lengths per seed")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each draw; the best counts")
    parser.add_argument("--token-budget", type=int, help="tokens of spin's micro-batches; default: found as in a run")
    parser.add_argument("--adapter-rank", type=int, default=0, help="train LoRA adapters of this rank instead")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--levers", action="store_true", help="spin alone, from the plain padded computation to all optimisations"
    )
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for dtype in args.dtypes:
        for lengths in args.lengths:
            for ratio in args.ratios:
                base = Case("spin", ratio, dtype, args.size, lengths, tuple(args.seeds), args.token_budget)
                base = replace(base, adapter_rank=args.adapter_rank)
                if args.levers:
                    cases = [replace(base, lever=name) for name in reversed(LEVERS)]
                else:
                    cases = [replace(base, system=system) for system in args.systems]
                table = measure(cases, args.steps)
                print_rows(table)
                rows += table
                if args.json:
                    args.json.write_text(json.dumps([{key: row[key] for key in ROW} for row in rows], indent=1))


if __name__ == "__main__":
    main()
