"""Run TRL's DPOTrainer for `scripts/bench/training.py`, in one of three configurations.

trl_default   the defaults: reference model in memory, gradient checkpointing, 8 pairs at a time
trl_best      reference log-probabilities precomputed, no checkpointing, 1 pair at a time
trl_fair      trl_best, patched to score completion positions only, as it does by itself on CUDA
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from scripts.bench.cases import BETA, LEARNING_RATE, PAIRS, Case, Clock, make_pairs


def trl_worker(case: Case, pipe: Any) -> None:
    """Run DPOTrainer.train and wait before every step for a command.

    Commands are ("reference", draw), ("step", draw) and ("end",).
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import utils

    clock = Clock()
    best = case.system != "trl_default"
    micro_batch = 1 if best else PAIRS
    if case.system == "trl_fair":
        utils._use_triton = lambda device: True  # read where positions are chosen only: the kernel asks elsewhere
    losses: list[float] = []

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # token ids already

        def _get_train_sampler(self, *args: Any) -> Any:
            return SequentialSampler(rows)  # step k is on draw k

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    class Hold(TrainerCallback):
        began = 0.0

        def wait(self, control: Any) -> None:
            while (command := pipe.recv())[0] == "reference":
                began = clock.now()
                if best:
                    for row in rows[PAIRS * command[1] : PAIRS * (command[1] + 1)]:
                        batch = trainer.data_collator([row])
                        trainer.compute_ref_log_probs(
                            trainer.model, {name: value.to(trainer.model.device) for name, value in batch.items()}
                        )
                pipe.send((clock.now() - began, 0.0))
            control.should_training_stop = command[0] == "end"
            losses.clear()
            self.began = clock.now()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pipe.send("ready")
            self.wait(control)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pipe.send((clock.now() - self.began, sum(losses) / len(losses)))
            self.wait(control)

    pairs = [pair for seed in case.seeds for pair in make_pairs(case, seed)]
    rows = [{"prompt_ids": prompt, "chosen_ids": real, "rejected_ids": generated} for prompt, real, generated in pairs]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, "<pad>")),
        pad_token="<pad>",
        eos_token="</s>",
    )
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
    adapter = None
    if case.adapter_rank:
        from peft import LoraConfig

        rank = case.adapter_rank
        adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=BETA,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_steps=10**6,
            max_length=None,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=PAIRS // micro_batch,
            precompute_ref_log_probs=best,
            gradient_checkpointing=not best,
            bf16=case.dtype == "bfloat16",
            use_cpu=not clock.cuda,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Hold()],
            peft_config=adapter,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    pipe.send((clock.peak_bytes(), clock.matmul_rate(case.dtype)))
