"""The vLLM engine: token ids in; token ids, finish reason and log-probability out; weights swapped in place.

Not here: shards and actors (`workers.py`). vLLM runs in this very process: a worker process of its own costs 20 s more at start.
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin.models.policy import Policy, check_policy


@dataclass(frozen=True)
class Request:
    """One prompt to answer. The seed is the request's own, so that batch order and the number of engines change nothing."""

    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """`logp` is the sum of the untempered token log-probabilities."""

    token_ids: list[int]
    finish_reason: str
    logp: float


def request_seed(seed: int, purpose: str, iteration: int, prompt_id: int, sample_index: int) -> int:
    """31 bits that depend on nothing but what the sample is."""
    key = f"{seed}/{purpose}/{iteration}/{prompt_id}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1


class ReloadExtension:
    """Mixed into vLLM's worker: load promoted weights into the running engine."""

    def spin_reload(self, path: str) -> None:
        """vLLM's own reload, then the packed copy that its CPU path keeps of a tied head, which the reload does not see."""
        self.reload_weights(weights_path=path)  # type: ignore[attr-defined]
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
            from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

            for module in self.model_runner.get_model().modules():  # type: ignore[attr-defined]
                if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
                    dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class Engine:
    """One vLLM engine that holds one policy at a time; the policy is named in every call, so a restarted engine cannot answer with another."""

    def __init__(
        self,
        dtype: str,
        max_model_len: int,
        tensor_parallel_size: int = 1,
        kv_cache_gib: float = 1.0,
        gpu_memory_utilization: float = 0.4,
        trust_remote_code: bool = False,
        sleeps: bool = False,
    ) -> None:
        """`max_model_len`: prompt + answer, in tokens; `sleeps`: `sleep` will be called. Nothing is loaded before the first call."""
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "tensor_parallel_size": tensor_parallel_size,
            **(
                {"distributed_executor_backend": "mp"} if tensor_parallel_size > 1 else {}
            ),  # not Ray's: the GPUs of this actor are this process's to share out
            "trust_remote_code": trust_remote_code,
            "load_format": "safetensors",
            "max_num_batched_tokens": max(4096, max_model_len),
        }
        self._kv_cache_bytes = int(kv_cache_gib * 2**30)
        self._gpu_memory_utilization = gpu_memory_utilization
        self._sleeps, self._asleep = sleeps, False
        self._llm: Any = None
        self._digest: str | None = None

    def sleep(self) -> None:
        """Give back the device's memory, weights and cache (vLLM's level 2), until `load` wakes it. On a CPU vLLM only stops to schedule, and keeps both."""
        if self._llm is not None and not self._asleep:
            self._digest = None
            self._llm.sleep(level=2)
            self._asleep = True

    def holds(self, policy: Policy) -> bool:
        """Return whether the weights of `policy` are loaded."""
        return self._digest == policy.digest

    def load(self, policy: Policy) -> None:
        """Hold `policy`: start the engine on it, or swap its weights in. Raises CheckpointError when the files are not those that were promoted."""
        if self._digest == policy.digest:
            return
        check_policy(policy)
        if self._llm is not None:
            self._digest = None  # unknown until the swap has succeeded
            try:
                if self._asleep:
                    self._llm.wake_up(tags=["weights"])
                self._llm.collective_rpc("spin_reload", args=(str(Path(policy.path)),))
                if self._asleep:  # only now: both at once might not fit beside what the reload needs
                    self._llm.wake_up(tags=["kv_cache"])
                self._asleep = False
                if not self._llm.reset_prefix_cache():
                    raise RuntimeError("the prefix cache could not be reset")
            except Exception:  # a failed swap leaves the engine unusable: build it anew, from the checked files
                self._llm, self._asleep = None, False
                gc.collect()
        if self._llm is None:
            self._llm = self._start(policy.path)
        self._digest = policy.digest

    def _start(self, path: str) -> Any:
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
        )
        import torch

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            os.environ["OMP_NUM_THREADS"] = "1"  # more threads spin against each other in this mode: eight times slower
            if (
                parts := self._options["tensor_parallel_size"]
            ) > 1:  # a core each; by itself vLLM wants a NUMA node for each
                os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(parts))))
        from vllm import LLM

        # Per-request seeds crash the CPU engine when a prompt is split, hence no chunked prefill there.
        device = (
            {"gpu_memory_utilization": self._gpu_memory_utilization, "enable_sleep_mode": self._sleeps}
            if on_gpu
            else {"enforce_eager": True, "enable_chunked_prefill": False, "kv_cache_memory_bytes": self._kv_cache_bytes}
        )
        return LLM(
            path,
            worker_extension_cls="spin.generation.engine.ReloadExtension",
            disable_log_stats=True,
            seed=0,
            **self._options,
            **device,
        )

    def generate(
        self,
        policy: Policy,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Sequence[int],
        stop: Sequence[str] = (),
    ) -> list[Answer]:
        """Answers of `policy`, in the order of the requests. Temperature 0 is greedy. `stop`: texts at which an answer ends too, themselves part of it.

        Raises FloatingPointError when the policy answers with NaN."""
        self.load(policy)
        from vllm import SamplingParams

        sampling = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=request.seed if temperature > 0 else None,
                stop_token_ids=list(stop_ids),
                logprobs=0,
                stop=list(stop) or None,
                detokenize=bool(stop),
            )
            for request in requests
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": request.prompt_ids} for request in requests], sampling, use_tqdm=False
        )
        answers = [
            Answer(list(o.outputs[0].token_ids), o.outputs[0].finish_reason, o.outputs[0].cumulative_logprob)
            for o in outputs
        ]
        for index, answer in enumerate(answers):
            if not math.isfinite(answer.logp):
                raise FloatingPointError(
                    f"policy {policy.path} gave a non-finite log-probability for request {index}: its weights are unusable"
                )
        return answers

    def score(self, policy: Policy, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For each prompt with a continuation: the continuation's log-probability, and whether greedy decoding would give it. One token of room must be left."""
        self.load(policy)
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        outputs = self._llm.generate(
            [{"prompt_token_ids": [*prompt, *rest]} for prompt, rest in pairs], sampling, use_tqdm=False
        )
        scores = []
        for (prompt, rest), output in zip(pairs, outputs, strict=True):
            places = [(output.prompt_logprobs[len(prompt) + at], token) for at, token in enumerate(rest)]
            scores.append(
                (
                    sum(place[token].logprob for place, token in places),
                    all(place[token].rank == 1 for place, token in places),
                )
            )
        return scores


@dataclass(frozen=True)
class Sampling:
    """How a policy answers: `purpose` and `iteration` enter each request's seed."""

    purpose: str
    iteration: int
    temperature: float
    top_p: float = 1.0
    samples: int = 1
