from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spin.models.layer_calls import set_layer_calls


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_compiled_and_checkpointed_and_both_can_be_undone(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def compile_plainly(self: torch.nn.Module, dynamic: bool) -> None:
        compiled.append(self)
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compile_plainly)
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
    model = LlamaForCausalLM(config).eval()
    layers = model.get_decoder().layers
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids).logits

    set_layer_calls(model, checkpointing, compiled=True)
    assert compiled == list(layers)
    assert all(("forward" in vars(layer)) == checkpointing for layer in layers)
    torch.testing.assert_close(model(ids).logits, expected)

    set_layer_calls(model, checkpointing=False)
    assert all("forward" not in vars(layer) and layer._compiled_call_impl is None for layer in layers)
