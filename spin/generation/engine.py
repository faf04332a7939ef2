"""Run vLLM: answer prompts given as token ids, score completions, and swap weights in place.

Shards and actors are in `spin.cluster`. vLLM runs in the caller's process: a separate process would
take 20 s longer to start.
"""

from __future__ import annotations

import gc
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin.generation.adapter_requests import AdapterRequests, adapter_options
from spin.generation.cpu_engine import prepare_cpu_engine
from spin.generation.requests import Answer, Request, count_batch_tokens
from spin.models.policy import Policy, check_policy

logger = logging.getLogger(__name__)


class Engine:
    """One vLLM engine, which holds one policy at a time.

    Every call names the policy, so a restarted engine cannot answer with a wrong one.
    """

    def __init__(
        self,
        dtype: str,
        max_model_len: int,
        tensor_parallel_size: int = 1,
        kv_cache_gib: float = 1.0,
        gpu_memory_utilization: float = 0.4,
        trust_remote_code: bool = False,
        sleeps: bool = False,
        adapter_rank: int = 0,
    ) -> None:
        """Store the options. The first call loads the model.

        Args:
            dtype: Dtype of the weights, such as ``bfloat16``.
            max_model_len: Largest length of prompt and answer together, in tokens.
            tensor_parallel_size: Number of devices that share the model.
            kv_cache_gib: Size of the key-value cache on a CPU, in GiB.
            gpu_memory_utilization: Share of a GPU's memory for weights and cache.
            trust_remote_code: Run Python code from the model's folder.
            sleeps: True if `sleep` will be called.
            adapter_rank: Rank of new adapters that are served on a base; 0 for none.
        """
        self._options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "tensor_parallel_size": tensor_parallel_size,
            "trust_remote_code": trust_remote_code,
            "load_format": "safetensors",
            "max_num_batched_tokens": count_batch_tokens(max_model_len),
        }
        self._adapter_rank = adapter_rank
        # vLLM's Ray backend would request GPUs from Ray, which this process already holds.
        if tensor_parallel_size > 1:
            self._options["distributed_executor_backend"] = "mp"
        self._kv_cache_bytes = int(kv_cache_gib * 2**30)
        self._gpu_memory_utilization = gpu_memory_utilization
        self._sleeps = sleeps
        self._asleep = False
        self._llm: Any = None
        # Digest of the loaded policy; None while the weights are missing or unknown.
        self._digest: str | None = None
        self._served = AdapterRequests()

    def sleep(self) -> None:
        """Free the device memory of weights and cache until the next `load`.

        Weights are discarded (vLLM's level 2). A base with adapters goes to main memory (level 1),
        because vLLM cannot load weights under adapters. On a CPU vLLM only stops scheduling.

        Raises RuntimeError when another program takes memory of the GPU meanwhile.
        """
        if self._llm is not None and not self._asleep:
            self._digest = None
            try:
                self._llm.sleep(level=1 if self._adapter_rank else 2)
            except AssertionError as error:
                # vLLM compares the device's free memory before and after.
                raise RuntimeError(
                    f"vLLM could not free its GPU memory ({error}): another program took memory of this GPU "
                    "meanwhile; a colocated run needs the GPU for itself"
                ) from error
            self._asleep = True

    def holds(self, policy: Policy) -> bool:
        """Return True if the weights of `policy` are loaded."""
        return self._digest == policy.digest

    def load(self, policy: Policy) -> None:
        """Start the engine with `policy`, or load its weights into the running engine.

        Raises CheckpointError when the files differ from those that were promoted.
        """
        if self.holds(policy):
            return
        check_policy(policy)
        if self._adapter_rank:
            self._load_adapter(policy)
            return
        if self._llm is not None:
            # The weights are unknown until the swap succeeds.
            self._digest = None
            try:
                self._swap(policy)
            except Exception as error:  # vLLM raises many kinds
                # A failed swap leaves the engine unusable. Start a new one from the checked files,
                # which raises if the fault is theirs.
                logger.warning("the weights of the engine cannot be replaced (%s); it starts again", error)
                self._llm = None
                self._asleep = False
                gc.collect()
        if self._llm is None:
            self._llm = self._start(policy.path)
        self._digest = policy.digest

    def _load_adapter(self, policy: Policy) -> None:
        """Load the base of a policy, unless the engine runs on it, and name its adapter."""
        self._digest = None
        if self._served.base != policy.base.digest:
            check_policy(policy.base)
            # A new base needs a new engine: vLLM cannot load weights under adapters.
            self._llm = None
            gc.collect()
            self._options |= adapter_options(self._adapter_rank, policy)
            self._llm = self._start(policy.base.path)
        elif self._asleep:
            self._llm.wake_up()
        self._asleep = False
        self._served.choose(policy)
        self._digest = policy.digest

    def _generate(self, prompts: Any, sampling: Any) -> Any:
        """Return vLLM's outputs for token ids, by the policy that is loaded."""
        return self._llm.generate(prompts, sampling, use_tqdm=False, lora_request=self._served.request)

    def _swap(self, policy: Policy) -> None:
        """Load the weights of `policy` into the running engine and clear its prefix cache."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("spin_reload", args=(str(Path(policy.path)),))
        # Wake the cache last: the reload may need its memory.
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
        self._asleep = False
        # Cached keys and values of shared prefixes come from the old weights.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset")

    def _start(self, path: str) -> Any:
        """Start vLLM in this process."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch

        if torch.cuda.is_available():
            device = {"gpu_memory_utilization": self._gpu_memory_utilization, "enable_sleep_mode": self._sleeps}
        else:
            device = prepare_cpu_engine(self._options["tensor_parallel_size"], self._kv_cache_bytes)
        from vllm import LLM

        return LLM(
            path,
            worker_extension_cls="spin.generation.weight_reload.ReloadExtension",
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
        """Return the answers of `policy`, in the order of the requests.

        Args:
            policy: Policy that answers.
            requests: Prompts with seeds.
            max_tokens: Largest number of tokens of an answer.
            temperature: Sampling temperature; 0 is greedy.
            top_p: Probability mass of the most likely tokens to sample from.
            stop_ids: Tokens that end an answer.
            stop: Texts that end an answer; they are part of it.

        Raises: FloatingPointError when a log-probability is not finite.
        """
        self.load(policy)
        from vllm import SamplingParams

        # One set of parameters for each request, because each has its own seed.
        prompts = []
        sampling = []
        for request in requests:
            seed = None
            if temperature > 0:
                seed = request.seed
            params = SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                stop_token_ids=list(stop_ids),
                logprobs=0,
                stop=list(stop) or None,
                detokenize=bool(stop),
            )
            prompts.append({"prompt_token_ids": request.prompt_ids})
            sampling.append(params)
        outputs = self._generate(prompts, sampling)

        # A broken policy gives NaN here; its answers must not become training data.
        answers = []
        for index, output in enumerate(outputs):
            [best] = output.outputs
            if not math.isfinite(best.cumulative_logprob):
                raise FloatingPointError(
                    f"policy {policy.path} gave a non-finite log-probability for request {index}: "
                    "its weights are unusable"
                )
            answers.append(Answer(list(best.token_ids), best.finish_reason, best.cumulative_logprob))
        return answers

    def score(self, policy: Policy, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return the log-probability of each completion, and True if greedy decoding gives it.

        Args:
            policy: Policy that scores.
            pairs: Token ids of a prompt and of its completion, together at most
                `max_model_len` − 1 tokens.
        """
        self.load(policy)
        from vllm import SamplingParams

        # vLLM returns log-probabilities of a prompt only if it also generates a token.
        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        prompts = [{"prompt_token_ids": [*prompt, *completion]} for prompt, completion in pairs]
        outputs = self._generate(prompts, sampling)
        scores = []
        for (prompt, completion), output in zip(pairs, outputs, strict=True):
            logp = 0.0
            is_greedy = True
            # For each position, the candidates are the most likely token and the given token.
            for candidates, token in zip(output.prompt_logprobs[len(prompt) :], completion, strict=True):
                logp += candidates[token].logprob
                is_greedy = is_greedy and candidates[token].rank == 1
            scores.append((logp, is_greedy))
        return scores

    def find_next_logps(
        self, policy: Policy, prompts: Sequence[list[int]], token_ids: Sequence[int]
    ) -> list[dict[int, float]]:
        """Return the log-probabilities of given tokens as the next one after each prompt.

        Args:
            policy: Policy that is asked.
            prompts: Token ids, at most `max_model_len` − 1 each.
            token_ids: At most 128 tokens, whatever their rank.

        Returns:
            For each prompt, log P(token) in nats at temperature 1, by token id.
        """
        self.load(policy)
        from vllm import SamplingParams

        # vLLM returns the token that it decoded besides the ids that were asked for.
        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=list(token_ids), detokenize=False, ignore_eos=True
        )
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._generate(requests, sampling)
        found = []
        for output in outputs:
            [candidates] = output.outputs[0].logprobs
            found.append({token: candidates[token].logprob for token in token_ids})
        return found
