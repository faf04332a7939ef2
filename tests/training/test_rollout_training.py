"""Policy gradients on a tiny real model: scoring of single tokens, the first step, early stop."""

import dataclasses

import pytest
import torch

from spin.config.policy_gradient import GrpoObjective, RlooObjective
from spin.config.training import Dtype, Layout, TrainingConfig
from spin.data.records import Example, from_rollout
from spin.data.rollouts import Rollout
from spin.errors import TrainingError
from spin.models.policy import Policy
from spin.training.batches import group_by_prompt
from spin.training.job import TrainingJob
from spin.training.rollout_scoring import add_advantages, score_rollouts
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.tiny import write_model

TRAINING = TrainingConfig(
    learning_rate=1e-3, epochs=3, batch_size=4, micro_batch_tokens=40, max_length=16, warmup_ratio=0.0
)
# Three prompts with four answers each. Two answers to the first prompt are equal.
ROLLOUTS = [
    Rollout(
        prompt,
        index,
        1,
        [3 + prompt, 7, 9],
        [20 + max(index, 1), 21 + prompt, 0][: 2 + index % 2],
        "stop",
        float(index % 3 == 0),
        0.0,
    )  # fmt: skip
    for prompt in range(3)
    for index in range(4)
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    """An opponent and a base."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "opponent", seed=0), write_model(folder / "base", seed=1)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(Dtype.float32)


def make_rows(trainer: Trainer, policies: tuple[Policy, Policy], objective: GrpoObjective) -> list[Example]:
    scored = score_rollouts(trainer, *policies, ROLLOUTS, TRAINING)
    return [from_rollout(row) for row in add_advantages(scored, objective)]


def train(
    trainer: Trainer, policy: Policy, objective: GrpoObjective, rows: list[Example], training: TrainingConfig = TRAINING
) -> list[dict[str, float]]:
    job = TrainingJob(policy, policy, objective, training, seed=0, iteration=1)
    return list(trainer.train(job, RowStream.whole(rows)))


def test_the_scores_of_the_tokens_add_up_to_the_scores_of_the_answers(
    trainer: Trainer, policies: tuple[Policy, Policy]
) -> None:
    rows = score_rollouts(trainer, *policies, ROLLOUTS, TRAINING)
    groups, places = group_by_prompt([from_rollout(row) for row in ROLLOUTS])
    assert len(groups) == 3
    for policy, field in zip(policies, ("old_logps", "base_logps"), strict=True):
        sums = trainer.score(policy, groups, TRAINING)
        for row, (group, (place,)) in zip(rows, places, strict=True):
            tokens = getattr(row, field)
            assert len(tokens) == len(row.completion_ids)
            assert sum(tokens) == pytest.approx(sums[group][place], abs=1e-5)
    assert all(row.old_logps != row.base_logps for row in rows)


def test_without_a_base_answers_have_no_figures_of_it(trainer: Trainer, policies: tuple[Policy, Policy]) -> None:
    rows = score_rollouts(trainer, policies[0], None, ROLLOUTS, TRAINING)
    assert all(row.base_logps == [] for row in rows)
    [row] = {tuple(row.base_logps) for row in add_advantages(rows, RlooObjective(kl_weight=0.0))}
    assert row == ()


def test_advantages_compare_the_answers_to_a_prompt(trainer: Trainer, policies: tuple[Policy, Policy]) -> None:
    rows = score_rollouts(trainer, *policies, ROLLOUTS, TRAINING)
    # The rewards of each prompt are 1, 0, 0, 1: see the numbers by hand in tests/objectives.
    for index, row in enumerate(add_advantages(rows, GrpoObjective())):
        sign = 1 if index % 4 in (0, 3) else -1
        assert row.advantages == pytest.approx([sign * 0.865875] * len(row.completion_ids), abs=1e-6)
    # With RLOO the divergence from the base is taken from the reward first.
    penalised = [row.reward - 0.1 * (sum(row.old_logps) - sum(row.base_logps)) for row in rows]
    finished = add_advantages(rows, RlooObjective(kl_weight=0.1))
    for index, row in enumerate(finished[:4]):
        others = [penalised[other] for other in range(4) if other != index]
        assert row.advantages == pytest.approx([penalised[index] - sum(others) / 3] * len(row.completion_ids))


@pytest.mark.parametrize("objective", [GrpoObjective(), RlooObjective()])
def test_in_the_first_step_nothing_is_clipped_and_then_good_answers_get_more_likely(
    trainer: Trainer, policies: tuple[Policy, Policy], objective: GrpoObjective
) -> None:
    rows = make_rows(trainer, policies, objective)
    steps = train(trainer, policies[0], objective, rows)
    assert len(steps) == 9
    assert steps[0]["clip_fraction"] == 0
    assert steps[0]["kl_to_opponent"] == pytest.approx(0, abs=1e-8)
    assert steps[-1]["kl_to_opponent"] > 1e-4
    gains = {1.0: 0.0, 0.0: 0.0}
    groups, places = group_by_prompt(rows)
    with torch.no_grad():
        logps = trainer.scorer(groups).sums().tolist()
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + len(group.completions))
    for row, (group, (place,)) in zip(rows, places, strict=True):
        rollout = row.completions[0].rollout
        assert rollout is not None
        gains[rollout.reward] += logps[starts[group] + place] - sum(rollout.old_logps)
    assert gains[1.0] > 0 > gains[0.0]


def test_the_layout_changes_no_loss(trainer: Trainer, policies: tuple[Policy, Policy]) -> None:
    objective = GrpoObjective()
    rows = make_rows(trainer, policies, objective)
    shared = train(trainer, policies[0], objective, rows, dataclasses.replace(TRAINING, layout=Layout.shared))
    padded = train(trainer, policies[0], objective, rows, dataclasses.replace(TRAINING, layout=Layout.padded))
    for ours, theirs in zip(shared, padded, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_log_probabilities_of_other_weights_are_refused_at_the_first_step(
    trainer: Trainer, policies: tuple[Policy, Policy]
) -> None:
    rows = make_rows(trainer, policies, GrpoObjective())
    rollout = rows[0].completions[0].rollout
    assert rollout is not None
    # The sum over the answer stays the same: only single tokens give it away.
    moved = [rollout.old_logps[0] + 0.5, rollout.old_logps[1] - 0.5, *rollout.old_logps[2:]]
    rows[0] = from_rollout(dataclasses.replace(rollout, old_logps=moved))
    with pytest.raises(TrainingError, match="step 0: log π − log π_ref of prompt 0 sample 0 of iteration 1 is -?0.5"):
        train(trainer, policies[0], GrpoObjective(), rows, dataclasses.replace(TRAINING, batch_size=12))


def test_training_stops_at_the_target_divergence_and_counts_the_steps_that_are_left(
    trainer: Trainer, policies: tuple[Policy, Policy]
) -> None:
    objective = GrpoObjective(target_kl=1e-3)
    rows = make_rows(trainer, policies, objective)
    full = train(trainer, policies[0], GrpoObjective(), rows)
    steps = train(trainer, policies[0], objective, rows)
    expected = next(step["step"] for step in full if step["kl_to_opponent"] > 1e-3 or step["clip_fraction"] > 0.3)
    assert 1 < expected < 9
    assert [step["step"] for step in steps] == list(range(1, int(expected) + 1))
    assert steps[-1]["skipped"] == 9 - expected
    assert trainer.steps_taken == expected
    assert "skipped" not in steps[0]
