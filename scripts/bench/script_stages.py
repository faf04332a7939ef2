"""The stages of the script that `scripts/bench/whole_run.py` compares spin with, a process each.

    generate   vLLM answers the training prompts
    train      TRL's DPOTrainer trains on the pairs of ground truth and answer
    answer     vLLM answers the held-out prompts, greedily and by sampling
    score      transformers computes the NLL of the held-out ground truths

DPO's sigmoid loss is SPIN's: the reference is the policy before the stage. Rows are token ids
already. Settings are those with which each library is fast on a CPU: vLLM in one process, with one
thread, eager and without log-probabilities; TRL with a precomputed reference, a whole batch in one
pass and no checkpointing. Each stage prints the CPU seconds of its start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

BATCH = 32
"""Rows of a training step, and of a pass of `score`."""


def read_json(path: str) -> Any:
    """Return the content of a JSON file."""
    return json.loads(Path(path).read_text())


def report_start() -> None:
    """Print the CPU seconds of this process so far: imports and model, before the first row."""
    print(json.dumps({"start_cpu_seconds": time.process_time()}), flush=True)


def start_engine(settings: argparse.Namespace) -> Any:
    """Return vLLM with the policy."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    llm = LLM(
        settings.policy,
        dtype="float32",
        max_model_len=settings.max_length,
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        # vLLM's CPU engine crashes where chunked prefill splits a prompt whose request has a seed.
        enable_chunked_prefill=False,
        disable_log_stats=True,
    )
    report_start()
    return llm


def ask(llm: Any, rows: Rows, settings: argparse.Namespace, temperature: float, samples: int) -> list[list[list[int]]]:
    """Return the token ids of `samples` answers to each row."""
    from vllm import SamplingParams

    parameters = []
    for number in range(len(rows)):
        parameters.append(
            SamplingParams(
                n=samples,
                temperature=temperature,
                max_tokens=settings.max_tokens,
                stop_token_ids=settings.stop_ids,
                seed=1000 * settings.seed + number,
                detokenize=False,
            )
        )
    prompts = [{"prompt_token_ids": row["prompt_ids"]} for row in rows]
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return [[list(answer.token_ids) for answer in output.outputs] for output in outputs]


def generate(settings: argparse.Namespace) -> None:
    """Answer the training prompts."""
    llm = start_engine(settings)
    answers = ask(llm, read_json(settings.rows), settings, 1.0, 1)
    Path(settings.out).write_text(json.dumps([own for [own] in answers]))


def answer(settings: argparse.Namespace) -> None:
    """Answer the held-out prompts, and write the share of exact matches."""
    rows = read_json(settings.rows)
    llm = start_engine(settings)
    greedy = ask(llm, rows, settings, 0.0, 1)
    sampled = ask(llm, rows, settings, 1.0, settings.samples)
    found = {}
    for name, answers in (("greedy", greedy), ("sampled", sampled)):
        hits = 0
        for row, own in zip(rows, answers, strict=True):
            hits += sum(ids == row["completion_ids"] for ids in own)
        found[name] = hits / sum(len(own) for own in answers)
    Path(settings.out).write_text(json.dumps(found))


def train(settings: argparse.Namespace) -> None:
    """Train one epoch; pairs with equal halves are left out, as in spin."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # token ids already

    torch.set_num_threads(1)
    pairs = []
    for row, own in zip(read_json(settings.rows), read_json(settings.answers), strict=True):
        if own != row["completion_ids"]:
            pairs.append({"prompt_ids": row["prompt_ids"], "chosen_ids": row["completion_ids"], "rejected_ids": own})
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=settings.beta,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            num_train_epochs=1,
            max_length=None,
            per_device_train_batch_size=BATCH,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=settings.seed,
            report_to="none",
            save_strategy="no",
            logging_steps=10,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(settings.policy, dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(settings.policy),
        )
        report_start()
        trainer.train()
    trainer.save_model(settings.out)
    print(f"{len(pairs)} pairs, {trainer.state.global_step} steps")


def score(settings: argparse.Namespace) -> None:
    """Compute the NLL of the held-out ground truths, in nats per token."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    rows = read_json(settings.rows)
    model = AutoModelForCausalLM.from_pretrained(settings.policy, dtype=torch.float32)
    report_start()
    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            longest = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            labels = torch.full_like(ids, -100)
            mask = torch.zeros_like(ids)
            for index, row in enumerate(batch):
                prompt, end = len(row["prompt_ids"]), len(row["prompt_ids"]) + len(row["completion_ids"])
                ids[index, :end] = torch.tensor(row["prompt_ids"] + row["completion_ids"])
                labels[index, prompt:end] = ids[index, prompt:end]
                mask[index, :end] = 1
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="sum")
            total += float(losses)
            count += int((labels != -100).sum())
    Path(settings.out).write_text(json.dumps({"nll": total / count}))


STAGES = {"generate": generate, "train": train, "answer": answer, "score": score}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--rows", required=True, help="JSON file of prompt_ids and completion_ids")
    parser.add_argument("--answers", help="JSON file of the answers to train on")
    parser.add_argument("--out", required=True)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--stop-ids", type=int, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta", type=float, default=5.0)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    settings = parser.parse_args()
    STAGES[settings.stage](settings)


if __name__ == "__main__":
    main()
