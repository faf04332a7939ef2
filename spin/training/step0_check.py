"""The checks before the first update: of a policy against its reference, of rewards against 0."""

from __future__ import annotations

from collections.abc import Sequence

from spin.config.training import Dtype
from spin.errors import TrainingError
from spin.models.token_logps import TokenLogps
from spin.objectives.completion_logps import Member

STEP0_TOLERANCE = {Dtype.float32: 1e-4, Dtype.bfloat16: 2e-2}
"""Allowed |log π − log π_ref| in nats per token: two passes of the same weights over differently
packed batches differ by rounding."""


TOKEN_FACTOR = 10
"""By how many times a single token may differ more than the mean over a completion."""


def check_step0(logps: TokenLogps, members: Sequence[Member], dtype: Dtype) -> None:
    """Check that all log-ratios to the reference are 0 within rounding.

    Where the reference's log-probabilities of single tokens are known, each token is checked.

    Args:
        logps: Log-probabilities of a forward pass before the first update.
        members: The rows of the pass.
        dtype: Dtype of the matrix products.

    Raises:
        TrainingError: The reference's log-probabilities are those of other weights.
    """
    sums, tokens = logps.sums().tolist(), logps.lists()
    for row, places in members:
        # No reference has scored a truth that is trained beside the rows.
        if row.pretraining:
            continue
        for completion, place in zip(row.completions, places, strict=True):
            gap = sums[place] - completion.reference_logp
            allowed = STEP0_TOLERANCE[dtype] * max(1, len(completion.ids))
            if completion.rollout is not None:
                gaps = [new - old for new, old in zip(tokens[place], completion.rollout.old_logps, strict=True)]
                gap = max(gaps, key=abs)
                allowed = TOKEN_FACTOR * STEP0_TOLERANCE[dtype]
            # Written so that NaN fails too.
            if not abs(gap) <= allowed:
                raise TrainingError(
                    f"step 0: log π − log π_ref of {row.name} is {gap:.3g}, expected 0 within {allowed:.3g}: "
                    "the rows were not scored with the weights about to be trained"
                )


def check_old_values(values: TokenLogps, members: Sequence[Member], dtype: Dtype) -> None:
    """Check that a critic gives the values that the advantages were computed with.

    Its loss is then half the mean of the squared advantages.

    Args:
        values: Of a forward pass before the first update, in the place of log-probabilities.
        members: The rows of the pass; truths that are trained beside them have no values.
        dtype: Dtype of the matrix products.

    Raises:
        TrainingError: The rows have the values of another critic.
    """
    found = values.lists()
    for row, places in members:
        rollout = row.completions[0].rollout
        if row.pretraining or rollout is None:
            continue
        gaps = [new - old for new, old in zip(found[places[0]], rollout.values, strict=True)]
        # Values have the size of rewards, which is not bounded.
        size = max(1.0, max(abs(value) for value in rollout.values))
        allowed = TOKEN_FACTOR * STEP0_TOLERANCE[dtype] * size
        gap = max(gaps, key=abs)
        # Written so that NaN fails too.
        if not abs(gap) <= allowed:
            raise TrainingError(
                f"step 0: V − V_old of {row.name} is {gap:.3g}, expected 0 within {allowed:.3g}: "
                "the advantages were not computed with the critic about to be trained"
            )


def check_new_rewards(rewards: TokenLogps, members: Sequence[Member]) -> None:
    """Check that a reward model with a new head gives every answer the reward 0.

    The first loss is then ln 2 for each pair without margin.

    Args:
        rewards: Of a forward pass before the first update.
        members: The rankings of the pass.

    Raises:
        TrainingError: A reward is not 0.
    """
    found = rewards.sums()
    for row, places in members:
        for place in places:
            # Written so that NaN fails too.
            if not found[place] == 0:
                raise TrainingError(f"step 0: the reward of {row.name} is {float(found[place]):.3g}, expected 0")
