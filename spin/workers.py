"""Ray actors that stay up for the whole run: thin wrappers over the engine and the trainer.

Every call names the policy by path and digest, so that an actor that Ray restarted cannot answer with an older one.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from spin.config import ObjectiveConfig, PairsConfig, RunConfig, TrainingConfig
from spin.model import Policy
from spin.records import Pair, Prompt, Sample, read_rows, read_shards, write_rows

ENGINE_GAP_PER_TOKEN = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest mean difference, in nats a token, between the engine's log-probabilities and the trainer's before the run is refused."""


@dataclass(frozen=True)
class Sampling:
    """How a policy answers: `purpose` and `iteration` enter each request's seed."""

    purpose: str
    iteration: int
    temperature: float
    samples: int = 1


@ray.remote(max_restarts=3, max_task_retries=3)
class Generator:
    """One vLLM engine."""

    def __init__(self, config: RunConfig, stop_ids: tuple[int, ...]) -> None:
        from spin.engine import Engine

        generation = config.generation
        self._generation, self._seed, self._stop_ids = generation, config.seed, stop_ids
        self._engine = Engine(
            config.model.dtype.name,
            config.max_prompt_length + generation.max_tokens,
            generation.tensor_parallel_size,
            generation.kv_cache_gib,
            generation.gpu_memory_utilization,
            config.model.trust_remote_code,
        )
        self._tokenizers: dict[str, Any] = {}

    def load(self, policy: Policy) -> float:
        """Hold `policy`; returns the seconds it took."""
        start = time.perf_counter()
        self._engine.load(policy)
        return time.perf_counter() - start

    def generate(self, policy: Policy, prompts_path: str, first: int, last: int, out: str, sampling: Sampling) -> dict[str, Any]:
        """Answer prompts `first` to `last` - 1 of a prepared set into one finished shard."""
        from spin.engine import Request, request_seed

        start = time.perf_counter()
        prompts = read_rows(Path(prompts_path), Prompt)[first:last]
        keys = [(prompt, index) for prompt in prompts for index in range(sampling.samples)]
        requests = [Request(p.prompt_ids, request_seed(self._seed, sampling.purpose, sampling.iteration, p.prompt_id, i)) for p, i in keys]
        top_p = self._generation.top_p if sampling.temperature > 0 else 1.0
        answers = self._engine.generate(policy, requests, self._generation.max_tokens, sampling.temperature, top_p, self._stop_ids)
        samples = [Sample(p.prompt_id, i, a.token_ids, a.finish_reason, a.logp, self._text(policy, a.token_ids)) for (p, i), a in zip(keys, answers, strict=True)]
        return {
            "out": out,
            "sha256": write_rows(Path(out), Sample, samples),
            "rows": len(samples),
            "tokens": sum(len(s.token_ids) for s in samples),
            "cut": sum(s.finish_reason == "length" for s in samples),
            "seconds": time.perf_counter() - start,
        }

    def _text(self, policy: Policy, token_ids: list[int]) -> str:
        if policy.path not in self._tokenizers:
            from transformers import AutoTokenizer

            self._tokenizers = {policy.path: AutoTokenizer.from_pretrained(policy.path)}
        return self._tokenizers[policy.path].decode([i for i in token_ids if i not in self._stop_ids], skip_special_tokens=True)


@ray.remote
class TrainingWorker:
    """One rank of the trainer."""

    def __init__(self, config: RunConfig, rank: int, world: int) -> None:
        self._config, self._rank, self._world = config, rank, world
        os.environ["OMP_NUM_THREADS"] = str(config.cluster.trainer_threads)  # before torch is imported: Ray sets 1
        self._trainer: Any = None

    def address(self) -> tuple[str, int]:
        """Where rank 0 listens for the others."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, host: str, port: int) -> None:
        """Join the process group and import everything, before the first stage asks for it."""
        if self._world > 1:
            os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), RANK=str(self._rank), LOCAL_RANK=str(self._rank), WORLD_SIZE=str(self._world))
        import torch

        torch.set_num_threads(self._config.cluster.trainer_threads)
        from spin.trainer import Trainer

        self._trainer = Trainer(self._config.model.dtype, self._config.model.trust_remote_code)

    def score(self, policy: Policy, prompts_path: str, samples: str, out: str, pairs_config: PairsConfig) -> dict[str, Any]:
        """Label one shard of samples and score both halves under the opponent, which is also where the main player starts."""
        from hydra.utils import get_class

        start = time.perf_counter()
        prompts = {prompt.prompt_id: prompt for prompt in read_rows(Path(prompts_path), Prompt)}
        answers: dict[int, list[Sample]] = {}
        for sample in read_rows(Path(samples), Sample):
            answers.setdefault(sample.prompt_id, []).append(sample)
        feedback = get_class(self._config.feedback._target_)()
        pairs: list[Pair] = [pair for prompt_id, group in answers.items() for pair in feedback.label(prompts[prompt_id], group)]
        labelled = len(pairs)
        if pairs_config.drop_identical:
            pairs = [pair for pair in pairs if pair.real_ids != pair.generated_ids]
        sequences = [(p.prompt_ids, p.real_ids) for p in pairs] + [(p.prompt_ids, p.generated_ids) for p in pairs]
        logps = self._trainer.score(policy, sequences, 2 * self._config.training.micro_batch_size)
        pairs = [replace(p, reference_real_logp=r, reference_generated_logp=g) for p, r, g in zip(pairs, logps[: len(pairs)], logps[len(pairs) :], strict=True)]
        tokens = sum(len(p.generated_ids) for p in pairs)
        gap = sum(abs(p.reference_generated_logp - p.engine_generated_logp) for p in pairs) / max(1, tokens)
        allowed = ENGINE_GAP_PER_TOKEN[self._config.model.dtype.name]
        if not math.isfinite(gap) or gap > allowed:
            raise RuntimeError(f"{samples}: engine and trainer differ by {gap:.3g} nats a token (allowed {allowed:g}): they do not hold the same weights")
        return {
            "out": out,
            "sha256": write_rows(Path(out), Pair, pairs),
            "rows": len(pairs),
            "identical": labelled - len(pairs),
            "engine_gap": gap,
            "seconds": time.perf_counter() - start,
        }

    def logps(self, policy: Policy, sequences: list[tuple[list[int], list[int]]]) -> list[float]:
        """Completion log-probabilities of (prompt ids, completion ids) under a policy."""
        return self._trainer.score(policy, sequences, 2 * self._config.training.micro_batch_size)

    def train(
        self,
        policy: Policy,
        shards: list[str],
        objective: ObjectiveConfig,
        training: TrainingConfig,
        iteration: int,
        out: str,
        states: str,
        resume_step: int,
    ) -> Iterator[dict[str, Any]]:
        """Train from `policy` on finished shards (Prompt rows for sft, else Pair rows), yielding each step's metrics.

        Rank 0 exports the outcome to `out` and yields its digest last.
        """
        from transformers import AutoTokenizer

        from spin.config import SftObjective
        from spin.model import export_policy
        from spin.trainer import Example

        paths = [Path(shard) for shard in shards]
        if isinstance(objective, SftObjective):
            examples = [Example(f"prompt {p.prompt_id}", p.prompt_ids, p.real_ids) for p in read_shards(paths, Prompt)]
        else:
            examples = [
                Example(f"prompt {p.prompt_id} sample {p.sample_index}", p.prompt_ids, p.real_ids, p.generated_ids, p.reference_real_logp, p.reference_generated_logp)
                for p in read_shards(paths, Pair)
            ]
        yield from self._trainer.train(policy, examples, objective, training, self._config.seed, iteration, Path(states), resume_step)
        if self._rank == 0:
            digest = export_policy(self._trainer.model, AutoTokenizer.from_pretrained(policy.path), Path(out), self._config.model.dtype.name)
            yield {"digest": digest}
