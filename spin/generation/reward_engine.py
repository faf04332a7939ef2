"""Run a reward model in vLLM: its score at the last token of each answer."""

from __future__ import annotations

from collections.abc import Sequence

from spin.generation.policy_engine import PolicyEngine
from spin.models.packing import Group
from spin.models.policy import Policy


class RewardEngine(PolicyEngine):
    """One vLLM engine without decoding, which holds one reward model at a time."""

    def __init__(
        self,
        dtype: str,
        max_model_len: int,
        kv_cache_gib: float = 1.0,
        gpu_memory_utilization: float = 0.4,
        trust_remote_code: bool = False,
        sleeps: bool = False,
    ) -> None:
        """See PolicyEngine; a reward model has no adapter and is on one device."""
        super().__init__(dtype, max_model_len, 1, kv_cache_gib, gpu_memory_utilization, trust_remote_code, sleeps)
        self._options["runner"] = "pooling"

    def score_groups(self, model: Policy, groups: Sequence[Group]) -> list[list[float]]:
        """Return the score of each completion of each group, without bias and scale.

        Args:
            model: Reward model that scores.
            groups: Prompts with their completions, each together at most `max_model_len` tokens.
        """
        prompts = []
        for group in groups:
            for completion in group.completions:
                prompts.append({"prompt_token_ids": [*group.prompt_ids, *completion]})
        with self.hold(model):
            # Only after the start, which sets the environment for vLLM's import.
            from vllm import PoolingParams

            # By default vLLM applies a sigmoid.
            pooling = PoolingParams(use_activation=False)
            call = self._thread.submit(self._llm.classify, prompts, pooling_params=pooling, use_tqdm=False)
            outputs = iter(call.result())
        scores = []
        for group in groups:
            scores.append([float(next(outputs).outputs.probs[0]) for _ in group.completions])
        return scores
