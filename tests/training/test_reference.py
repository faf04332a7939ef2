"""Scoring rows under the reference, with a tiny real model."""

import math
from pathlib import Path

import pytest

from spin.config.groups import DataConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.config.training import Dtype
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Pair
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.training.policy_scorer import PolicyScorer
from spin.training.reference import LabelledJob, score_labelled
from tests.tiny import write_model


@pytest.mark.parametrize("has_base", [True, False])
def test_pairs_are_scored_under_the_base_too_if_the_reference_is_a_mixture(tmp_path: Path, has_base: bool) -> None:
    opponent, base = write_model(tmp_path / "opponent", seed=0), write_model(tmp_path / "base", seed=1)
    config = RunConfig(
        "run", model=ModelConfig("builtin:tiny"), data=DataConfig("builtin:letters"), objective=SpinObjective()
    )
    write_rows(tmp_path / "pairs.parquet", Pair, [Pair(0, 0, "labelled", None, [5, 6], [7, 8], [9], *[math.nan] * 3)])
    out = tmp_path / "scored.parquet"
    mixed_base = base if has_base else None
    scorer = PolicyScorer(Dtype.float32)
    score_labelled(scorer, LabelledJob(config, opponent, Pair, str(tmp_path / "pairs.parquet"), str(out), mixed_base))
    [row] = read_rows(out, Pair)

    def logps(policy: Policy) -> list[float]:
        [scores] = scorer.score(policy, [Group([5, 6], [[7, 8], [9]])], config.training)
        return pytest.approx(scores, abs=1e-5)  # type: ignore[return-value]

    assert [row.reference_chosen_logp, row.reference_rejected_logp] == logps(opponent)
    if has_base:
        assert [row.base_chosen_logp, row.base_rejected_logp] == logps(base)
    else:
        assert math.isnan(row.base_chosen_logp)
