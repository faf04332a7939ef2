"""The training step on a tiny real model."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spin.config.objective import (
    CustomObjective,
    DpoObjective,
    IpoObjective,
    KtoObjective,
    KtoPairObjective,
    PsipoObjective,
    SftObjective,
    SlicLink,
    SlicObjective,
    SpaceObjective,
    SpinLink,
    SpinObjective,
    SppoObjective,
)
from spin.config.objective_base import ObjectiveConfig
from spin.config.training import Dtype, LrSchedule, Optimizer, Sharding, TrainingConfig
from spin.data.examples import Completion, Example
from spin.errors import TrainingError
from spin.models.forward import GroupLogps
from spin.models.model_size import count_weights
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.objectives.kto import choose_mismatched
from spin.training.batches import epoch_order
from spin.training.checkpoint import usable_states
from spin.training.job import TrainingJob
from spin.training.pass_budget import TrainedModel
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.tiny import write_model

ROWS = [
    Example(
        f"prompt {i}",
        [3 + i, 7, 9][: 2 + i % 2],
        (
            Completion([20 + i, 21, 0][: 2 + i % 2], True, win_rate=1.0),
            Completion([40, 41 + i, 42, 0][: 1 + i % 4], False, win_rate=0.0),
        ),
    )
    for i in range(7)
]
TRUTHS = [dataclasses.replace(row, completions=row.completions[:1]) for row in ROWS]
TRAINING = TrainingConfig(
    learning_rate=1e-3, epochs=2, batch_size=4, micro_batch_tokens=24, max_length=16, warmup_ratio=0.0
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return write_model(tmp_path_factory.mktemp("model") / "policy", seed=0)


def scored(trainer: Trainer, policy: Policy, rows: list[Example]) -> list[Example]:
    groups = [Group(row.prompt_ids, [half.ids for half in row.completions]) for row in rows]
    return [
        row.with_reference(logps)
        for row, logps in zip(
            rows, trainer.score(policy, groups, dataclasses.replace(TRAINING, micro_batch_tokens=40)), strict=True
        )
    ]


def make_job(
    policy: Policy, reference: Policy, objective: ObjectiveConfig, training: TrainingConfig = TRAINING
) -> TrainingJob:
    return TrainingJob(policy, reference, objective, training, seed=0, iteration=1)


def run(
    trainer: Trainer, policy: Policy, objective: ObjectiveConfig, rows: list[Example] = ROWS, **changes: object
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    job = make_job(policy, policy, objective, dataclasses.replace(TRAINING, **changes))
    steps = list(trainer.train(job, RowStream.whole(scored(trainer, policy, rows))))
    return steps, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


START = {
    "spin logistic": (SpinObjective(beta=1.0), math.log(2)),
    "spin hinge": (SpinObjective(beta=1.0, link=SpinLink.hinge), 1.0),
    "spin exponential": (SpinObjective(beta=1.0, link=SpinLink.exponential), 1.0),
    "dpo": (DpoObjective(beta=0.3), math.log(2)),
    "dpo smoothed": (DpoObjective(beta=0.3, label_smoothing=0.2), math.log(2)),
    "ipo": (IpoObjective(beta=0.5), 1.0),
    "ipo by token": (IpoObjective(beta=0.1, length_normalize=True), 25.0),
    "slic margin": (SlicObjective(link=SlicLink.margin), 1.0),
    "kto": (KtoObjective(desirable_weight=2.0, undesirable_weight=1.0), 0.75),
    "kto_pair": (KtoPairObjective(), 0.5),
    "psipo": (PsipoObjective(tau=0.1), 25.0),
    "sppo": (SppoObjective(beta=0.1), 25.0),
    "space": (SpaceObjective(mu=2.0), 1.909543),
    "custom": (CustomObjective(_target_="spin.objectives.losses.dpo", parameters={"beta": 0.2}), math.log(2)),
}


@pytest.mark.parametrize("name", START)
def test_the_first_step_of_an_iteration_has_the_loss_of_a_player_that_is_its_reference(
    policy: Policy, name: str
) -> None:
    objective, expected = START[name]
    steps, _ = run(Trainer(Dtype.float32), policy, objective)
    assert steps[0]["loss"] == pytest.approx(expected, abs=1e-3)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert [s["step"] for s in steps] == [1, 2, 3, 4]  # 7 rows in batches of 4, twice
    assert steps[-1]["rewards/margins"] > 0


@pytest.mark.parametrize("name", [*START, "slic calibrated"])
def test_rows_scored_with_other_weights_are_refused_by_name(policy: Policy, name: str) -> None:
    objective = START[name][0] if name in START else SlicObjective()
    trainer = Trainer(Dtype.float32)
    rows = scored(trainer, policy, ROWS)
    real, generated = rows[5].completions
    rows[5] = rows[5].with_reference([real.reference_logp + 0.01, generated.reference_logp])
    job = make_job(policy, policy, objective, dataclasses.replace(TRAINING, batch_size=7))
    with pytest.raises(TrainingError, match="step 0: .* of prompt 5 is -0.01"):
        list(trainer.train(job, RowStream.whole(rows)))


def test_another_reference_than_the_start_is_no_reason_to_refuse(policy: Policy, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=1)
    trainer = Trainer(Dtype.float32)
    rows = RowStream.whole(scored(trainer, base, ROWS))
    steps = list(trainer.train(make_job(policy, base, DpoObjective()), rows))
    assert abs(steps[0]["rewards/margins"]) > 0.01


OBJECTIVES = [
    SpinObjective(beta=0.5),
    SftObjective(),
    KtoObjective(beta=0.5),
    KtoPairObjective(beta=0.5),
    DpoObjective(beta=0.5, sft_weight=0.3),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_the_micro_batch_size_changes_no_number(policy: Policy, objective: ObjectiveConfig) -> None:
    rows = TRUTHS if isinstance(objective, SftObjective) else ROWS
    first = []
    for size in (1, 2, 8):  # in pairs: 1 token is less than any of them, and 12 are at most two
        steps, _ = run(
            Trainer(Dtype.float32),
            policy,
            objective,
            rows,
            batch_size=7,
            epochs=2,
            micro_batch_tokens={1: 1, 2: 24, 8: 1000}[size],
        )
        first.append(
            [{key: value for key, value in step.items() if key != "rewards/accuracies"} for step in steps]
        )  # at the start a margin's sign is rounding
    assert first[0][0]["grad_norm"] > 0.1
    assert first[1][0] == pytest.approx(first[0][0], rel=1e-4, abs=1e-5)
    assert first[2][0] == pytest.approx(first[0][0], rel=1e-4, abs=1e-5)


def kto_steps(policy: Policy, base: Policy, tokens: int) -> list[dict[str, float]]:
    """Against a base that is another model, so that z is not 0."""
    trainer = Trainer(Dtype.float32)
    training = dataclasses.replace(TRAINING, micro_batch_tokens=tokens)
    job = make_job(policy, base, KtoObjective(beta=0.5), training)
    return list(trainer.train(job, RowStream.whole(scored(trainer, base, ROWS))))


def test_z_is_the_same_for_any_micro_batch_and_is_that_of_the_whole_step(policy: Policy, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=1)
    one, two, eight = (kto_steps(policy, base, tokens)[0] for tokens in (1, 24, 1000))
    assert one["kl"] > 0.1
    assert [two["kl"], eight["kl"]] == pytest.approx([one["kl"]] * 2, rel=1e-5)
    trainer = Trainer(Dtype.float32)
    others = choose_mismatched(ROWS)
    groups = [Group(other.prompt_ids, [half.ids for half in other.completions]) for other in others]
    step = epoch_order(ROWS, 0, 1, 0)[:4]
    now, then = trainer.score(policy, groups, TRAINING), trainer.score(base, groups, TRAINING)
    ratios = [a - b for i in step for a, b in zip(now[i], then[i], strict=True)]
    assert one["kl"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)


def test_sft_weight_adds_the_token_mean_of_the_truth(policy: Policy) -> None:
    to_plain, weighted = (
        run(Trainer(Dtype.float32), policy, SpinObjective(sft_weight=weight), batch_size=7)[0][0]
        for weight in (0.0, 0.5)
    )
    nll = -weighted["logps/chosen"] * 7 / sum(len(row.completions[0].ids) for row in ROWS)
    assert weighted["loss"] == pytest.approx(to_plain["loss"] + 0.5 * nll, rel=1e-5)


@pytest.mark.parametrize("optimizer", list(Optimizer))
@pytest.mark.parametrize("schedule", list(LrSchedule))
def test_every_optimizer_and_schedule_lowers_the_loss(
    policy: Policy, optimizer: Optimizer, schedule: LrSchedule
) -> None:
    steps, _ = run(
        Trainer(Dtype.float32),
        policy,
        SftObjective(),
        TRUTHS,
        optimizer=optimizer,
        lr_schedule=schedule,
        warmup_ratio=0.25,
        batch_size=7,
        epochs=4,
    )
    assert steps[0]["learning_rate"] == 0  # of 4 steps one warms up
    assert steps[1]["learning_rate"] == pytest.approx(1e-3)
    assert (steps[-1]["learning_rate"] < 1e-3) == (schedule is not LrSchedule.constant)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_a_number_of_steps_takes_the_place_of_epochs(policy: Policy) -> None:
    # Seven rows in batches of four: two steps an epoch.
    steps, _ = run(Trainer(Dtype.float32), policy, DpoObjective(), steps=5, epochs=1)
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5]
    assert {entry["steps"] for entry in steps} == {5}


def test_the_same_stage_twice_gives_the_same_bits(policy: Policy) -> None:
    first, second = (run(Trainer(Dtype.float32), policy, SpinObjective(beta=1.0))[1] for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "objective", [SpinObjective(beta=1.0), KtoObjective(beta=1.0)], ids=lambda objective: objective.name
)
def test_a_stage_that_goes_on_from_a_saved_state_ends_with_the_same_bits(
    policy: Policy, tmp_path: Path, objective: ObjectiveConfig
) -> None:
    training = dataclasses.replace(TRAINING, checkpoint_every="1", lr_schedule=LrSchedule.cosine)
    whole = Trainer(Dtype.float32)
    rows = scored(whole, policy, ROWS)
    job = dataclasses.replace(make_job(policy, policy, objective, training), states=str(tmp_path))
    steps = list(whole.train(job, RowStream.whole(rows)))
    assert ["saved" in step for step in steps] == [True, True, True, False]  # the last is exported at once
    assert usable_states(tmp_path, {str(step["step"]): step["saved"] for step in steps[:3]}) == ([1, 2, 3], [])
    resumed = Trainer(Dtype.float32)
    rest = list(resumed.train(dataclasses.replace(job, resume_step=2), RowStream.whole(rows)))
    assert rest == steps[2:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_sft_loss_is_the_token_mean_over_the_batch(policy: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    total = -sum(row.completions[0].reference_logp for row in scored(trainer, policy, TRUTHS))
    steps, _ = run(trainer, policy, SftObjective(), TRUTHS, batch_size=7)
    assert steps[0]["loss"] == pytest.approx(total / sum(len(row.completions[0].ids) for row in TRUTHS), rel=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert "kl" not in steps[0]


def test_a_loss_that_is_not_finite_stops_with_the_row_named(policy: Policy) -> None:
    trainer = Trainer(Dtype.float32)
    trainer.load(policy, TRAINING)
    with torch.no_grad():
        trainer.model.model.embed_tokens.weight[26] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        list(trainer.train(make_job(policy, policy, SftObjective()), RowStream.whole(TRUTHS)))


def test_the_budget_found_from_memory_knows_of_gradient_checkpointing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(Dtype.float32)
    weights = count_weights(Path(policy.path))
    monkeypatch.setattr(
        "spin.training.policy_scorer.free_memory", lambda device: 16 * weights + 6_000_000
    )  # weights, gradients and two moments, and 3 million bytes for tokens
    # Width 64, inner 128, 2 layers: a layer keeps 2·4·64 + 4·(4·64 + 2·128) = 2560 bytes a token,
    # and 4·3·128 + 4·4·64 = 2560 while it runs.
    assert trainer.find_token_budget(policy) == 3_000_000 // (2 * 2560 + 2560)
    assert trainer.find_token_budget(policy, checkpointing=True) == 3_000_000 // (
        2 * 4 * 64 + 2560 + 2560
    )  # its input for each layer, the rest of one
    assert trainer.token_budget == 532


def test_a_shared_model_takes_less_of_each_workers_memory_the_more_workers_there_are() -> None:
    shape = SimpleNamespace(vocab_size=10, hidden_size=5, num_hidden_layers=9, tie_word_embeddings=False)

    def held(
        sharding: Sharding, workers: int, trained: int = 0, base: Dtype = Dtype.float32, dtype: Dtype = Dtype.float32
    ) -> int:
        return TrainedModel(shape, 1000, trained, base).held_bytes(dtype, sharding, workers)

    assert held(Sharding.none, 8) == 4 * 4000  # weights, gradients, two moments
    assert [held(Sharding.full, workers) for workers in (2, 4, 8)] == [3 * 4000, 2 * 4000, 1.5 * 4000]
    # A frozen base of 1000 weights, and 10 trained values of 16 bytes.
    assert held(Sharding.none, 8, 10) == 4000 + 160
    assert held(Sharding.none, 8, 10, Dtype.bfloat16) == 2000 + 160
    assert held(Sharding.full, 4, 10, Dtype.bfloat16) == 2000 + 40 + (2000 + 160) // 4
    # In bfloat16: 900 weights of 2 bytes in nine layers, 100 of 4 bytes in embedding and head,
    # whose gradient takes 2 × 4 bytes a weight; that of a layer 2 × (2 + 4).
    assert held(Sharding.full, 4, dtype=Dtype.bfloat16) == 4000 + 1800 + 400 + 800 + 1200
    assert held(Sharding.none, 4, dtype=Dtype.bfloat16) == 4 * 4000


def test_a_step_in_bfloat16_sees_the_weights_that_the_step_before_it_left(policy: Policy) -> None:
    trainer = Trainer(Dtype.bfloat16)
    steps, _ = run(trainer, policy, SpinObjective(beta=1.0), batch_size=7, epochs=3)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert steps[1]["loss"] < steps[0]["loss"] / 2
    assert steps[2]["loss"] < steps[1]["loss"] / 2
    groups = [Group(row.prompt_ids, [half.ids for half in row.completions]) for row in ROWS]
    with torch.no_grad():
        assert torch.equal(
            trainer.scorer(groups).values,
            GroupLogps(trainer.model, Dtype.bfloat16, trainer.scorer.layout)(groups).values,
        )
