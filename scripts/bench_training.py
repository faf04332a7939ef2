"""The training step against TRL's DPOTrainer: the same model, pairs, batch size and precision, interleaved step by step.

    python scripts/bench_training.py                     the table: 3 ratios of prompt to completion × 2 precisions × 4 systems
    python scripts/bench_training.py --levers            one lever at a time
    python scripts/bench_training.py --sweep             memory and time of the head against vocabulary and sequence length
    python scripts/bench_training.py --quick             a smoke test of a minute

Every system runs in a process of its own (its peak memory is that of the whole process) and does one optimizer step of 8 pairs at a time, in turn
with the others. Time is process CPU time on one thread, the best step; on CUDA it is the wall clock of a synchronised step. Tokens are those of
prompt and completion of both halves, without padding. `one epoch` counts one reference pass in for each step. `of peak` is the utilisation: the
operations that a step needs, over its time, over the rate of a large product measured in the same process.

    spin          spin.forward.GroupLogps, spin.objectives, AdamW
    trl_default   DPOTrainer as it comes: reference model in memory, gradient checkpointing, 8 pairs at a time
    trl_best      reference log-probabilities precomputed, no checkpointing, 1 pair at a time
    trl_fair      trl_best, patched to score completion positions only, as it does by itself on CUDA

What it leaves out: data loading (TRL's step includes its collator), several devices. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
SYSTEMS = ("spin", "trl_default", "trl_best", "trl_fair")
RATIOS = {"2:1": (256, 128), "1:1": (192, 192), "1:4": (77, 307)}
"""Mean tokens of prompt and completion."""
LEVERS = {
    "padded, model's own logits": {"layout": "padded"},
    "packed, fused head": {"layout": "packed", "fast": False},
    "shared prompt, fused head": {"layout": "shared", "fast": False},
    "… and the hand-written layers": {"layout": "shared", "trim": False},
    "… and the last layer trimmed": {"layout": "shared"},
}
PAIRS, BETA, LEARNING_RATE = 8, 0.1, 1e-5


@dataclass(frozen=True)
class Case:
    """What one process does."""

    system: str
    ratio: str
    dtype: str
    layers: int
    hidden: int
    vocab: int
    token_budget: int
    model: str = ""
    options: tuple[tuple[str, Any], ...] = ()


def make_pairs(case: Case) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, real and generated ids; lengths lognormal with σ = 0.5 around the mean, as those of instruction data are, at most 4 times it."""
    import random

    rng = random.Random(f"{case.ratio} {case.vocab}")
    prompt, completion = RATIOS[case.ratio]

    def tokens(mean: int) -> list[int]:
        return [rng.randrange(3, case.vocab) for _ in range(min(4 * mean, max(8, round(mean * rng.lognormvariate(-0.125, 0.5)))))]

    return [(tokens(prompt), tokens(completion), tokens(completion)) for _ in range(PAIRS)]


def save_model(case: Case, folder: str) -> None:
    """A random Llama: m16 is 4 layers of width 512."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = case.hidden // 64
    config = LlamaConfig(
        vocab_size=case.vocab, hidden_size=case.hidden, intermediate_size=round(case.hidden * 2.6875), num_hidden_layers=case.layers,
        num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


class Clock:
    """Seconds of process CPU time; on CUDA of wall clock, synchronised."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda.is_available()
        if not self.cuda:
            torch.set_num_threads(1)

    def now(self) -> float:
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def peak_bytes(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() if self.cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def matmul_rate(self, dtype: str) -> float:
        """Floating-point operations a second of a large square product: what utilisation is measured against."""
        import torch

        size, best = 8192 if self.cuda else 1536, float("inf")
        a = torch.randn(size, size, dtype=getattr(torch, dtype), device="cuda" if self.cuda else "cpu")
        for _ in range(5):
            began = self.now()
            a @ a
            best = min(best, self.now() - began)
        return 2 * size**3 / best


def needed_flops(case: Case) -> float:
    """Of one step: 6 for each weight and token, each prompt counted once, the head at completion tokens only; attention scores left out."""
    inner = round(case.hidden * 2.6875)
    layers = case.layers * (4 * case.hidden**2 + 3 * case.hidden * inner)
    pairs = make_pairs(case)
    completions = sum(len(real) + len(generated) for _, real, generated in pairs)
    return 6.0 * (layers * (completions + sum(len(prompt) for prompt, _, _ in pairs)) + case.hidden * case.vocab * completions)


def spin_worker(case: Case, pipe: Any) -> None:
    """Scores the reference at "reference", trains one step at "step"; answers (seconds, loss)."""
    import torch
    from transformers import AutoModelForCausalLM

    from spin.forward import GroupLogps, keep_freed_memory
    from spin.groups import Dtype
    from spin.objectives import PairLogps, spin
    from spin.packing import Group, micro_batches

    clock = Clock()
    keep_freed_memory()
    options = dict(case.options)
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32).eval().to("cuda" if clock.cuda else "cpu")
    net = GroupLogps(model, Dtype(case.dtype), options.get("layout", "auto"))
    if not options.get("fast", True):
        net.fast = None
    if net.fast is not None:
        net.fast.trim = options.get("trim", True)
    groups = [Group(prompt, [real, generated]) for prompt, real, generated in make_pairs(case)]
    note = net.choose(groups[:2])
    assert note is None, note
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    reference = torch.zeros(PAIRS, 2, dtype=torch.float64, device=model.device)
    pipe.send("ready")
    while (command := pipe.recv()) != "end":
        began, loss = clock.now(), 0.0
        if command == "reference":
            with torch.no_grad():
                for batch in micro_batches(groups, 2 * case.token_budget, net.layout):
                    reference[batch] = net([groups[i] for i in batch]).view(-1, 2)
        else:
            for batch in micro_batches(groups, case.token_budget, net.layout):
                policy = net([groups[i] for i in batch]).view(-1, 2)
                lengths = policy.new_tensor([[len(completion) for completion in groups[i].completions] for i in batch])
                logps = PairLogps(policy[:, 0], policy[:, 1], reference[batch, 0], reference[batch, 1], lengths[:, 0], lengths[:, 1])
                losses = spin(logps, beta=BETA, link="logistic")
                (losses.sum() / PAIRS).backward()
                loss += float(losses.detach().sum()) / PAIRS
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        pipe.send((clock.now() - began, loss))
    pipe.send((clock.peak_bytes(), clock.matmul_rate(case.dtype)))


def trl_worker(case: Case, pipe: Any) -> None:
    """DPOTrainer.train itself, held up at the end of every step until the next command."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import utils

    clock = Clock()
    best = case.system != "trl_default"
    if case.system == "trl_fair":
        utils._use_triton = lambda device: True  # read where positions are chosen only: the kernel asks elsewhere
    losses: list[float] = []

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # token ids already

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    class Hold(TrainerCallback):
        began = 0.0

        def wait(self, control: Any) -> None:
            while (command := pipe.recv()) == "reference":
                began = clock.now()
                if best:
                    for row in rows:
                        batch = trainer.data_collator([row])
                        trainer.compute_ref_log_probs(trainer.model, {name: value.to(trainer.model.device) for name, value in batch.items()})
                pipe.send((clock.now() - began, 0.0))
            control.should_training_stop = command == "end"
            losses.clear()
            self.began = clock.now()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pipe.send("ready")
            self.wait(control)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pipe.send((clock.now() - self.began, sum(losses) / len(losses)))
            self.wait(control)

    pairs = make_pairs(case)
    rows = [{"prompt_ids": prompt, "chosen_ids": real, "rejected_ids": generated} for prompt, real, generated in pairs]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, "<pad>")), pad_token="<pad>", eos_token="</s>")
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, beta=BETA, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.0, max_steps=10**6, max_length=None,
            per_device_train_batch_size=1 if best else PAIRS, gradient_accumulation_steps=PAIRS if best else 1, precompute_ref_log_probs=best,
            gradient_checkpointing=not best, bf16=case.dtype == "bfloat16", use_cpu=not clock.cuda, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Hold()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    pipe.send((clock.peak_bytes(), clock.matmul_rate(case.dtype)))


def worker(case: Case, pipe: Any) -> None:
    (spin_worker if case.system == "spin" else trl_worker)(case, pipe)


def measure(cases: list[Case], steps: int) -> list[dict[str, Any]]:
    """Run `cases` side by side, a step of each in turn."""
    os.environ |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    context = get_context("spawn")
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

        def ask(pipe: Any, command: str) -> Any:
            pipe.send(command)
            return pipe.recv()

        seconds = {case: ([], []) for case in cases}  # of reference passes and of steps
        losses: dict[Case, list[float]] = {case: [] for case in cases}
        for _ in range(2):
            for case, pipe, _ in runs:
                seconds[case][0].append(ask(pipe, "reference")[0])
        for round_ in range(steps + 1):  # the first is for warming up
            for case, pipe, _ in runs:
                step, loss = ask(pipe, "step")
                losses[case].append(loss)
                if round_:
                    seconds[case][1].append(step)
        rows = []
        for case, pipe, process in runs:
            peak, rate = ask(pipe, "end")
            process.join()
            tokens = sum(2 * len(prompt) + len(real) + len(generated) for prompt, real, generated in make_pairs(case))
            reference, step = min(seconds[case][0]), min(seconds[case][1])
            rows.append(
                {"system": case.system, "prompt_to_completion": case.ratio, "dtype": case.dtype, "vocab_size": case.vocab, "layers": case.layers,
                 "tokens_per_second": tokens / (reference + step), "tokens_per_second_steps_alone": tokens / step, "cpu_seconds": reference + step,
                 "utilisation": needed_flops(case) / step / rate, "peak_memory_bytes": peak, "loss": losses[case][2], "options": dict(case.options)}
            )  # fmt: skip
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table of one ratio and precision."""
    ours = rows[0]
    print(f"\nprompt:completion {ours['prompt_to_completion']}, {ours['dtype']}, {ours['layers']} layers, vocabulary {ours['vocab_size']}")
    print(f"{'':32}{'tokens/s':>9}{'one epoch':>10}{'spin is':>9}{'peak MiB':>9}{'of it':>7}{'of peak':>9}  loss of step 3")
    for row in rows:
        ratio, memory = ours["tokens_per_second"] / row["tokens_per_second"], ours["peak_memory_bytes"] / row["peak_memory_bytes"]
        name = row.get("lever", row["system"])
        speeds = f"{row['tokens_per_second_steps_alone']:9.0f}{row['tokens_per_second']:10.0f}{ratio:8.2f}×"
        print(f"{name:32}{speeds}{row['peak_memory_bytes'] / 2**20:9.0f}{memory:7.2f}{row['utilisation']:9.0%}  {row['loss']:.6f}", flush=True)


def sweep() -> None:
    """Extra peak memory (MiB, beyond weight and gradient) and CPU seconds of the head alone, forward and backward."""
    context = get_context("spawn")
    print(f"{'vocab':>8}{'tokens':>8}{'fused MiB':>11}{'fused s':>9}{'plain MiB':>11}{'plain s':>9}")
    for vocab, tokens in [(v, 1024) for v in (8192, 32768, 131072, 262144)] + [(32768, t) for t in (512, 1024, 2048, 4096)]:
        cells = []
        for fused in (True, False):
            ours, theirs = context.Pipe()
            process = context.Process(target=head_worker, args=(vocab, tokens, fused, theirs), daemon=True)
            process.start()
            cells += ours.recv()
            process.join()
        print(f"{vocab:8}{tokens:8}{cells[0]:11.0f}{cells[1]:9.2f}{cells[2]:11.0f}{cells[3]:9.2f}", flush=True)


def head_worker(vocab: int, tokens: int, fused: bool, pipe: Any) -> None:
    """`fused`: head_logps; otherwise log_softmax over all logits."""
    import torch

    from spin.logps import head_logps

    clock = Clock()
    device = "cuda" if clock.cuda else "cpu"
    weight = torch.randn(vocab, 256, device=device, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    hidden = torch.randn(tokens, 256, device=device, requires_grad=True)
    labels, owners = torch.randint(vocab, (tokens,), device=device), torch.zeros(tokens, dtype=torch.long, device=device)
    before, began = clock.peak_bytes(), clock.now()
    logps = head_logps(hidden, weight, labels, owners, 1) if fused else torch.log_softmax(hidden @ weight.t(), -1).gather(1, labels.unsqueeze(1)).double()
    logps.sum().backward()
    seconds = clock.now() - began
    pipe.send(((clock.peak_bytes() - before) / 2**20 - vocab * 256 * 4 / 2**20, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratios", nargs="+", choices=RATIOS, default=list(RATIOS))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--model", choices=["m16", "m32"], default="m16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--token-budget", type=int, default=1024, help="tokens of spin's micro-batches")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--levers", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.sweep:
        return sweep()
    layers, hidden, vocab = {"m16": (4, 512, 8192), "m32": (8, 512, 16384)}[args.model]
    if args.quick:
        layers, hidden, vocab, args.steps, args.ratios = 2, 128, 1024, 2, args.ratios[:1]
    rows: list[dict[str, Any]] = []
    for dtype in args.dtypes:
        for ratio in args.ratios:
            base = Case("spin", ratio, dtype, layers, hidden, vocab, args.token_budget)
            if args.levers:
                table = measure([replace(base, options=tuple(options.items())) for options in reversed(LEVERS.values())], args.steps)
                table = [row | {"lever": name} for row, name in zip(table, reversed(LEVERS), strict=True)]
            else:
                table = measure([replace(base, system=system) for system in args.systems], args.steps)
            print_rows(table)
            rows += table
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
