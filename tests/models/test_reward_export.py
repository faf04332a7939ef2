"""An exported reward model: transformers gives the trainer's rewards, and padding is told apart."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spin.config.training import Dtype
from spin.data import builtin
from spin.errors import CheckpointError, ConfigError
from spin.models.packing import Group
from spin.models.policy import Policy, check_policy, policy_digest
from spin.models.reward_export import RewardFacts, export_reward_model, find_pad_id, read_reward_facts
from spin.models.scalar_head import GroupRewards, load_reward_model

DATA = "ab12" * 16
GROUP = Group([1, 70, 71, 2], [[80, 81, 2], [90, 2], [91, 92, 93]])
"""Two answers that end with the end of turn, 2, and one that was cut."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A promoted reward model with a random head."""
    start = tmp_path_factory.mktemp("models") / "start"
    builtin.write_tiny_model(start, seed=0)
    model = load_reward_model(start)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(start)
    # As if the padding token ended answers too: another one must be chosen.
    out = start.parent / "reward"
    digest = export_reward_model(model, tokenizer, out, "float32", (2, 0), RewardFacts(0.25, DATA))
    assert digest == policy_digest(out)
    return out


def test_transformers_loads_it_whole_and_gives_the_rewards_of_the_trainer(folder: Path) -> None:
    rewards = GroupRewards(load_reward_model(folder), Dtype.float32, "shared")([GROUP]).sums()
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sequences = [{"input_ids": GROUP.prompt_ids + ids} for ids in GROUP.completions]
    padded = tokenizer.pad(sequences, return_tensors="pt")
    found = model(**padded).logits.squeeze(1).double()
    assert torch.allclose(found, rewards, atol=1e-5)
    assert rewards.std() > 0.1


def test_the_padding_token_ends_no_answer(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.pad_token_id == AutoTokenizer.from_pretrained(folder).pad_token_id == 1


def test_the_bias_lies_beside_the_weights_and_is_0_for_models_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert read_reward_facts(folder) == RewardFacts(0.25, DATA)
    assert read_reward_facts(tmp_path) == RewardFacts(0.0, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bias": NaN, "data": ""}', r"bias=nan and scale=1\.0; expected finite numbers, the second above 0"),
        ('{"bias": 0.5, "scale": 0}', "scale=0; expected finite numbers, the second above 0"),
        ('{"bias": 0.5, "data": "ab12"}', "data='ab12'; expected the SHA-256 of the rankings as 64 hex digits"),
        ('{"bias": "a"}', "cannot be read: .*; expected bias, scale and data"),
        ('{"mean": 1}', "cannot be read: .*; expected bias, scale and data"),
        ('{"bias": 0.5', "cannot be read: .*; expected bias, scale and data"),
    ],
)
def test_facts_that_cannot_be_used_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reward.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_reward_facts(tmp_path)


def test_altered_facts_are_another_model(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert policy_digest(copy) == policy_digest(folder)
    (copy / "reward.json").write_text('{"bias": 0.5}')
    with pytest.raises(CheckpointError):
        check_policy(Policy(str(copy), policy_digest(folder)))


def test_a_tokenizer_without_a_token_for_padding_is_refused() -> None:
    names = ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id")
    tokenizer = SimpleNamespace(**dict.fromkeys(names, 5), added_tokens_decoder={5: SimpleNamespace(special=True)})
    with pytest.raises(ConfigError, match="add a pad token to the tokenizer"):
        find_pad_id(tokenizer, (5,))


def test_weights_that_are_not_finite_are_not_exported(folder: Path, tmp_path: Path) -> None:
    model = load_reward_model(folder)
    model.score.weight.data[0, 0] = float("nan")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"score\.weight is not finite"):
        export_reward_model(model, tokenizer, tmp_path / "out", "float32", (2,), RewardFacts())
    assert not (tmp_path / "out").exists()
