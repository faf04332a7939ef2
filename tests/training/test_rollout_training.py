"""Policy gradients on a tiny real model: scoring of single tokens, the first step, early stop."""

import dataclasses
from pathlib import Path

import pytest
import torch

from spin.config.policy_gradient import Aggregate, CriticModel, GrpoObjective, PpoObjective, RlooObjective
from spin.config.training import Dtype, Layout, TrainingConfig
from spin.data.examples import Completion, Example, from_rollout
from spin.data.rollouts import Rollout
from spin.errors import CheckpointError, TrainingError
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.models.scalar_head import Head
from spin.models.value_head import load_value_head, write_value_head
from spin.training.batches import group_by_prompt
from spin.training.checkpoint import state_folder
from spin.training.job import TrainingJob
from spin.training.pretraining_rows import PretrainingRows
from spin.training.rollout_scoring import add_advantages, score_rollouts, score_with_values
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
    scored = score_rollouts(trainer, *policies, None, ROLLOUTS, TRAINING)
    return [from_rollout(row) for row in add_advantages(scored, objective)]


def train(
    trainer: Trainer, policy: Policy, objective: GrpoObjective, rows: list[Example], training: TrainingConfig = TRAINING
) -> list[dict[str, float]]:
    job = TrainingJob(policy, policy, objective, training, seed=0, iteration=1)
    return list(trainer.train(job, RowStream.whole(rows)))


def test_the_scores_of_the_tokens_add_up_to_the_scores_of_the_answers(
    trainer: Trainer, policies: tuple[Policy, Policy]
) -> None:
    rows = score_rollouts(trainer, *policies, None, ROLLOUTS, TRAINING)
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
    rows = score_rollouts(trainer, policies[0], None, None, ROLLOUTS, TRAINING)
    assert all(row.base_logps == [] for row in rows)
    [row] = {tuple(row.base_logps) for row in add_advantages(rows, RlooObjective(kl_weight=0.0))}
    assert row == ()


def test_advantages_compare_the_answers_to_a_prompt(trainer: Trainer, policies: tuple[Policy, Policy]) -> None:
    rows = score_rollouts(trainer, *policies, None, ROLLOUTS, TRAINING)
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


def test_without_rows_no_step_is_taken_and_the_policy_stays(trainer: Trainer, policies: tuple[Policy, Policy]) -> None:
    before = {name: tensor.clone() for name, tensor in load_weights(trainer, policies[0]).items()}
    assert train(trainer, policies[0], GrpoObjective(), []) == []
    assert trainer.steps_taken == 0
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def load_weights(trainer: Trainer, policy: Policy) -> dict[str, torch.Tensor]:
    trainer.load(policy, TRAINING)
    return dict(trainer.model.state_dict())


def set_random_head(trainer: Trainer, policy: Policy) -> None:
    """Hold a critic whose values differ; a new one has a head of zeros."""
    trainer.load(policy, TRAINING, Head.value)
    with torch.no_grad():
        trainer.model.score.weight.copy_(torch.linspace(-1, 1, 64).view(1, 64))


@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_critic_gives_the_same_values_in_all_layouts_and_one_for_each_token(
    trainer: Trainer, policies: tuple[Policy, Policy], layout: str
) -> None:
    set_random_head(trainer, policies[0])
    groups = [Group([3, 7, 9], [[20, 21, 22], [30]]), Group([4, 8], [[23, 24]])]
    found = {}
    for name in (layout, "padded"):
        trainer.scorer.layout = name
        with torch.no_grad():
            found[name] = trainer.scorer(groups)
    assert found[layout].owners.tolist() == found["padded"].owners.tolist() == [0, 0, 0, 1, 2, 2]
    torch.testing.assert_close(found[layout].values, found["padded"].values, rtol=0, atol=1e-5)
    # The value before the first token depends on the prompt alone.
    assert found[layout].values[0] == pytest.approx(float(found[layout].values[3]), abs=1e-5)
    assert found[layout].values[0] != pytest.approx(float(found[layout].values[1]), abs=1e-3)
    # The weights are no longer those of the policy.
    trainer.release()


def make_ppo_rows(
    trainer: Trainer, policies: tuple[Policy, Policy], objective: PpoObjective, critic: Policy | None = None
) -> list[Example]:
    scored = score_rollouts(
        trainer, *policies, critic or policies[0], ROLLOUTS, TRAINING, objective.critic is CriticModel.shared
    )
    return [from_rollout(row) for row in add_advantages(scored, objective)]


def train_ppo(
    trainer: Trainer,
    policy: Policy,
    objective: PpoObjective,
    rows: list[Example],
    truths: PretrainingRows | None = None,
) -> list[dict[str, float]]:
    training = dataclasses.replace(TRAINING, epochs=20)
    job = TrainingJob(policy, policy, objective, training, seed=0, iteration=1, critic=policy)
    return list(trainer.train(job, RowStream.whole(rows), truths))


@pytest.mark.parametrize("critic", CriticModel)
def test_in_the_first_step_of_ppo_the_losses_are_those_of_whitened_advantages_and_of_old_values(
    trainer: Trainer, policies: tuple[Policy, Policy], critic: CriticModel
) -> None:
    objective = PpoObjective(kl_weight=0.1, critic=critic)
    rows = make_ppo_rows(trainer, policies, objective)
    first = rows[0].completions[0].rollout
    assert first is not None
    # A new critic has a head of zeros, so the returns are the advantages.
    assert set(first.values) == {0.0}
    assert first.returns == first.advantages
    job = TrainingJob(
        policies[0],
        policies[0],
        objective,
        dataclasses.replace(TRAINING, batch_size=12, epochs=1),
        seed=0,
        iteration=1,
        critic=policies[0],
    )
    [step] = trainer.train(job, RowStream.whole(rows))
    advantages = []
    for row in rows:
        rollout = row.completions[0].rollout
        assert rollout is not None
        advantages += rollout.advantages
    assert step["loss"] == pytest.approx(0.0, abs=1e-5)
    assert step["value_loss"] == pytest.approx(sum(value**2 for value in advantages) / len(advantages) / 2, abs=1e-5)
    assert step["explained_variance"] == pytest.approx(0.0, abs=1e-5)
    assert "ptx_nll" not in step


@pytest.mark.parametrize("critic", CriticModel)
def test_values_of_another_critic_are_refused_at_the_first_step(
    trainer: Trainer, policies: tuple[Policy, Policy], critic: CriticModel
) -> None:
    rows = []
    objective = PpoObjective(critic=critic)
    for row in make_ppo_rows(trainer, policies, objective):
        rollout = row.completions[0].rollout
        assert rollout is not None
        rows.append(from_rollout(dataclasses.replace(rollout, values=[0.5] * len(rollout.values))))
    with pytest.raises(TrainingError, match=r"step 0: V − V_old of .* is -0.5, expected 0 within 0.001"):
        train_ppo(trainer, policies[0], objective, rows)
    trainer.release()


def test_a_large_epsilon_of_adam_makes_the_first_step_small(trainer: Trainer, policies: tuple[Policy, Policy]) -> None:
    rows = make_rows(trainer, policies, GrpoObjective())
    moved = []
    for epsilon in (1e-8, 1.0):
        training = dataclasses.replace(TRAINING, batch_size=12, epochs=2, adam_epsilon=epsilon)
        steps = train(trainer, policies[0], GrpoObjective(), rows, training)
        moved.append(steps[1]["kl_to_opponent"])
    assert moved[0] > 100 * moved[1]


@pytest.mark.parametrize("critic", CriticModel)
def test_the_critic_learns_to_explain_the_returns(
    trainer: Trainer, policies: tuple[Policy, Policy], critic: CriticModel
) -> None:
    objective = PpoObjective(kl_weight=0.0, value_weight=0.5, value_clip=10.0, critic_learning_rate=3e-3, critic=critic)
    rows = make_ppo_rows(trainer, (policies[0], policies[0]), objective)
    steps = train_ppo(trainer, policies[0], objective, rows)
    assert steps[-1]["value_loss"] < 0.5 * steps[0]["value_loss"]
    assert steps[-1]["explained_variance"] > 0.3
    if critic is CriticModel.separate:
        assert bool(trainer.critic_model.score.weight.any())
    else:
        # The promoted policy is the language model alone.
        assert bool(trainer.critic_model.weight.any())
        assert {name for name in trainer.model.state_dict() if "value_head" in name} == set()


def test_truths_beside_the_answers_keep_their_likelihood(trainer: Trainer, policies: tuple[Policy, Policy]) -> None:
    rows = make_ppo_rows(trainer, policies, PpoObjective())
    truths = [Example(f"prompt {i}", [3 + i, 7, 9], (Completion([50 + i, 51, 0], True),)) for i in range(3)]
    nll = {}
    for weight in (0.0, 1.0):
        objective = PpoObjective(ptx_weight=weight, ptx_rows=2)
        taken = PretrainingRows(truths, seed=0, iteration=1, count=2)
        steps = train_ppo(trainer, policies[0], objective, rows, taken)
        nll[weight] = steps[-1]["ptx_nll"]
        assert steps[0]["reward"] == pytest.approx(0.5)
    assert nll[1.0] < nll[0.0] - 0.5


def test_the_gradient_with_truths_is_the_sum_of_the_gradients_of_both_parts(
    trainer: Trainer, policies: tuple[Policy, Policy]
) -> None:
    from spin.objectives.completion_logps import Member
    from spin.objectives.objective import StepBatch
    from spin.objectives.registry import make_objective

    objective = PpoObjective(ptx_weight=0.7)
    rows = make_ppo_rows(trainer, policies, objective)[:1]
    truth = dataclasses.replace(Example("truth", [3, 7, 9], (Completion([50, 51], True),)), pretraining=True)
    trainer.load(policies[0], TRAINING)
    answer_ids, truth_ids = rows[0].completions[0].ids, truth.completions[0].ids
    groups = [Group(rows[0].prompt_ids, [answer_ids, truth_ids])]

    def compute_gradient(members: list[Member], pretraining: list[Example]) -> torch.Tensor:
        loss_of = make_objective(objective)
        batch = StepBatch(rows, loss_of, pretraining)
        output = loss_of.compute_loss(batch, trainer.scorer(groups), members, None)
        parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        return torch.cat([part.flatten() for part in torch.autograd.grad(output.loss, parameters)])

    answer_member, truth_member = Member(rows[0], (0,)), Member(truth, (1,))
    both = compute_gradient([answer_member, truth_member], [truth])
    answer = compute_gradient([answer_member], [])
    logps = trainer.scorer(groups).sums()
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    likelihood = torch.autograd.grad(-0.7 * logps[1] / len(truth_ids), parameters)
    expected = answer + torch.cat([part.flatten() for part in likelihood])
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-6)
    assert float(answer.abs().max()) > 0


def test_truths_are_taken_in_an_order_of_the_iteration_and_again_after_the_last_one() -> None:
    truths = [Example(str(index), [1], (Completion([2], True),)) for index in range(5)]
    rows = PretrainingRows(truths, seed=0, iteration=2, count=2)
    names = [row.name for step in range(1, 6) for row in rows.take(step)]
    assert sorted(names[:5]) == ["0", "1", "2", "3", "4"]
    assert names[:5] == names[5:]
    assert [row.name for row in rows.take(2)] == names[2:4]
    assert all(row.pretraining for row in rows.take(3))
    other = [row.name for row in PretrainingRows(truths, seed=0, iteration=3, count=5).take(1)]
    assert other != names[:5]


@pytest.mark.parametrize("critic", CriticModel)
def test_ppo_that_continues_from_a_saved_state_ends_with_the_same_bits(
    trainer: Trainer, policies: tuple[Policy, Policy], tmp_path: Path, critic: CriticModel
) -> None:
    objective = PpoObjective(ptx_weight=0.5, ptx_rows=2, critic=critic)
    rows = make_ppo_rows(trainer, policies, objective)
    truths = [Example(f"prompt {i}", [3 + i, 7, 9], (Completion([50 + i, 51, 0], True),)) for i in range(3)]
    training = dataclasses.replace(TRAINING, checkpoint_every="4", keep=5)
    job = TrainingJob(
        policies[0], policies[0], objective, training, 0, 1, states=str(tmp_path / "states"), critic=policies[0]
    )

    def run(resume_step: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        taken = PretrainingRows(truths, seed=0, iteration=1, count=2)
        steps = list(trainer.train(dataclasses.replace(job, resume_step=resume_step), RowStream.whole(rows), taken))
        weights = dict(trainer.model.state_dict())
        weights |= {f"critic {name}": tensor for name, tensor in trainer.critic_model.state_dict().items()}
        return steps, {name: tensor.clone() for name, tensor in weights.items()}

    steps, weights = run(0)
    assert [step["step"] for step in steps if "saved" in step] == [4, 8]
    resumed_steps, resumed = run(4)
    assert [step["step"] for step in resumed_steps] == [5, 6, 7, 8, 9]
    assert trainer.steps_taken == 9
    assert resumed.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed[name]), name
    for name in ("loss", "value_loss", "explained_variance", "ptx_nll"):
        assert resumed_steps[-1][name] == steps[-1][name]


def test_a_saved_state_with_another_optimizer_is_refused(
    trainer: Trainer, policies: tuple[Policy, Policy], tmp_path: Path
) -> None:
    objective = PpoObjective(critic=CriticModel.shared)
    rows = RowStream.whole(make_ppo_rows(trainer, policies, objective))
    training = dataclasses.replace(TRAINING, checkpoint_every="4", steps=5)
    job = TrainingJob(
        policies[0], policies[0], objective, training, 0, 1, states=str(tmp_path / "states"), critic=policies[0]
    )
    list(trainer.train(job, rows))
    # As if the head had an optimizer of its own.
    file = state_folder(tmp_path / "states", 4) / "optimizer.bin"
    state = torch.load(file)
    state["param_groups"].pop()
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"step-000004 does not fit \(.*parameter groups\); expected one of this"):
        list(trainer.train(dataclasses.replace(job, resume_step=4), rows))
    trainer.release()


def write_head(folder: Path) -> Policy:
    """A head whose values differ, as of an earlier iteration."""
    head = torch.nn.Linear(64, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, 64).view(1, 64))
    return Policy(str(folder), write_value_head(head.weight, folder))


def test_a_head_of_another_size_or_with_altered_files_is_refused(
    trainer: Trainer, policies: tuple[Policy, Policy], tmp_path: Path
) -> None:
    critic = write_head(tmp_path / "critic")
    with pytest.raises(CheckpointError, match=r"the head has the shape \(1, 64\), the policy needs \(1, 32\)"):
        load_value_head(torch.nn.Linear(32, 1, bias=False), tmp_path / "critic")
    with pytest.raises(CheckpointError, match="critic was altered"):
        trainer.load(policies[0], TRAINING, critic_head=dataclasses.replace(critic, digest="0" * 64))
    trainer.release()


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_values_of_a_head_on_the_policy_are_those_of_a_critic_with_the_same_weights(
    trainer: Trainer, policies: tuple[Policy, Policy], tmp_path: Path, layout: str
) -> None:
    groups = [Group([3, 7, 9], [[20, 21, 22], [30]]), Group([4, 8], [[23, 24]])]
    set_random_head(trainer, policies[0])
    with torch.no_grad():
        expected = trainer.scorer(groups)
    trainer.release()
    logps = trainer.score_tokens(policies[0], groups, TRAINING)
    training = dataclasses.replace(TRAINING, layout=Layout[layout])
    found = score_with_values(trainer, policies[0], write_head(tmp_path / "critic"), groups, training)
    for numbers, (group, place), (first, last) in [
        (expected.values[:3].tolist(), (0, 0), (0, 3)),
        (expected.values[3:4].tolist(), (0, 1), (0, 1)),
        (expected.values[4:].tolist(), (1, 0), (0, 2)),
    ]:
        assert found[1][group][place][first:last] == pytest.approx(numbers, abs=1e-5)
        assert found[0][group][place] == pytest.approx(logps[group][place], abs=1e-5)


def test_the_gradient_of_a_step_with_a_head_is_that_of_the_policy_plus_that_of_the_values(
    trainer: Trainer, policies: tuple[Policy, Policy], tmp_path: Path
) -> None:
    from spin.objectives.completion_logps import Member
    from spin.objectives.objective import StepBatch
    from spin.objectives.ppo import PpoLoss
    from spin.training.critic import CriticHead

    objective = PpoObjective(value_weight=0.7, critic=CriticModel.shared, aggregate=Aggregate.sequence)
    critic = write_head(tmp_path / "critic")
    rows = make_ppo_rows(trainer, policies, objective, critic)[:1]
    rollout = rows[0].completions[0].rollout
    assert rollout is not None
    # The values move on from the old ones, but less than value_clip: L_V = ½ mean (V − ret)².
    old_values = [value - 0.1 for value in rollout.values]
    rows = [from_rollout(dataclasses.replace(rollout, values=old_values))]
    loss_of = PpoLoss(objective)
    batch, members = StepBatch(rows, loss_of), [Member(rows[0], (0,))]
    groups = [Group(rows[0].prompt_ids, [rows[0].completions[0].ids])]
    trainer.load(policies[0], TRAINING, critic_head=critic)
    scorer = trainer.scorer
    parameters = [*trainer.model.parameters(), scorer.value_head.weight]

    def compute_gradient(loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    outputs = scorer(groups)
    head = CriticHead(trainer.accelerator, loss_of, Dtype.float32, scorer.value_head)
    value_loss = head.loss_in_pass(batch, outputs, members, check_start=False)
    both = compute_gradient(loss_of.compute_loss(batch, outputs, members, None).loss + value_loss)
    policy_loss = loss_of.compute_loss(batch, trainer.scorer(groups), members, None).loss
    expected = compute_gradient(policy_loss)
    returns = torch.tensor(rollout.returns)
    by_hand = 0.7 * 0.5 * ((scorer(groups).state_values - returns) ** 2).mean()
    assert value_loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    value_gradient = compute_gradient(by_hand)
    torch.testing.assert_close(both, expected + value_gradient, rtol=1e-4, atol=1e-6)
    # The values move the trunk, and the policy's loss does not move the head.
    assert float(value_gradient[:-64].abs().max()) > 1e-3
    assert not bool(expected[-64:].any())
    trainer.release()
