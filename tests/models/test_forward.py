"""Shared and packed layouts against the padded one, on tiny models of several families."""

import os
import random
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from spin.config.training import Dtype
from spin.errors import ConfigError
from spin.models.cpu_memory import limit_kernel_caches
from spin.models.forward import GroupLogps
from spin.models.packing import Group
from spin.objectives.losses import PairLogps, spin

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama, tied": (hf.LlamaForCausalLM, hf.LlamaConfig, {"tie_word_embeddings": True}),
    "llama, untied, biased": (
        hf.LlamaForCausalLM,
        hf.LlamaConfig,
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, {}),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, {}),
    "gemma": (hf.GemmaForCausalLM, hf.GemmaConfig, {}),
    "gemma2, capped": (
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config,
        {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, {}),
    "granite, scaled": (hf.GraniteForCausalLM, hf.GraniteConfig, {"logits_scaling": 4.0}),
    "cohere, scaled": (hf.CohereForCausalLM, hf.CohereConfig, {"logit_scale": 0.25}),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4, **NO_DROPOUT}),
}
FAST = ("llama, tied", "llama, untied, biased", "qwen2", "qwen3")


def make(name: str, **changes: Any) -> Any:
    kind, config, extra = MODELS[name]
    shape = (
        {"vocab_size": 300, "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": None}
        if name == "gpt2"
        else SHAPE
    )
    torch.manual_seed(0)
    model = kind(config(**shape | extra | changes)).eval()
    for parameter in model.parameters():  # norms and biases that are not their initial 1 and 0
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def make_groups(*sizes: tuple[int, list[int]]) -> list[Group]:
    rng = random.Random(0)
    return [
        Group(
            [rng.randrange(1, 300) for _ in range(p)], [[rng.randrange(1, 300) for _ in range(n)] for n in completions]
        )
        for p, completions in sizes
    ]


GROUPS = make_groups((1, [1]), (30, [20, 7]), (150, [1, 140]), (5, [17, 3, 1]), (9, [2, 8, 30, 1, 4]), (2, [12]))
"""Cover 1, 2, 3 and 5 completions, single tokens, and rows longer than an attention block."""


def gradients(net: GroupLogps, groups: list[Group]) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Log-probabilities, the SPIN loss over neighbouring completions, and its gradients."""
    net.zero_grad()
    logps = net(groups).sums()
    n = len(logps) // 2
    zero = logps.new_zeros(n)
    loss = spin(
        PairLogps(logps[: 2 * n : 2], logps[1 : 2 * n : 2], zero, zero, zero, zero, zero + 1, zero + 1, zero),
        beta=0.1,
        link="logistic",
    ).sum()
    loss.backward()
    return (
        logps.detach(),
        float(loss.detach()),
        {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None},
    )


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Return the largest relative error of a gradient tensor.

    A tensor that is zero except for rounding is measured against the others.
    """
    assert found.keys() == truth.keys()
    floor = 1e-3 * max(float(grad.norm()) for grad in truth.values())
    return max(float((found[name] - grad).norm()) / max(float(grad.norm()), floor) for name, grad in truth.items())


@pytest.mark.parametrize("name", MODELS)
def test_every_layout_gives_the_log_probabilities_loss_and_gradients_of_padding(name: str) -> None:
    model = make(name)
    logps, loss, grads = gradients(GroupLogps(model, Dtype.float32, "padded"), GROUPS)
    assert logps.dtype == torch.float64
    for layout in ("shared", "packed"):
        net = GroupLogps(model, Dtype.float32, layout)
        assert (net.fast is not None) == (name in FAST)
        found, found_loss, found_grads = gradients(net, GROUPS)
        torch.testing.assert_close(found, logps, rtol=1e-6, atol=1e-5)
        assert found_loss == pytest.approx(loss, rel=1e-6)
        assert worst(found_grads, grads) < 1e-5


@pytest.mark.parametrize("name", ["llama, tied", "qwen3", "gemma2, capped", "gpt2"])
def test_bfloat16_is_within_its_rounding_and_gradients_reach_the_float32_weights(name: str) -> None:
    model = make(name)
    exact, _, exact_grads = gradients(GroupLogps(model, Dtype.float32, "padded"), GROUPS)
    padded, _, padded_grads = gradients(GroupLogps(model, Dtype.bfloat16, "padded"), GROUPS)
    found, _, grads = gradients(GroupLogps(model, Dtype.bfloat16, "shared"), GROUPS)
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    assert (found - exact).abs().mean() < 2 * (
        padded - exact
    ).abs().mean()  # not worse than autocast, by more than luck
    assert worst(grads, exact_grads) < 2 * worst(padded_grads, exact_grads)


@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    _, loss, grads = gradients(GroupLogps(make(name), Dtype.float32, "shared"), GROUPS)
    _, found_loss, found = gradients(
        GroupLogps(make(name), Dtype.float32, "shared", gradient_checkpointing=True), GROUPS
    )
    assert found_loss == loss
    assert worst(found, grads) < 1e-6


def kept_bytes(net: GroupLogps) -> int:
    """What a forward pass keeps for the backward pass, beside the weights."""
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logps = net(GROUPS).sums()
    assert logps.requires_grad
    return sum(
        size for place, size in kept.items() if place not in {p.untyped_storage().data_ptr() for p in net.parameters()}
    )


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_gradient_checkpointing_keeps_less_in_the_layers_of_the_model_itself_too_and_can_be_taken_back(
    layout: str,
) -> None:
    model = make("gemma3", num_hidden_layers=8, vocab_size=304)
    to_plain = kept_bytes(GroupLogps(model, Dtype.float32, layout))
    assert kept_bytes(GroupLogps(model, Dtype.float32, layout, gradient_checkpointing=True)) < to_plain / 2
    assert kept_bytes(GroupLogps(model, Dtype.float32, layout)) == to_plain


def test_gradient_checkpointing_of_a_model_without_layers_to_checkpoint_is_refused() -> None:
    model = make("llama, tied", num_hidden_layers=0)
    with pytest.raises(ConfigError, match="training.gradient_checkpointing=true: LlamaForCausalLM has no layers"):
        GroupLogps(model, Dtype.float32, gradient_checkpointing=True)


def test_without_gradients_the_numbers_are_the_same_and_no_graph_is_kept() -> None:
    net = GroupLogps(make("llama, tied"), Dtype.float32, "shared")
    with torch.no_grad():
        found = net(GROUPS).sums()
    assert not found.requires_grad
    torch.testing.assert_close(found, net(GROUPS).sums().detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("fused", [True, False])
def test_the_next_pass_sees_what_the_optimizer_has_changed(dtype: Dtype, fused: bool) -> None:
    model = make("llama, tied")
    net = GroupLogps(model, dtype, "shared")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=fused)
    before = net(GROUPS).sums()
    before.sum().backward()
    optimizer.step()
    after = net(GROUPS).sums().detach()
    assert (after - before.detach()).abs().min() > 1e-3
    torch.testing.assert_close(
        after,
        GroupLogps(model, dtype, "padded")(GROUPS).sums().detach(),
        rtol=1e-6 if dtype is Dtype.float32 else 1e-2,
        atol=1e-4,
    )


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("name", ["llama, tied", "gemma2, capped", "gpt2"])
def test_auto_finds_that_sharing_is_exact(name: str, dtype: Dtype) -> None:
    net = GroupLogps(make(name), dtype)
    assert net.choose(GROUPS[1:3]) is None
    assert net.layout == "shared"
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["gemma2, capped", "gemma3"])
def test_a_sliding_window_shorter_than_a_sequence_falls_back_with_one_line(name: str) -> None:
    net = GroupLogps(make(name, sliding_window=40), Dtype.float32)
    assert net.choose(GROUPS[:2]) == "layout padded: the attention window of 40 tokens is shorter than a sequence of 50"
    assert net.layout == "padded"


def test_a_longer_sequence_that_comes_later_falls_back_too() -> None:
    torch.manual_seed(0)
    model = hf.MistralForCausalLM(hf.MistralConfig(**SHAPE, sliding_window=60)).eval()
    net = GroupLogps(model, Dtype.float32)
    assert net.choose(GROUPS[:2]) is None
    found = net(GROUPS).sums()
    assert net.note == "layout padded: the attention window of 60 tokens is shorter than a sequence of 290"
    assert torch.equal(found, GroupLogps(model, Dtype.float32, "padded")(GROUPS).sums())


def test_a_recurrent_model_falls_back_to_padding() -> None:
    torch.manual_seed(0)
    net = GroupLogps(
        hf.MambaForCausalLM(hf.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8)).eval(),
        Dtype.float32,
    )
    note = net.choose(GROUPS[:2])
    assert note is not None
    assert note.startswith("layout padded: shared is not exact for MambaForCausalLM (ValueError: 0 of 2 layers attend")
    assert "\n" not in note


def test_a_layout_that_is_not_exact_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "spin.models.kernels.decoder.segments", lambda spans, trimmed=False: []
    )  # attention that sees nothing
    net = GroupLogps(make("llama, tied"), Dtype.bfloat16)
    note = net.choose(GROUPS[:2])
    assert note is not None
    assert note.startswith("layout padded: shared is not exact for LlamaForCausalLM (")


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="expected auto, shared, packed, padded"):
        GroupLogps(make("gpt2"), Dtype.float32, "dense")


def test_the_attention_is_not_in_the_saved_config(tmp_path: Any) -> None:
    model = make("gpt2")
    GroupLogps(model, Dtype.float32, "shared")(GROUPS[:1])
    model.save_pretrained(tmp_path)
    assert "spin" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", ["llama, tied", "qwen2", "gpt2"])
def test_weights_that_are_kept_are_copied_once_and_change_no_bit(name: str) -> None:
    net = GroupLogps(make(name), Dtype.bfloat16, "shared")
    logps, _, grads = gradients(net, GROUPS)
    with net.weights_kept():
        gradients(net, GROUPS)
        found, _, found_grads = gradients(net, GROUPS)
        if net.fast is not None:
            weight = net.model.get_output_embeddings().weight
            assert net.fast.copies(weight, torch.bfloat16) is net.fast.copies(weight, torch.bfloat16)
    assert torch.equal(found, logps)
    assert all(torch.equal(found_grads[key], grad) for key, grad in grads.items())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
        after = net(GROUPS).sums()
    assert (after - logps).abs().min() > 1e-3  # nothing is kept beyond the block


def test_the_kernel_caches_are_limited_and_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    limit_kernel_caches()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
