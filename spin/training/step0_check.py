"""The check before the first update: the policy must equal its reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spin.config.training import Dtype
from spin.errors import TrainingError
from spin.objectives.objective import Member

STEP0_TOLERANCE = {Dtype.float32: 1e-4, Dtype.bfloat16: 2e-2}
"""Allowed |log π − log π_ref| in nats per token: two passes of the same weights over differently
packed batches differ by rounding."""


def check_step0(logps: Tensor, members: Sequence[Member], dtype: Dtype) -> None:
    """Check that all log-ratios to the reference are 0 within rounding.

    Args:
        logps: Summed log-probabilities of a forward pass before the first update. Shape
            (completions,).
        members: The rows of the pass.
        dtype: Dtype of the matrix products.

    Raises:
        TrainingError: The reference's log-probabilities are those of other weights.
    """
    for row, places in members:
        for completion, place in zip(row.completions, places, strict=True):
            gap = float(logps[place]) - completion.reference_logp
            allowed = STEP0_TOLERANCE[dtype] * max(1, len(completion.ids))
            # Written so that NaN fails too.
            if not abs(gap) <= allowed:
                raise TrainingError(
                    f"step 0: log π − log π_ref of {row.name} is {gap:.3g}, expected 0 within {allowed:.3g}: "
                    "the rows were not scored with the weights about to be trained"
                )
