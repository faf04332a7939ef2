"""An exported policy stops where the run did."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from spin.models.loading import load_policy
from spin.models.policy_export import export_policy
from spin.models.scalar_head import load_reward_model
from tests.tiny import write_model


def test_an_exported_policy_stops_at_every_stop_id_and_a_complete_config_stays_as_it_is(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    policy = write_model(tmp_path / "model", 0)  # its generation config stops at 0
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    model = load_policy(Path(policy.path))
    unchanged = export_policy(model, tokenizer, tmp_path / "a", "float32")
    assert export_policy(model, tokenizer, tmp_path / "b", "float32", [0]) == unchanged
    export_policy(model, tokenizer, tmp_path / "c", "float32", [0, 7])
    generation_config = json.loads((tmp_path / "c" / "generation_config.json").read_text())
    assert generation_config["eos_token_id"] == [0, 7]


def test_weights_are_loaded_to_the_device_itself_and_get_no_hooks(tmp_path: Path) -> None:
    path = Path(write_model(tmp_path / "model", 0).path)
    for load in (load_policy, load_reward_model):
        # A device that holds no values: nothing can have been copied to it afterwards.
        model = load(path, device=torch.device("meta"))
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
        assert not any(hasattr(module, "_hf_hook") for module in load(path).modules())
