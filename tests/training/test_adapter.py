"""Training of low-rank adapters on a tiny real model."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from spin.config.adapter import AdapterConfig, AdapterMethod
from spin.config.objective import DpoObjective, SftObjective, SpinObjective
from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import CriticModel, GrpoObjective, PpoObjective, RlooObjective
from spin.config.training import Dtype
from spin.errors import CheckpointError
from spin.models.forward import GroupLogps
from spin.models.loading import load_policy
from spin.models.lora import inject_adapter, list_adapter_weights, make_lora_config, merge_adapter
from spin.models.packing import Group
from spin.models.policy import Adapter, Policy, policy_digest
from spin.models.policy_export import export_adapter
from spin.models.scalar_head import load_reward_model
from spin.training.job import TrainingJob
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.adapters import LORA
from tests.tiny import write_model
from tests.training.test_rollout_training import make_ppo_rows, make_rows
from tests.training.test_trainer import ROWS, START, TRAINING, TRUTHS

GROUPS = [Group(row.prompt_ids, [half.ids for half in row.completions]) for row in ROWS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return write_model(tmp_path_factory.mktemp("model") / "base", seed=0)


def make_job(policy: Policy, objective: ObjectiveConfig, **changes: object) -> TrainingJob:
    training = dataclasses.replace(TRAINING, learning_rate=1e-2)
    return dataclasses.replace(TrainingJob(policy, policy, objective, training, 0, 0), **changes)


def score_rows(trainer: Trainer, policy: Policy) -> list:
    scores = trainer.score(policy, GROUPS, TRAINING)
    return [row.with_reference(logps) for row, logps in zip(ROWS, scores, strict=True)]


def train(trainer: Trainer, job: TrainingJob, rows: list) -> list[dict]:
    return list(trainer.train(job, RowStream.whole(rows)))


def export(trainer: Trainer, base: Policy, folder: Path) -> Policy:
    digest = export_adapter(trainer.model, folder, base, base.path)
    return Policy(str(folder), digest, Adapter(str(folder), digest, base))


@pytest.mark.parametrize("name", START)
def test_the_first_step_of_a_new_adapter_has_the_loss_of_a_player_that_is_its_reference(
    base: Policy, name: str
) -> None:
    objective, loss = START[name]
    trainer = Trainer(Dtype.float32, adapter=LORA)
    first, *_ = train(trainer, make_job(base, objective), score_rows(trainer, base))
    assert first["loss"] == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize("objective", [GrpoObjective(), RlooObjective()])
def test_the_first_step_of_a_policy_gradient_is_that_of_all_weights(base: Policy, objective: GrpoObjective) -> None:
    found = []
    for adapter in (None, LORA):
        trainer = Trainer(Dtype.float32, adapter=adapter)
        rows = make_rows(trainer, (base, base), objective)
        metrics = train(trainer, make_job(base, objective), rows)
        found.append(metrics[0]["loss"])
        # The adapter is trained: later steps differ from the first.
        assert metrics[-1]["loss"] != metrics[0]["loss"]
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_before_the_first_step_the_policy_is_its_base_bit_for_bit(base: Policy) -> None:
    trainer = Trainer(Dtype.float32, adapter=LORA)
    whole = Trainer(Dtype.float32)
    padded = dataclasses.replace(TRAINING, layout=TRAINING.layout.padded)
    assert trainer.score(base, GROUPS, padded) == whole.score(base, GROUPS, padded)


def test_only_a_and_b_are_trained_and_the_base_keeps_its_bits(base: Policy) -> None:
    before = policy_digest(Path(base.path))
    trainer = Trainer(Dtype.float32, adapter=LORA)
    trainer.load(base, TRAINING)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    train(trainer, make_job(base, SftObjective()), TRUTHS)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if ".lora_" in name}
    # 2 layers of 7 targets: rank × (in + out) each.
    count = 2 * 4 * (4 * (64 + 64) + 3 * (64 + 128))
    assert sum(weight.numel() for _, weight in list_adapter_weights(trainer.model)) == count
    assert policy_digest(Path(base.path)) == before


def test_the_next_stage_starts_from_the_promoted_adapter_and_its_reference_is_the_adapter(
    base: Policy, tmp_path: Path
) -> None:
    trainer = Trainer(Dtype.float32, adapter=LORA)
    train(trainer, make_job(base, SpinObjective()), score_rows(trainer, base))
    first = export(trainer, base, tmp_path / "first")
    # A trainer that was restarted loads what the other one holds.
    scores = Trainer(Dtype.float32, adapter=LORA).score(first, GROUPS, TRAINING)
    assert trainer.score(first, GROUPS, TRAINING) == scores
    assert scores != trainer.score(base, GROUPS, TRAINING)
    metrics = train(trainer, make_job(first, SpinObjective()), score_rows(trainer, first))
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    # With the base as the reference, the first margin is what the first stage learned.
    rows = score_rows(trainer, base)
    metrics = train(trainer, make_job(first, DpoObjective(), reference=base), rows)
    assert metrics[0]["loss"] < math.log(2) - 0.01


def test_merged_weights_peft_and_the_trainer_give_the_same_log_probabilities(base: Policy, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer = Trainer(Dtype.float32, adapter=LORA)
    train(trainer, make_job(base, SftObjective()), TRUTHS)
    policy = export(trainer, base, tmp_path / "adapter")
    trainer.model.save_pretrained(tmp_path / "merged", state_dict=merge_adapter(trainer.model, None))
    merged = Policy(str(tmp_path / "merged"), policy_digest(tmp_path / "merged"))
    expected = trainer.score(policy, GROUPS, TRAINING)
    found = Trainer(Dtype.float32).score(merged, GROUPS, TRAINING)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), policy.path).eval()
    for group, logps, merged_logps in zip(GROUPS, expected, found, strict=True):
        for completion, logp, merged_logp in zip(group.completions, logps, merged_logps, strict=True):
            ids = torch.tensor([[*group.prompt_ids, *completion]])
            with torch.no_grad():
                table = model(input_ids=ids).logits[0].log_softmax(-1)
            places = range(len(group.prompt_ids) - 1, ids.shape[1] - 1)
            peft_logp = sum(float(table[place, ids[0, place + 1]]) for place in places)
            assert logp == pytest.approx(peft_logp, abs=1e-4 * len(completion))
            assert merged_logp == pytest.approx(peft_logp, abs=1e-4 * len(completion))


def test_the_reference_of_a_second_stage_is_that_of_the_second_adapter_that_trl_keeps(
    base: Policy, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import use_adapter

    trainer = Trainer(Dtype.float32, adapter=LORA)
    train(trainer, make_job(base, SftObjective()), TRUTHS)
    first = export(trainer, base, tmp_path / "first")
    scores = trainer.score(first, GROUPS, TRAINING)
    base_scores = trainer.score(base, GROUPS, TRAINING)
    # As DPOTrainer does when it trains an adapter again: its copy "ref" stays as it was.
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), first.path, is_trainable=True)
    model.load_adapter(first.path, adapter_name="ref")
    model.eval()
    for name, weight in model.named_parameters():
        if ".lora_B.default." in name:
            weight.data += 1.0
    for adapter, expected in (("ref", scores), (None, base_scores)):
        for group, logps in zip(GROUPS, expected, strict=True):
            for completion, logp in zip(group.completions, logps, strict=True):
                ids = torch.tensor([[*group.prompt_ids, *completion]])
                with torch.no_grad(), use_adapter(model, adapter):
                    table = model(input_ids=ids).logits[0].log_softmax(-1)
                places = range(len(group.prompt_ids) - 1, ids.shape[1] - 1)
                found = sum(float(table[place, ids[0, place + 1]]) for place in places)
                assert found == pytest.approx(logp, abs=1e-4 * len(completion))


def test_an_adapter_is_merged_in_float32_where_a_sum_in_bfloat16_would_lose_it(base: Policy) -> None:
    settings = dataclasses.replace(LORA, base_dtype=Dtype.bfloat16)
    trainer = Trainer(Dtype.bfloat16, adapter=settings)
    trainer.load(base, TRAINING)
    # An update of 1/1000 of a weight is below the precision of bfloat16, which is 1/256.
    name = "model.layers.0.self_attn.q_proj"
    module = trainer.model.get_submodule(name)
    weight = module.base_layer.weight
    module.lora_A.default.weight.data.zero_()
    module.lora_A.default.weight.data[0, 0] = 1.0
    module.lora_B.default.weight.data[0, 0] = 1e-3 * abs(float(weight[0, 0])) / module.scaling["default"]
    merged = merge_adapter(trainer.model, None)[f"{name}.weight"]
    update = merged - weight.float()
    assert merged.dtype == torch.float32
    assert float(update[0, 0]) == pytest.approx(1e-3 * abs(float(weight[0, 0])), rel=1e-3)
    assert int(update.count_nonzero()) == 1
    assert torch.equal(merged.bfloat16(), weight)


def test_an_adapter_that_is_not_finite_is_not_promoted(base: Policy, tmp_path: Path) -> None:
    trainer = Trainer(Dtype.float32, adapter=LORA)
    trainer.load(base, TRAINING)
    _, weight = next(list_adapter_weights(trainer.model))
    weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="lora_A.weight is not finite"):
        export(trainer, base, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_stage_that_goes_on_from_a_saved_state_ends_with_the_same_bits_and_saves_no_base(
    base: Policy, tmp_path: Path
) -> None:
    training = dataclasses.replace(TRAINING, learning_rate=1e-2, checkpoint_every="2", keep=3)
    job = make_job(base, SpinObjective(), training=training, states=str(tmp_path))
    trainer = Trainer(Dtype.float32, adapter=LORA)
    rows = score_rows(trainer, base)
    whole = [metrics["loss"] for metrics in train(trainer, job, rows)]
    expected = {name: weight.clone() for name, weight in list_adapter_weights(trainer.model)}
    # 4 bytes for each value of A and B, and a header; the base has ten times as many.
    count = sum(weight.numel() for weight in expected.values())
    assert (tmp_path / "step-000002" / "model.safetensors").stat().st_size < 4 * count + 10_000

    again = Trainer(Dtype.float32, adapter=LORA)
    rest = train(again, dataclasses.replace(job, resume_step=2), rows)
    assert [metrics["loss"] for metrics in rest] == whole[2:]
    for name, weight in list_adapter_weights(again.model):
        assert torch.equal(weight, expected[name])


@pytest.mark.parametrize("critic", CriticModel)
def test_ppo_trains_adapter_and_critic_and_goes_on_from_a_saved_state_with_the_same_bits(
    base: Policy, tmp_path: Path, critic: CriticModel
) -> None:
    objective = PpoObjective(critic=critic, critic_learning_rate=1e-2)
    training = dataclasses.replace(TRAINING, learning_rate=1e-2, batch_size=4, checkpoint_every="2", keep=3)
    job = make_job(base, objective, training=training, states=str(tmp_path), critic=base)
    trainer = Trainer(Dtype.float32, adapter=LORA)
    rows = make_ppo_rows(trainer, (base, base), objective)
    whole = train(trainer, job, rows)
    assert whole[0]["clip_fraction"] == 0
    expected = {name: weight.clone() for name, weight in list_adapter_weights(trainer.model)}
    expected_critic = {name: weight.clone() for name, weight in trainer.critic_model.state_dict().items()}
    assert any(bool(weight.any()) for name, weight in expected_critic.items() if name in ("weight", "score.weight"))
    if critic is CriticModel.separate:
        # All weights of the critic are trained, and it has no adapter.
        start = load_reward_model(Path(base.path)).state_dict()
        assert expected_critic.keys() == start.keys()
        assert not any(torch.equal(weight, start[name]) for name, weight in expected_critic.items())

    again = Trainer(Dtype.float32, adapter=LORA)
    rest = train(again, dataclasses.replace(job, resume_step=2), rows)
    assert [metrics["value_loss"] for metrics in rest] == [metrics["value_loss"] for metrics in whole[2:]]
    for name, weight in again.critic_model.state_dict().items():
        assert torch.equal(weight, expected_critic[name]), name
    for name, weight in list_adapter_weights(again.model):
        assert torch.equal(weight, expected[name])


def test_at_full_rank_the_first_gradient_of_b_is_that_of_the_weights_times_a(base: Policy) -> None:
    # With B = 0, dL/dB = s dL/dW Aᵀ and dL/dA = 0.
    lora = AdapterConfig(method=AdapterMethod.lora, rank=64, alpha=32, targets=["q_proj", "down_proj"])
    gradients = []
    for adapter in (None, lora):
        trainer = Trainer(Dtype.float32, adapter=adapter)
        trainer.load(base, TRAINING)
        trainer.scorer(GROUPS).sums().sum().backward()
        gradients.append(dict(trainer.model.named_parameters()))
    full, low = gradients
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        a, b = low[f"{name}.lora_A.default.weight"], low[f"{name}.lora_B.default.weight"]
        assert a.grad is not None
        assert float(a.grad.abs().max()) == 0
        expected = 0.5 * full[f"{name}.weight"].grad @ a.detach().t()
        torch.testing.assert_close(b.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_base_in_bfloat16_is_half_as_large_and_the_adapter_is_float32(base: Policy) -> None:
    settings = dataclasses.replace(LORA, base_dtype=Dtype.bfloat16)
    trainer = Trainer(Dtype.bfloat16, adapter=settings)
    metrics = train(trainer, make_job(base, SpinObjective()), score_rows(trainer, base))
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-2)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    # The layers for CPUs compute it, in the layout that shares prompts.
    assert (trainer.note, trainer.scorer.layout) == (None, "shared")
    assert trainer.scorer.fast is not None
    dtypes = {".lora_" in name: weight.dtype for name, weight in trainer.model.named_parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}


def test_gradient_checkpointing_changes_no_number(base: Policy) -> None:
    found = []
    for checkpointing in (False, True):
        training = dataclasses.replace(TRAINING, gradient_checkpointing=checkpointing)
        trainer = Trainer(Dtype.float32, adapter=LORA)
        job = make_job(base, SpinObjective(), training=training)
        found.append([metrics["loss"] for metrics in train(trainer, job, score_rows(trainer, base))])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"]])
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_the_layers_for_cpus_compute_adapters_and_their_gradients_as_peft_does(
    base: Policy, layout: str, targets: object
) -> None:
    model = load_policy(Path(base.path))
    inject_adapter(model, make_lora_config(dataclasses.replace(LORA, targets=targets)))
    generator = torch.Generator().manual_seed(0)
    for _, weight in list_adapter_weights(model):
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    found = []
    for fast in (True, False):
        scorer = GroupLogps(model, Dtype.float32, layout)
        assert scorer.fast is not None
        if not fast:
            scorer.fast = None
        sums = scorer(GROUPS).sums()
        model.zero_grad()
        (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
        gradients = {name: weight.grad for name, weight in list_adapter_weights(model)}
        found.append((sums.detach(), gradients))
        assert all(weight.grad is None for name, weight in model.named_parameters() if ".lora_" not in name)
    (sums, gradients), (expected_sums, expected) = found
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
