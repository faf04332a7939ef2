from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from spin.models.layer_calls import set_layer_calls


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_compiled_and_checkpointed_and_both_can_be_undone(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
    model = LlamaForCausalLM(config).eval()
    layers = model.get_decoder().layers
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids).logits

    set_layer_calls(model, checkpointing, compiled=True)
    torch._dynamo.reset()
    counters.clear()
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected)
    # One graph for the three layers.
    assert counters["stats"]["unique_graphs"] == 1
    assert all("forward" in vars(layer) for layer in layers)

    set_layer_calls(model, checkpointing=False)
    assert all("forward" not in vars(layer) for layer in layers)
