"""A run starts from a PEFT adapter folder: its base is found, and the sum of both is written."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig

from spin.config.adapter import AdapterConfig, AdapterMethod, Serve
from spin.config.groups import DataConfig, ModelConfig
from spin.config.run import RunConfig
from spin.config.training import Dtype
from spin.errors import CheckpointError, ConfigError
from spin.models.model_size import count_adapter
from spin.models.policy import policy_digest
from spin.preflight.adapter_check import check_peft, count_reward_trained, count_trained
from spin.preflight.starting_model import resolve_model
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore
from tests.adapters import LORA, write_adapter_of
from tests.tiny import write_model


def make_config(tmp_path: Path, path: Path, adapter: AdapterConfig = LORA) -> RunConfig:
    return RunConfig(str(tmp_path / "run"), model=ModelConfig(str(path)), data=DataConfig("d"), adapter=adapter)


def resolve(config: RunConfig) -> object:
    store = RunStore(Path(config.run_dir))
    return resolve_model(config, store, Ledger(RunLayout(store.root).ledger, store))


def test_the_base_of_an_adapter_folder_is_found_and_the_sum_is_that_of_peft(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=0)
    adapter = write_adapter_of(base, tmp_path / "adapter", seed=1)
    config = make_config(tmp_path, tmp_path / "adapter")
    model = resolve(config)
    assert model.adapter is not None
    assert (model.adapter.digest, model.base.digest) == (adapter.digest, base.digest)
    assert policy_digest(Path(base.path)) == base.digest
    # A resume finds the same.
    assert resolve(config) == model

    merged = AutoModelForCausalLM.from_pretrained(model.path)
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), adapter.path)
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, whole.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    # 2 layers of 7 targets with rank 4, whatever the config says about new adapters.
    wider = AdapterConfig(method=AdapterMethod.lora, rank=64)
    assert count_trained(make_config(tmp_path, tmp_path / "adapter", wider), Path(base.path)) == 8704


def test_full_training_from_an_adapter_folder_starts_from_the_sum_alone(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=0)
    write_adapter_of(base, tmp_path / "adapter", seed=1)
    model = resolve(make_config(tmp_path, tmp_path / "adapter", AdapterConfig()))
    assert model.adapter is None
    assert model.digest != base.digest


def test_an_adapter_that_was_altered_after_the_launch_is_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=0)
    write_adapter_of(base, tmp_path / "adapter", seed=1)
    config = make_config(tmp_path, tmp_path / "adapter")
    resolve(config)
    write_adapter_of(base, tmp_path / "adapter", seed=2)
    with pytest.raises(CheckpointError, match="was altered"):
        resolve(config)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FAULTS = {
    "no base": (lambda folder: edit(folder, base_model_name_or_path=None), "names no base"),
    "a base that is gone": (lambda folder: edit(folder, base_model_name_or_path="/gone"), "which is not there"),
    "an adapter of an adapter": (lambda folder: edit(folder, base_model_name_or_path="."), "which is an adapter too"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "safetensors"),
    "another kind": (lambda folder: edit(folder, use_dora=True), "an adapter with DoRA"),
    "another rank": (lambda folder: edit(folder, r=8), "has shape"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_adapter_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    base = write_model(tmp_path / "base", seed=0)
    write_adapter_of(base, tmp_path / "adapter", seed=1)
    break_it, message = FAULTS[name]
    break_it(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=message) as error:
        resolve(make_config(tmp_path, tmp_path / "adapter"))
    assert "\n" not in str(error.value)


def test_targets_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=0)
    for targets, message in ((["nothing"], "adapter.targets"), (["lm_head"], "the output head")):
        adapter = AdapterConfig(method=AdapterMethod.lora, targets=targets)
        with pytest.raises(ConfigError, match=message):
            count_trained(make_config(tmp_path, tmp_path / "base", adapter), Path(base.path))


def test_a_reward_model_gets_a_new_adapter_with_the_settings_of_the_run_and_a_head(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", seed=0)
    write_adapter_of(base, tmp_path / "adapter", seed=1)
    wider = AdapterConfig(method=AdapterMethod.lora, rank=8, alpha=8)
    config = make_config(tmp_path, tmp_path / "adapter", wider)
    model = Path(resolve(config).path)
    assert count_reward_trained(config, model) == 0
    config.reward_model.data_path = "ranked.jsonl"
    # Twice the 8,704 values of rank 4, and 64 of the head.
    assert count_reward_trained(config, model) == 2 * 8704 + 64
    config.adapter = AdapterConfig(method=AdapterMethod.lora, targets=["q_proj", "score"])
    with pytest.raises(ConfigError, match="names the head of the reward model"):
        count_reward_trained(config, model)


def test_the_values_of_an_adapter_are_counted_without_weights(tmp_path: Path) -> None:
    # Llama-2-7B; 32 layers of rank × (4 × (4096 + 4096) + 3 × (4096 + 11008)).
    LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    ).save_pretrained(tmp_path)
    adapter = AdapterConfig(method=AdapterMethod.lora)
    assert count_adapter(adapter, tmp_path, None, trust_remote_code=False) == 39_976_960


def test_a_missing_peft_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_peft()
    monkeypatch.setattr("spin.preflight.adapter_check.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'spin-selfplay[lora]'")):
        check_peft()


UNFIT = {
    "a restart with adapters that are served": ({"restart": True, "serve": Serve.adapter}, "the engine keeps one base"),
    "a restart with a first adapter": ({"restart": True, "path": "a"}, "would be replaced by a new one"),
    "an empty list of targets": ({"targets": []}, "expected all-linear, or a list of module names"),
    "another word for targets": ({"targets": "attention"}, "expected all-linear, or a list of module names"),
    "rank 0": ({"rank": 0}, "adapter.rank=0"),
    "rank 513": ({"rank": 513}, "adapter.rank=513"),
    "alpha 0": ({"alpha": 0.0}, "adapter.alpha=0"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_settings_that_do_not_go_together_are_refused(name: str) -> None:
    settings, message = UNFIT[name]
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(method=AdapterMethod.lora, **settings)


def test_a_base_in_bfloat16_needs_matrix_products_in_it(tmp_path: Path) -> None:
    adapter = AdapterConfig(method=AdapterMethod.lora, base_dtype=Dtype.bfloat16)
    with pytest.raises(ConfigError, match="set both to bfloat16"):
        make_config(tmp_path, tmp_path / "base", adapter)


def test_settings_that_nothing_reads_without_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="adapter.rank=8 without adapters: add adapter=lora"):
        AdapterConfig(rank=8)


def test_an_adapter_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "base", seed=0)
    adapter = AdapterConfig(method=AdapterMethod.lora, path=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"adapter.path=.*gone holds no adapter_config.json"):
        resolve(make_config(tmp_path, tmp_path / "base", adapter))
