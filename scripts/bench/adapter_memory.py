"""Compare the memory of training with what `spin check` says, for all weights and for adapters.

    python scripts/bench/adapter_memory.py              a random Llama of 134 million weights
    python scripts/bench/adapter_memory.py --layers 2   a smaller one

Each case runs in a process of its own: it loads the model, scores four short pairs and takes two
optimizer steps. Its memory is the peak of the process in these steps (on CUDA: of the device) less
that of the same process with a tiny model. Short rows leave little beside weights, gradients and
moments.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

HIDDEN, INNER, VOCAB = 768, 2048, 32000
CASES = {"all weights": ("none", "float32"), "float32 base": ("lora", "float32"), "bfloat16 base": ("lora", "bfloat16")}
"""Method and dtype of the base of each case."""


def save_model(folder: Path, hidden: int, layers: int, vocab: int) -> None:
    """Save a random Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=INNER * hidden // HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class Peak:
    """The peak memory of this process since `start`; on CUDA that of the device."""

    def __init__(self) -> None:
        self.bytes = 0
        if not torch.cuda.is_available():
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            pages = Path("/proc/self/statm").read_text().split()[1]
            self.bytes = max(self.bytes, int(pages) * os.sysconf("SC_PAGE_SIZE"))
            time.sleep(0.002)

    def start(self) -> None:
        """Forget what was before."""
        self.bytes = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> int:
        """Return the peak in bytes."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return self.bytes


def measure(tiny: str, model: str, method: str, dtype: str, pipe: Any) -> None:
    """Send the memory of training a model, and what `spin check` says, in bytes."""
    from spin.config.adapter import AdapterConfig, AdapterMethod
    from spin.config.objective import SpinObjective
    from spin.config.training import Dtype, TrainingConfig
    from spin.data.examples import Completion, Example
    from spin.models.model_size import count_adapter, count_weights, training_bytes
    from spin.models.packing import Group
    from spin.models.policy import Policy, policy_digest
    from spin.training.job import TrainingJob
    from spin.training.row_stream import RowStream
    from spin.training.trainer import Trainer

    torch.set_num_threads(1)
    settings = AdapterConfig()
    if method == "lora":
        settings = AdapterConfig(method=AdapterMethod.lora, base_dtype=Dtype[dtype])
    training = TrainingConfig(batch_size=4, epochs=2, warmup_ratio=0.0, checkpoint_every="0")
    rows = []
    for i in range(4):
        rows.append(Example(f"pair {i}", [5, 6, 7 + i], (Completion([9, 10 + i], True), Completion([11], False))))
    groups = [Group(row.prompt_ids, [half.ids for half in row.completions]) for row in rows]
    peak, peaks = Peak(), []
    for path in (tiny, model):
        policy = Policy(path, policy_digest(Path(path)))
        trainer = Trainer(Dtype[dtype], adapter=settings)
        scores = trainer.score(policy, groups, training)
        scored = [row.with_reference(logps) for row, logps in zip(rows, scores, strict=True)]
        job = TrainingJob(policy, policy, SpinObjective(), training, 0, 0)
        # The file was mapped while it was read. From here on the model is in memory.
        peak.start()
        list(trainer.train(job, RowStream.whole(scored)))
        peaks.append(peak.read())
        trainer.release()
    adapter_weights = count_adapter(settings, Path(model), None, False)
    expected = training_bytes(count_weights(Path(model)), adapter_weights, settings.base_dtype, moments=2)
    pipe.send((peaks[1] - peaks[0], expected))


def main() -> None:
    """Measure all cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=15, help="layers of 7.1 million weights each")
    args = parser.parse_args()
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        tiny, model = Path(folder) / "tiny", Path(folder) / "model"
        save_model(tiny, 128, 1, 64)
        save_model(model, HIDDEN, args.layers, VOCAB)
        print(f"{'':14}{'measured MiB':>14}{'spin check':>12}{'ratio':>8}")
        for name, (method, dtype) in CASES.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=(str(tiny), str(model), method, dtype, theirs))
            process.start()
            theirs.close()
            found, expected = ours.recv()
            process.join()
            print(f"{name:14}{found / 2**20:14,.0f}{expected / 2**20:12,.0f}{found / expected:8.2f}", flush=True)


if __name__ == "__main__":
    main()
