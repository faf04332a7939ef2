"""A training stage of a reward model, on a tiny real model."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spin.config.reward_model import BradleyTerryObjective, HeadInit
from spin.config.training import Dtype, Layout, TrainingConfig
from spin.data.examples import Example, from_ranking
from spin.data.records import Ranking
from spin.errors import TrainingError
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.models.scalar_head import Head
from spin.models.token_logps import TokenLogps
from spin.training.job import TrainingJob
from spin.training.row_stream import RowStream
from spin.training.step0_check import check_new_rewards
from spin.training.trainer import Trainer
from tests.tiny import write_model

TRAINING = TrainingConfig(learning_rate=1e-3, epochs=2, batch_size=4, micro_batch_tokens=40, max_length=32)


def make_rows() -> list[Example]:
    """Eight rankings of two to four answers; the better an answer, the smaller its tokens."""
    rows = []
    for index in range(8):
        num_answers = 2 + index % 3
        completions = [[20 * place + index + 1, 7, 0][: 2 + index % 2] for place in range(num_answers)]
        ranks = [float(place) for place in range(num_answers)]
        rows.append(from_ranking(Ranking(index, [3 + index, 9], completions, ranks, 1.0, 0.0, None)))
    return rows


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return write_model(tmp_path_factory.mktemp("model") / "policy", seed=0)


def run(trainer: Trainer, job: TrainingJob) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    steps = list(trainer.train(job, RowStream.whole(make_rows())))
    return steps, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def make_job(policy: Policy, training: TrainingConfig = TRAINING, **more: Any) -> TrainingJob:
    objective = BradleyTerryObjective(center_coefficient=0.01)
    return TrainingJob(policy, policy, objective, training, seed=0, iteration=-1, **more)


def test_the_first_loss_is_ln_2_and_training_lowers_it_and_moves_the_body(policy: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    steps, weights = run(trainer, make_job(policy, replace(TRAINING, epochs=10, learning_rate=3e-3)))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1]["loss"] < 0.5
    assert steps[-1]["rewards/accuracies"] == 1
    trainer.load(policy, TRAINING)
    before = trainer.model.state_dict()
    moved = [name for name, tensor in weights.items() if name in before and not torch.equal(tensor, before[name])]
    assert len(moved) == len(weights) - 1  # all but the head, which a policy lacks


def test_every_layout_trains_the_same_reward_model(policy: Policy) -> None:
    found = []
    for layout in (Layout.shared, Layout.packed, Layout.padded):
        _, weights = run(Trainer(Dtype.float32), make_job(policy, replace(TRAINING, layout=layout)))
        found.append(weights["score.weight"])
    assert found[0].abs().max() > 1e-3
    for other in found[1:]:
        assert torch.allclose(found[0], other, atol=2e-5)


def test_a_stage_continued_from_a_saved_state_ends_with_the_same_bits(policy: Policy, tmp_path: Path) -> None:
    training = replace(TRAINING, checkpoint_every="2", keep=9)
    states = str(tmp_path / "states")
    _, expected = run(Trainer(Dtype.float32), make_job(policy, training, states=states))
    steps, found = run(Trainer(Dtype.float32), make_job(policy, training, states=states, resume_step=2))
    assert [step["step"] for step in steps] == [3, 4]
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_policy_and_its_reward_model_are_told_apart(policy: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    groups = [Group([5, 6], [[7], [8, 0]])]
    assert trainer.score(policy, groups, TRAINING, Head.scalar) == [[0.0, 0.0]]
    assert trainer.holds(policy, Head.scalar)
    assert not trainer.holds(policy)
    assert all(logp < -1 for logp in trainer.score(policy, groups, TRAINING)[0])


def test_a_head_may_begin_with_normal_values_that_the_seed_fixes(policy: Policy) -> None:
    objective = BradleyTerryObjective(center_coefficient=0.01, head_init=HeadInit.normal)
    still = replace(TRAINING, learning_rate=1e-12, epochs=1)
    heads = []
    for seed in (0, 0, 1):
        steps, weights = run(Trainer(Dtype.float32), replace(make_job(policy, still), objective=objective, seed=seed))
        assert abs(steps[0]["loss"] - math.log(2)) > 1e-4
        heads.append(weights["score.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    # The variance is 1 / (hidden size + 1).
    size = heads[0].numel()
    assert float(heads[0].square().mean()) == pytest.approx(1 / (size + 1), rel=0.5)


def test_a_new_head_that_gives_another_reward_than_0_is_an_error(policy: Policy) -> None:
    rewards = TokenLogps(torch.tensor([0.0, 0.5]), torch.arange(2), 2)
    row = make_rows()[0]
    check_new_rewards(TokenLogps(torch.zeros(2), torch.arange(2), 2), [(row, (0, 1))])
    with pytest.raises(TrainingError, match="step 0: the reward of ranking 0 is 0.5, expected 0"):
        check_new_rewards(rewards, [(row, (0, 1))])
