"""Rewards are centred on the ground truths, and held-out rankings are measured with them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from spin.config.reward_model import Center
from spin.config.training import Dtype, TrainingConfig
from spin.data import builtin
from spin.data.examples import Completion, Example
from spin.data.parquet import write_rows
from spin.data.records import Ranking
from spin.models.packing import Group
from spin.models.policy import Policy, policy_digest
from spin.models.reward_export import RewardFacts, export_reward_model, to_rewards
from spin.models.scalar_head import Head, load_reward_model
from spin.training.reward_scoring import (
    EvaluationJob,
    compute_mean_reward,
    evaluate_reward_model,
    score_groups,
)
from spin.training.trainer import Trainer

TRAINING = TrainingConfig(micro_batch_tokens=20, max_length=32)
TRUTHS = [Example(f"prompt {index}", [5, 6 + index], (Completion([9, 2 + index], True),)) for index in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    start = tmp_path_factory.mktemp("models") / "start"
    builtin.write_tiny_model(start, seed=0)
    reward_model = load_reward_model(start)
    torch.manual_seed(1)
    torch.nn.init.normal_(reward_model.score.weight)
    folder = start.parent / "reward"
    tokenizer = AutoTokenizer.from_pretrained(start)
    export_reward_model(reward_model, tokenizer, folder, "float32", (2,), RewardFacts(bias=0.5))
    return Policy(str(folder), policy_digest(folder))


def test_the_mean_over_truths_is_that_of_their_single_rewards(model: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    groups = [Group(row.prompt_ids, [row.completions[0].ids]) for row in TRUTHS]
    rewards = [reward for [reward] in trainer.score(model, groups, TRAINING, Head.scalar)]
    assert compute_mean_reward(trainer, TRUTHS, TRAINING) == pytest.approx(sum(rewards) / 7, abs=1e-6)


def test_a_reward_is_the_score_minus_the_bias(model: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    groups = [Group([5, 6], [[7, 2], [8, 2]])]
    [scores] = trainer.score(model, groups, TRAINING, Head.scalar)
    assert score_groups(trainer, model, groups, TRAINING) == [[scores[0] - 0.5, scores[1] - 0.5]]
    for center in (Center.none, Center.batch):
        assert score_groups(trainer, model, groups, TRAINING, center) == [scores]


def test_a_scale_divides_what_the_bias_leaves(tmp_path: Path) -> None:
    (tmp_path / "reward.json").write_text('{"bias": 0.5, "scale": 2.0}')
    assert to_rewards([1.5, -0.5], tmp_path, Center.truths) == [0.5, -0.5]
    assert to_rewards([1.5, -0.5], tmp_path, Center.none) == [0.75, -0.25]


def test_the_figures_of_held_out_rankings_are_written(model: Policy, tmp_path: Path) -> None:
    trainer = Trainer(Dtype.float32)
    rows = []
    for index in range(6):
        answers = [[20 + index, 2], [60 + index, 2]]
        [scores] = trainer.score(model, [Group([5, 6], answers)], TRAINING, Head.scalar)
        # The first two labels are the model's own order, the others the opposite.
        ranks = [float(scores[0] < scores[1]), float(scores[0] > scores[1])]
        if index >= 2:
            ranks.reverse()
        rows.append(Ranking(index, [5, 6], answers, ranks, 1.0, 0.0, None))
    write_rows(tmp_path / "rankings.parquet", Ranking, rows)
    out = tmp_path / "evaluation.json"
    job = EvaluationJob(model, TRAINING, 0, [str(tmp_path / "rankings.parquet")], str(out))
    assert evaluate_reward_model(trainer, job)["rows"] == 6
    figures = json.loads(out.read_text())
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["pairs"] == 6
