"""A reward model with a low-rank adapter, on a tiny real model."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from spin.config.adapter import AdapterConfig, AdapterMethod
from spin.config.training import Dtype
from spin.errors import ConfigError
from spin.models.lora import merge_adapter
from spin.models.model_size import count_reward_adapter
from spin.models.packing import Group
from spin.models.policy import Policy, policy_digest
from spin.models.reward_export import RewardFacts, export_reward_model
from spin.models.scalar_head import Head
from spin.training.row_stream import RowStream
from spin.training.trainer import Trainer
from tests.adapters import LORA
from tests.tiny import write_model
from tests.training.test_reward_training import TRAINING, make_job, make_rows, run

QUICK = dataclasses.replace(TRAINING, epochs=6, learning_rate=1e-2)
GROUPS = [Group(row.prompt_ids, [answer.ids for answer in row.completions]) for row in make_rows()]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return write_model(tmp_path_factory.mktemp("model") / "policy", seed=0)


def begin(policy: Policy) -> Trainer:
    """A trainer that is about to take the first step."""
    trainer = Trainer(Dtype.float32, adapter=LORA)
    trainer.load(policy, TRAINING, Head.scalar, is_trained=True)
    return trainer


def export(trainer: Trainer, folder: Path) -> Policy:
    """The merged reward model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trainer.model.name_or_path)
    # The tiny tokenizer has no special token for padding; no row has id 250.
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(250)
    state = merge_adapter(trainer.model, None)
    digest = export_reward_model(trainer.model, tokenizer, folder, "float32", (0,), RewardFacts(), state)
    return Policy(str(folder), digest)


def score(trainer: Trainer) -> torch.Tensor:
    """The rewards of all answers under the model that the trainer holds."""
    with torch.no_grad():
        return trainer.scorer(GROUPS).sums()


def test_a_new_adapter_gives_the_rewards_of_its_base_bit_for_bit(policy: Policy) -> None:
    trainer, whole = begin(policy), Trainer(Dtype.float32)
    whole.load(policy, TRAINING, Head.scalar)
    ids = torch.arange(3, 40).reshape(1, -1)
    found = []
    for model in (trainer.model, whole.model):
        assert not model.score.weight.any()
        model.score.weight.data.copy_(torch.linspace(-1, 1, 64).view(1, -1))
        found.append(model(input_ids=ids).logits.detach())
    assert torch.equal(*found)
    assert float(found[0].abs().max()) > 0.1


def test_only_a_b_and_the_head_have_gradients_and_saved_states_hold_nothing_else(
    policy: Policy, tmp_path: Path
) -> None:
    before = policy_digest(Path(policy.path))
    training = dataclasses.replace(QUICK, checkpoint_every="2", keep=9)
    trainer = begin(policy)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    steps, weights = run(trainer, make_job(policy, training, states=str(tmp_path)))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1]["loss"] < 0.6
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if ".lora_" in name or name == "score.weight"}
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained == changed
    # 2 layers of 7 targets with rank × (in + out) values each, and 64 of the head.
    count = 2 * 4 * (4 * (64 + 64) + 3 * (64 + 128)) + 64
    assert count_reward_adapter(LORA, Path(policy.path), trust_remote_code=False) == count
    assert (tmp_path / "step-000002" / "model.safetensors").stat().st_size < 4 * count + 10_000
    assert policy_digest(Path(policy.path)) == before

    # A stage that goes on from the state ends with the same bits.
    again, found = run(
        Trainer(Dtype.float32, adapter=LORA), make_job(policy, training, states=str(tmp_path), resume_step=2)
    )
    assert [step["loss"] for step in again] == [step["loss"] for step in steps[2:]]
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


def test_the_merged_folder_gives_the_rewards_of_the_trained_model(policy: Policy, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    trainer = begin(policy)
    run(trainer, make_job(policy, QUICK))
    expected = score(trainer)
    assert float(expected.std()) > 0.1
    exported = export(trainer, tmp_path / "model")
    # A whole model: transformers, and a trainer of a run with adapters that scores samples.
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    model, info = AutoModelForSequenceClassification.from_pretrained(exported.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    found = []
    for group in GROUPS:
        for answer in group.completions:
            ids = torch.tensor([[*group.prompt_ids, *answer]])
            found.append(float(model(input_ids=ids).logits.detach()))
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    scores = trainer.score(exported, GROUPS, TRAINING, Head.scalar)
    assert [reward for rewards in scores for reward in rewards] == pytest.approx(expected.tolist(), abs=1e-5)
    # The policies of the run are what they were.
    fresh = Trainer(Dtype.float32, adapter=LORA)
    assert trainer.score(policy, GROUPS, TRAINING) == fresh.score(policy, GROUPS, TRAINING)


def test_frozen_weights_in_bfloat16_have_a_head_in_float32(policy: Policy, tmp_path: Path) -> None:
    settings = dataclasses.replace(LORA, base_dtype=Dtype.bfloat16)
    trainer = Trainer(Dtype.bfloat16, adapter=settings)
    steps = list(trainer.train(make_job(policy, QUICK), RowStream.whole(make_rows())))
    assert steps[-1]["loss"] < steps[0]["loss"]
    dtypes = {weight.requires_grad: weight.dtype for _, weight in trainer.model.named_parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    exported = export(trainer, tmp_path / "model")
    expected = score(trainer).tolist()
    scores = trainer.score(exported, GROUPS, TRAINING, Head.scalar)
    assert [reward for rewards in scores for reward in rewards] == pytest.approx(expected, abs=5e-2)


def test_the_head_is_no_target(policy: Policy) -> None:
    settings = AdapterConfig(method=AdapterMethod.lora, targets=["q_proj", "score"])
    with pytest.raises(ConfigError, match="names the head of the reward model"):
        count_reward_adapter(settings, Path(policy.path), trust_remote_code=False)
