"""Compare the engines with the trainer: the same policy must give the same log-probabilities.

This finds faults that raise no error in an engine: an old output head or prefix cache, or weights
that were not loaded.
"""

from __future__ import annotations

from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.errors import CheckpointError
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.training.reference import allowed_engine_gap, engine_gap

NUM_PROBES = 4
"""Number of held-out prompts that each engine answers in the check of its weights.

The longest ones are taken. They fill more than one block of the prefix cache, so that the check
also finds a cache that was not cleared when the weights changed.
"""


def verify_engines(run: RunContext, policy: Policy) -> None:
    """Load `policy` into every engine, and compare its log-probabilities with the trainer's.

    The check comes before any answer of an engine is kept. It is left out for the policy that was
    checked last.

    Raises:
        CheckpointError: An engine differs by more than `allowed_engine_gap`.
    """
    if run.verified_policy == policy.digest:
        return
    run.trainer_work.wait()

    # Let each engine answer the longest prompts.
    prompts = [prompt.prompt_ids for prompt in read_rows(run.layout.prompts("heldout"), Prompt)]
    prompts = sorted(prompts, key=len)[-NUM_PROBES:]
    allowed = allowed_engine_gap(run.config.model.dtype, run.worker_groups.engines_use_gpus)
    text = "checking the weights in the engines"
    if run.verified_policy is None:
        text = "waiting for the engines (vLLM), which load the model and compile their kernels"
    with run.reporter.waiting(text):
        probed = run.worker_groups.probe_engines(policy, prompts)
    for engine, answers in probed.items():
        # Let the trainer score the tokens that this engine sampled.
        groups = []
        engine_logps = []
        num_tokens = 0
        for prompt_ids, (token_ids, logp) in zip(prompts, answers, strict=True):
            groups.append(Group(prompt_ids, [token_ids]))
            engine_logps.append(logp)
            num_tokens += len(token_ids)
        trainer_logps = [logp for [logp] in run.worker_groups.score_completions(policy, groups)]
        gap = engine_gap(trainer_logps, engine_logps, num_tokens)
        # `not <=` in place of `>`, so that NaN is refused too.
        if not gap <= allowed:
            raise CheckpointError(
                f"engine {engine} does not hold {policy.path}: it differs from the trainer by {gap:.3g} "
                f"nats a token (allowed {allowed:g})"
            )
    run.verified_policy = policy.digest
