"""The training step on a tiny real model."""

import dataclasses
from pathlib import Path

import pytest
import torch

from spin.config import Dtype, LrSchedule, Optimizer, SftObjective, SpinLink, SpinObjective, TrainingConfig
from spin.model import Policy
from spin.objectives import spin_at_start
from spin.trainer import Example, Trainer, TrainingError, epoch_order
from tests.tiny import write_model

ROWS = [
    Example(f"prompt {i}", prompt_ids=[3 + i, 7, 9][: 2 + i % 2], real_ids=[20 + i, 21, 0][: 2 + i % 2], generated_ids=[40, 41 + i, 42, 0][: 1 + i % 4]) for i in range(7)
]
TRAINING = TrainingConfig(learning_rate=1e-3, epochs=2, batch_size=4, micro_batch_size=2, max_length=16, warmup_ratio=0.0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return write_model(tmp_path_factory.mktemp("model") / "policy", seed=0)


def scored(trainer: Trainer, policy: Policy, rows: list[Example]) -> list[Example]:
    real = trainer.score(policy, [(r.prompt_ids, r.real_ids) for r in rows], 3)
    generated = trainer.score(policy, [(r.prompt_ids, r.generated_ids or []) for r in rows], 3)
    return [dataclasses.replace(r, reference_real_logp=a, reference_generated_logp=b) for r, a, b in zip(rows, real, generated, strict=True)]


def run(trainer: Trainer, policy: Policy, objective: SpinObjective | SftObjective, **changes: object) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    steps = list(trainer.train(policy, scored(trainer, policy, ROWS), objective, dataclasses.replace(TRAINING, **changes), seed=0, iteration=1))
    return steps, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("link", list(SpinLink))
def test_the_first_step_of_an_iteration_has_the_loss_of_a_player_that_is_its_opponent(policy: Policy, link: SpinLink) -> None:
    steps, _ = run(Trainer(Dtype.float32), policy, SpinObjective(beta=1.0, link=link))
    assert steps[0]["loss"] == pytest.approx(spin_at_start(link.name), abs=1e-4)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert [s["step"] for s in steps] == [1, 2, 3, 4]  # 7 rows in batches of 4, twice
    assert steps[-1]["rewards/margins"] > 0


def test_pairs_scored_with_other_weights_are_refused_by_name(policy: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    rows = scored(trainer, policy, ROWS)
    rows[5] = dataclasses.replace(rows[5], reference_real_logp=rows[5].reference_real_logp + 0.01)
    with pytest.raises(TrainingError, match="step 0: .* of prompt 5 is -0.01"):
        list(trainer.train(policy, rows, SpinObjective(beta=0.1), dataclasses.replace(TRAINING, batch_size=7), seed=0, iteration=0))


@pytest.mark.parametrize("objective", [SpinObjective(beta=0.5), SftObjective()])
def test_the_micro_batch_size_changes_no_number(policy: Policy, objective: SpinObjective | SftObjective) -> None:
    trainer = Trainer(Dtype.float32)
    first = [run(trainer, policy, objective, batch_size=7, micro_batch_size=size)[0][0] for size in (1, 2, 8)]  # later steps amplify rounding
    assert first[0]["grad_norm"] > 0.1
    assert first[1] == pytest.approx(first[0], rel=1e-4, abs=1e-5)
    assert first[2] == pytest.approx(first[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("optimizer", list(Optimizer))
@pytest.mark.parametrize("schedule", list(LrSchedule))
def test_every_optimizer_and_schedule_lowers_the_loss(policy: Policy, optimizer: Optimizer, schedule: LrSchedule) -> None:
    steps, _ = run(Trainer(Dtype.float32), policy, SftObjective(), optimizer=optimizer, lr_schedule=schedule, warmup_ratio=0.25, batch_size=7, epochs=4)
    assert steps[0]["learning_rate"] == 0  # of 4 steps one warms up
    assert steps[1]["learning_rate"] == pytest.approx(1e-3)
    assert (steps[-1]["learning_rate"] < 1e-3) == (schedule is not LrSchedule.constant)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_same_stage_twice_gives_the_same_bits(policy: Policy) -> None:
    first, second = (run(Trainer(Dtype.float32), policy, SpinObjective(beta=1.0))[1] for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_stage_that_goes_on_from_a_saved_state_ends_with_the_same_bits(policy: Policy, tmp_path: Path) -> None:
    training = dataclasses.replace(TRAINING, checkpoint_every=1, lr_schedule=LrSchedule.cosine)
    whole = Trainer(Dtype.float32)
    rows = scored(whole, policy, ROWS)
    steps = list(whole.train(policy, rows, SpinObjective(beta=1.0), training, 0, 1, tmp_path))
    assert [step["saved"] for step in steps] == [True, True, True, False]  # the last is exported at once
    resumed = Trainer(Dtype.float32)
    rest = list(resumed.train(policy, rows, SpinObjective(beta=1.0), training, 0, 1, tmp_path, resume_step=2))
    assert rest == steps[2:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_sft_loss_is_the_token_mean_over_the_batch(policy: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    total = -sum(trainer.score(policy, [(r.prompt_ids, r.real_ids) for r in ROWS], 2))
    steps, _ = run(trainer, policy, SftObjective(), batch_size=7)
    assert steps[0]["loss"] == pytest.approx(total / sum(len(r.real_ids) for r in ROWS), rel=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_a_loss_that_is_not_finite_stops_with_the_row_named(policy: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    trainer.load(policy)
    with torch.no_grad():
        trainer.model.model.embed_tokens.weight[26] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        list(trainer.train(policy, ROWS, SftObjective(), TRAINING, seed=0, iteration=0))


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own() -> None:
    assert sorted(epoch_order(10, 0, 1, 0)) == list(range(10))
    assert epoch_order(10, 0, 1, 0).tolist() != epoch_order(10, 0, 1, 1).tolist()
