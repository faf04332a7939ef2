"""Faults of a model folder are found before its weights are loaded."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from spin.config.groups import DataConfig, GenerationConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.config.training import TrainingConfig
from spin.data.chat_renderer import Renderer
from spin.data.chat_templates import Unrenderable
from spin.errors import ConfigError
from spin.preflight.model_config import CPU_HEAD_SIZES, check_model_config
from spin.preflight.starting_model import check_model, check_other_models, locate_model
from spin.run_dir.store import RunStore
from tests.tiny import write_model


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_model(tmp_path_factory.mktemp("model") / "sound", seed=0).path)


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def config_of(model: Path, **generation: int) -> RunConfig:
    return RunConfig(
        str(model.parent / "run"),
        model=ModelConfig(str(model), chat_template="plain"),
        data=DataConfig("d"),
        generation=GenerationConfig(max_tokens=16, max_prompt_tokens=32, **generation),
        training=TrainingConfig(max_length=96),
        objective=SpinObjective(),
    )


def check(model: Path, **generation: int) -> Renderer:
    """Check a folder as a launch does."""
    config = config_of(model, **generation)
    return check_model(config, locate_model(config, RunStore(model.parent / "run")))


def change_json(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def test_a_sound_folder_passes(model: Path) -> None:
    check(model)


def add_adapter(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")


def quantise(model: Path) -> None:
    change_json(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def leave_pointer(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def cut_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def spoil_weight(model: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    change_weights(model, change)


def spoil_bfloat16(model: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
        tensors["model.norm.weight"][3] = float("inf")

    change_weights(model, change)


def widen_weight(model: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.ones(65)

    change_weights(model, change)


def lose_weight(model: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    change_weights(model, change)


def name_missing_file(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')


def break_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": ')


def sample_greedily(model: Path) -> None:
    change_json(model / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)


def shrink_embedding(model: Path) -> None:
    change_json(model / "config.json", vocab_size=256)


def stop_at_no_token(model: Path) -> None:
    change_json(model / "config.json", eos_token_id=[0, 300])


def stop_at_no_token_in_generation(model: Path) -> None:
    change_json(model / "generation_config.json", eos_token_id=-1)


def make_encoder(model: Path) -> None:
    change_json(model / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])


def scale_positions(model: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0, "rope_theta": 10000.0}
    change_json(model / "config.json", rope_parameters=rope)


def add_index(model: Path) -> None:
    save_file({"a": torch.ones(1)}, model / "part.safetensors")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')


def break_link(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(model / "nowhere")


def untie(model: Path) -> None:
    """The same matrix twice is accepted."""
    change_json(model / "config.json", tie_word_embeddings=True)
    embedding = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    change_weights(model, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    check(model)
    change_weights(model, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))


NORM = "model.norm.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.3.w1.weight"


def spoil_expert(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Put the weights of a Mixtral into the folder: transformers joins its experts at loading."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    MixtralForCausalLM(config).save_pretrained(model)
    check(model)
    change_weights(model, change)


FAULTS = {
    "an adapter beside the model": (add_adapter, "holds a model and an adapter (adapter_config.json)"),
    "quantised weights": (quantise, "the weights are quantised (gptq)"),
    "a pointer of Git LFS": (leave_pointer, "model.safetensors is a Git LFS pointer"),
    "a file that is cut": (cut_weights, "model.safetensors is no complete safetensors file"),
    "a weight that is NaN": (spoil_weight, "weight model.norm.weight in model.safetensors is not finite"),
    "a bfloat16 weight that is infinite": (
        spoil_bfloat16,
        "weight model.norm.weight in model.safetensors is not finite",
    ),
    "a weight of another shape": (
        widen_weight,
        "weight model.norm.weight has shape [65], and config.json makes it [64]",
    ),
    "a missing weight": (lose_weight, "no file holds weight model.norm.weight (1 missing)"),
    "a missing file": (name_missing_file, "names model-00002-of-00002.safetensors, which is missing"),
    "a config that is cut": (break_config, "config.json cannot be read"),
    "sampling settings without sampling": (sample_greedily, "cannot save a copy of generation_config.json"),
    "a token beyond the embedding": (shrink_embedding, "with id 256, and the embedding 256 rows"),
    "a stop id beyond the embedding": (stop_at_no_token, "eos_token_id 300 in config.json is no token"),
    "a negative stop id": (stop_at_no_token_in_generation, "eos_token_id -1 in generation_config.json is no token"),
    "a position scaling that the trainer does not know": (
        scale_positions,
        "the rope settings have alpha, with which the engine computes other positions",
    ),
    "experts of another shape, under names of old checkpoints": (
        lambda model: spoil_expert(model, lambda tensors: tensors.update({EXPERT: torch.ones(50, 32)})),
        "no model can be made from config.json and the weights",
    ),
    "a lost expert, under names of old checkpoints": (
        lambda model: spoil_expert(model, lambda tensors: tensors.pop(EXPERT)),
        "no model can be made from config.json and the weights",
    ),
    "a part of the weights without their index": (
        lambda model: (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors"),
        "no model can be made from config.json and the weights",
    ),
    "a file beside the model that the engine would read": (
        lambda model: save_file({"a": torch.ones(1)}, model / "adapter_model.safetensors"),
        "adapter_model.safetensors is no part of the model in model.safetensors",
    ),
    "a model beside an index of other files": (
        add_index,
        "holds model.safetensors and an index of other files",
    ),
    "an index without files": (
        lambda model: (model / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}'),
        "model.safetensors.index.json has no weight_map",
    ),
    "a link to nothing": (break_link, "model.safetensors is a folder, or a link to nothing"),
    "a weight of eight bits": (
        lambda model: change_weights(model, lambda tensors: tensors.update({NORM: torch.ones(64).to(torch.int8)})),
        "weight model.norm.weight in model.safetensors has the type I8: it is quantised",
    ),
    "fewer layers than the files hold": (
        lambda model: change_json(model / "config.json", num_hidden_layers=1),
        "the files hold weight model.layers.1.input_layernorm.weight, and config.json makes 1 layers (9 weights",
    ),
    "no architecture": (
        lambda model: change_json(model / "config.json", architectures=None),
        "config.json names no architectures",
    ),
    "a number that is NaN": (
        lambda model: change_json(model / "config.json", rms_norm_eps=math.nan),
        "a number in config.json is NaN",
    ),
    "wavelengths that are not positive": (
        lambda model: change_json(model / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 0.0}),
        "rope_theta 0.0 in config.json is not positive",
    ),
    "a number that is a text": (
        lambda model: change_json(model / "config.json", vocab_size="many"),
        "is no usable model: Validation error for field 'vocab_size'",
    ),
    "a tokenizer that is a list": (
        lambda model: (model / "tokenizer_config.json").write_text("[1]"),
        "is no usable model",
    ),
    "a generation config that is a list": (
        lambda model: (model / "generation_config.json").write_text("[1]"),
        "generation_config.json holds no JSON object",
    ),
    "a stop id that is a text": (
        lambda model: change_json(model / "generation_config.json", eos_token_id="</s>"),
        "generation_config.json: eos_token_id '</s>' is no token",
    ),
    "another output layer than the embedding that it is tied to": (
        untie,
        "the files hold an embedding and another output layer, and config.json ties the two",
    ),
    "an encoder": (make_encoder, "model_type t5 is no decoder"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_in_one_line_that_names_it(model: Path, name: str) -> None:
    spoil, expected = FAULTS[name]
    spoil(model)
    with pytest.raises(ConfigError) as caught:
        check(model)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["judge.model", "reward_model.path"])
def test_the_files_of_a_judge_and_of_a_reward_model_are_checked_too(model: Path, key: str) -> None:
    config = config_of(model)
    if key == "judge.model":
        config.judge.model = str(model)
    else:
        config.reward_model.path = str(model)
    check_other_models(config)
    leave_pointer(model)
    with pytest.raises(ConfigError, match=f"^{key}={model}: model.safetensors is a Git LFS pointer"):
        check_other_models(config)


def test_parts_that_do_not_divide_the_heads_are_refused(model: Path) -> None:
    check(model, tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="tensor_parallel_size=4 does not divide the 2 attention heads"):
        check(model, tensor_parallel_size=4)


def test_a_special_token_without_a_row_is_accepted_when_no_text_uses_it(model: Path) -> None:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([AddedToken("<image>", special=True)], special_tokens=True)
    tokenizer.save_pretrained(model)
    # A row that uses it all the same is dropped with its reason.
    renderer = check(model)
    assert renderer.exchange([{"role": "user", "content": "a"}], "b").completion_ids
    for texts in (("see <image>", "b"), ("a", "see <image>")):
        with pytest.raises(Unrenderable, match="a token that has no row in the embedding"):
            renderer.exchange([{"role": "user", "content": texts[0]}], texts[1])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.save_pretrained(model)
    with pytest.raises(ConfigError, match="token '<tool>' with id 258"):
        check(model)


def test_a_classifier_is_refused(model: Path) -> None:
    change_json(model / "config.json", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ConfigError, match="LlamaForSequenceClassification.*expected a causal language model"):
        check(model)


def text_config(**values: object) -> SimpleNamespace:
    """A config with as much as the checks of heads and positions read."""
    defaults = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 300,
        "eos_token_id": 0,
        "num_attention_heads": 2,
    }
    config = SimpleNamespace(**(defaults | {"hidden_size": 128} | values))
    config.get_text_config = lambda: config
    return config


def test_a_head_size_that_the_cpu_engine_does_not_have_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spin.preflight.model_config.list_gpus", list)
    tokenizer = SimpleNamespace(get_vocab=dict)
    with pytest.raises(ConfigError, match="attention heads of size 20"):
        check_model_config(config_of(model), model, text_config(head_dim=20), tokenizer)


LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 48}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
PLAIN = {"rope_type": "default"}


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": LONGROPE},
        {"rope_parameters": {"full_attention": LONGROPE, "sliding_attention": PLAIN}},
        {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": DYNAMIC}, "max_position_embeddings": 48},
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 48},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 48},
    ],
)
def test_position_factors_that_depend_on_the_batch_are_refused(model: Path, values: dict[str, object]) -> None:
    tokenizer = SimpleNamespace(get_vocab=dict)
    with pytest.raises(
        ConfigError, match="training.max_length=96: the model's .* takes other factors .* expected at most 48"
    ):
        check_model_config(config_of(model), model, text_config(**values), tokenizer)


def test_dynamic_positions_within_the_context_are_plain_ones_and_accepted(model: Path) -> None:
    change_json(model / "config.json", rope_parameters=DYNAMIC | {"rope_theta": 10000.0}, max_position_embeddings=96)
    check(model)


def test_a_model_with_code_of_its_own_is_checked_too(model: Path) -> None:
    """The code is that of the installed Llama, under a name of its own."""
    (model / "own_model.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own_model.OwnConfig", "AutoModelForCausalLM": "own_model.OwnModel"}
    change_json(model / "config.json", model_type="own", architectures=["OwnModel"], auto_map=auto_map)
    config = config_of(model)
    config.model.trust_remote_code = True
    check_model(config, model)
    widen_weight(model)
    with pytest.raises(ConfigError, match="weight model.norm.weight has shape"):
        check_model(config, model)


@pytest.mark.slow
def test_the_head_sizes_are_those_of_the_installed_engine() -> None:
    attention = pytest.importorskip("vllm.v1.attention.backends.cpu_attn")
    assert tuple(attention.CPUAttentionBackend.get_supported_head_sizes()) == CPU_HEAD_SIZES
