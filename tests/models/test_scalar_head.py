"""Rewards of the last token: equal in every layout and in transformers, 0 for a new head."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from spin.config.training import Dtype
from spin.errors import CheckpointError
from spin.models.packing import Group
from spin.models.scalar_head import GroupRewards, load_reward_model
from tests.models.test_forward import GROUPS, NO_DROPOUT, SHAPE, worst
from tests.tiny import write_model

MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (hf.LlamaForSequenceClassification, hf.LlamaConfig(**SHAPE, num_labels=1)),
    "gemma2": (
        hf.Gemma2ForSequenceClassification,
        hf.Gemma2Config(**SHAPE, num_labels=1, query_pre_attn_scalar=16, attn_implementation="eager"),
    ),
    "gpt2": (
        hf.GPT2ForSequenceClassification,
        hf.GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, num_labels=1, pad_token_id=0, **NO_DROPOUT),
    ),
}


def make(name: str) -> Any:
    kind, config = MODELS[name]
    torch.manual_seed(0)
    # A model writes the attention that it uses into its config.
    return kind(copy.deepcopy(config)).eval()


def rewards_and_gradients(model: Any, layout: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards of GROUPS, and the gradient of their sum with different weights."""
    net = GroupRewards(model, Dtype.float32, layout)
    net.zero_grad()
    rewards = net(GROUPS).sums()
    (rewards * torch.linspace(-1, 1, len(rewards), dtype=torch.float64)).sum().backward()
    return rewards.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_every_layout_gives_the_rewards_and_gradients_of_padding(name: str) -> None:
    model = make(name)
    expected, expected_gradients = rewards_and_gradients(model, "padded")
    assert expected.std() > 0.01
    for layout in ("shared", "packed"):
        rewards, gradients = rewards_and_gradients(model, layout)
        assert (rewards - expected).abs().max() < 2e-5
        assert worst(gradients, expected_gradients) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_a_reward_is_what_transformers_pools_at_the_last_token(name: str) -> None:
    # No token of GROUPS is the padding token 0, which transformers would skip.
    model = make(name)
    expected = []
    for group in GROUPS:
        for completion in group.completions:
            expected.append(model(torch.tensor([group.prompt_ids + completion])).logits.item())
    rewards = GroupRewards(model, Dtype.float32, "shared")(GROUPS).sums()
    assert torch.allclose(rewards, torch.tensor(expected, dtype=torch.float64), atol=2e-5)


def test_a_last_token_that_is_the_padding_token_counts() -> None:
    model = make("llama")
    group = GROUPS[1]
    ended = Group(group.prompt_ids, [[*group.completions[0], 0]])
    found = {}
    for layout in ("shared", "padded"):
        found[layout] = GroupRewards(model, Dtype.float32, layout)([ended]).sums().item()
    before = GroupRewards(model, Dtype.float32, "shared")([group]).sums()[0].item()
    assert found["shared"] == pytest.approx(found["padded"], abs=2e-5)
    assert abs(found["shared"] - before) > 1e-3


def test_a_new_head_gives_0_and_the_choice_of_a_layout_leaves_it_so(tmp_path: Path) -> None:
    policy = write_model(tmp_path / "model", seed=0)
    model = load_reward_model(Path(policy.path))
    net = GroupRewards(model, Dtype.float32)
    groups = [Group([5, 6], [[7]]), Group([5, 6, 9], [[8, 11], [12, 0]])]
    assert net.choose(groups) is None
    assert net.layout == "shared"
    assert net(groups).sums().tolist() == [0.0, 0.0, 0.0]


def test_a_classifier_with_two_labels_is_refused(tmp_path: Path) -> None:
    hf.LlamaForSequenceClassification(hf.LlamaConfig(**SHAPE, num_labels=2)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"keys .*score.weight.* have another shape"):
        load_reward_model(tmp_path)
