"""Answer prompts given as token ids by vLLM, and score completions.

Shards and actors are in `spin.cluster`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from spin.generation.policy_engine import PolicyEngine
from spin.generation.requests import Answer, Request
from spin.models.policy import Policy


class Engine(PolicyEngine):
    """One vLLM engine that decodes."""

    def generate(
        self,
        policy: Policy,
        requests: Sequence[Request],
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Sequence[int],
        stop: Sequence[str] = (),
        with_logps: bool = True,
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
            with_logps: Whether the log-probability of each answer is needed.

        Raises: FloatingPointError when a log-probability that is needed is not finite.
        """
        # vLLM is imported by its own thread first, when the engine starts.
        self.load(policy)
        from vllm import SamplingParams

        # One set of parameters for each request, because each has its own seed.
        logprobs = None
        if with_logps:
            logprobs = 0
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
                logprobs=logprobs,
                stop=list(stop) or None,
                detokenize=bool(stop),
            )
            prompts.append({"prompt_token_ids": request.prompt_ids})
            sampling.append(params)
        outputs = self._run(policy, prompts, sampling)

        # A broken policy gives NaN here; its answers must not become training data.
        answers = []
        for index, output in enumerate(outputs):
            [best] = output.outputs
            logp = math.nan
            if with_logps:
                logp = best.cumulative_logprob
            if with_logps and not math.isfinite(logp):
                raise FloatingPointError(
                    f"policy {policy.path} gave a non-finite log-probability for request {index}: "
                    "its weights are unusable"
                )
            answers.append(Answer(list(best.token_ids), best.finish_reason, logp))
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
        outputs = self._run(policy, prompts, [sampling] * len(prompts))
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
        outputs = self._run(policy, requests, [sampling] * len(requests))
        found = []
        for output in outputs:
            [candidates] = output.outputs[0].logprobs
            found.append({token: candidates[token].logprob for token in token_ids})
        return found
