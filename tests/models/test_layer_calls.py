from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spin.models.layer_calls import set_layer_calls


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_share_one_function_and_can_be_undone(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def compile_plainly(function: Any, dynamic: bool) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_plainly)
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
    model = LlamaForCausalLM(config).eval()
    layers = model.get_decoder().layers
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids).logits

    set_layer_calls(model, checkpointing, compiled=True)
    # A bound method in place of the function of the class would be compiled for each layer.
    assert compiled == [type(layers[0]).forward] * 3
    torch.testing.assert_close(model(ids).logits, expected)

    set_layer_calls(model, checkpointing=False)
    assert all("forward" not in vars(layer) for layer in layers)
