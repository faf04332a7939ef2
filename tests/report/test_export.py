"""A promoted policy leaves the run directory whole, with its card; everything else is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny import write_model
from transformers import AutoModelForCausalLM

from spin.config.adapter import Serve
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import IpoObjective
from spin.config.run import RunConfig, to_plain
from spin.errors import CheckpointError, ConfigError
from spin.models.adapter_folder import AdapterFolder, write_merged
from spin.models.policy import policy_digest
from spin.models.policy_export import convert_folder
from spin.report.export import export
from spin.report.model_card import write_card
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from tests.adapters import LORA, write_adapter_of

FIGURES = {
    "heldout": 20,
    "exact_match_greedy": 0.75,
    "exact_match_sampled": 0.5,
    "nll": 0.25,
    "win_rate": None,
    "kl_to_start": 0.1,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two promoted iterations, the first being the best."""
    layout = RunLayout(tmp_path / "run")
    config = RunConfig(
        str(layout.root),
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=FeedbackConfig(),
        objective=IpoObjective(),
    )
    layout.root.mkdir()
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger = Ledger(layout.ledger)
    for index in (0, 1):
        ledger.append(
            f"iterations/{index:03d}/policy", digest=write_model(layout.iteration(index).policy, seed=index).digest
        )
    ledger.append("best", policy="iterations/000", metric="nll", value=0.25)
    return layout.root


def test_the_best_and_a_numbered_policy_arrive_with_the_digest_that_was_promoted(run_dir: Path, tmp_path: Path) -> None:
    export(str(run_dir), "best", str(tmp_path / "best"), None)
    export(str(run_dir), "1", str(tmp_path / "one"), None)
    assert policy_digest(tmp_path / "best") == policy_digest(run_dir / "iterations" / "000" / "policy")
    assert policy_digest(tmp_path / "one") == policy_digest(run_dir / "iterations" / "001" / "policy")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_in_use_a_missing_iteration_and_an_altered_policy_are_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        export(str(run_dir), "best", str(tmp_path / "used"), None)
    with pytest.raises(ConfigError, match="expected best, or a number from 0 to 1"):
        export(str(run_dir), "2", str(tmp_path / "two"), None)
    with pytest.raises(ConfigError, match="expected owner/name"):
        export(str(run_dir), "1", str(tmp_path / "two"), "name")
    (run_dir / "iterations" / "001" / "policy" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="was altered"):
        export(str(run_dir), "1", str(tmp_path / "two"), None)
    assert not (tmp_path / "two").exists()


def test_a_folder_inside_a_run_directory_is_refused_and_nothing_is_written(run_dir: Path, tmp_path: Path) -> None:
    before = sorted(run_dir.rglob("*"))
    for to in (run_dir / "best", run_dir / "iterations" / "new" / "best", run_dir):
        with pytest.raises(ConfigError, match=f"lies inside the run directory {run_dir}"):
            export(str(run_dir), "best", str(to), None)
    assert sorted(run_dir.rglob("*")) == before
    export(str(run_dir), "best", str(tmp_path / "run-best"), None)


def test_the_hub_that_cannot_be_reached_is_one_line_and_the_folder_stands(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="the Hub refused it .* hf upload owner/name"):
        export(str(run_dir), "1", str(tmp_path / "one"), "owner/name")
    assert policy_digest(tmp_path / "one") == policy_digest(run_dir / "iterations" / "001" / "policy")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n# Model\n", "tiny"),
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("# A card without metadata\n", None),
        ("---\nlicense: [a\n---\n", None),
        (None, None),
    ],
)
def test_the_card_names_the_licence_of_the_base_model(
    run_dir: Path, tmp_path: Path, card: str | None, expected: str | None
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    if card is not None:
        (model / "README.md").write_text(card)
    stage = RunLayout(run_dir).iteration(0)
    config = RunConfig(
        str(run_dir),
        model=ModelConfig(str(model)),
        data=DataConfig("train.jsonl"),
        feedback=FeedbackConfig(),
        objective=IpoObjective(),
    )
    write_card(stage, config, "d" * 64, "b" * 64, None)
    written = ModelCard.load(stage.policy / "README.md")
    assert (written.data.get("license_name") or written.data.get("license")) == expected
    assert (f"| licence of the base model | {expected} |" in written.text) == (expected is not None)


def test_the_card_says_what_is_known_and_changes_no_digest(run_dir: Path, tmp_path: Path) -> None:
    stage = RunLayout(run_dir).iteration(0)
    digest = policy_digest(stage.policy)
    feedback = FeedbackConfig()
    config = RunConfig(
        str(run_dir),
        model=ModelConfig("owner/model"),
        data=DataConfig("train.jsonl"),
        feedback=feedback,
        objective=IpoObjective(beta=0.3),
    )
    write_card(stage, config, digest, "b" * 64, None)
    before = ModelCard.load(stage.policy / "README.md")
    write_card(stage, config, digest, "b" * 64, {**FIGURES, "intervals": {"nll": [0.2, 0.3]}})
    after = ModelCard.load(stage.policy / "README.md")
    assert policy_digest(stage.policy) == digest
    assert "held-out" not in before.text
    assert "| NLL of the target, nats per token | 0.250±.050 |" in after.text
    assert "beta=0.3" in after.text
    # With a baseline, its figures stand beside those of the policy.
    compared = {**FIGURES, "nll": 0.375, "intervals": {}}
    write_card(stage, config, digest, "b" * 64, {**FIGURES, "intervals": {"nll": [0.2, 0.3]}}, baseline=compared)
    card = (stage.policy / "README.md").read_text()
    assert "| metric | this model | supervised finetuning, as many steps |" in card
    assert "| NLL of the target, nats per token | 0.250±.050 | 0.375 |" in card
    assert digest in after.text
    assert (after.data.base_model, after.data.datasets, after.data.tags) == (
        "owner/model",
        None,
        ["spin", "self-play", "ipo"],
    )


def set_dtype(run_dir: Path, dtype: str) -> None:
    """Change `model.dtype` in the config of a run."""
    path = RunLayout(run_dir).config
    values = yaml.safe_load(path.read_text())
    values["model"]["dtype"] = dtype
    path.write_text(yaml.safe_dump(values))


def read_dtypes(folder: Path) -> tuple[set[torch.dtype], str]:
    """The dtypes of the weights in a folder, and the dtype in its config."""
    weights = load_file(folder / "model.safetensors").values()
    return {weight.dtype for weight in weights}, json.loads((folder / "config.json").read_text())["dtype"]


def test_a_run_in_bfloat16_is_exported_in_it_unless_float32_is_asked_for(run_dir: Path, tmp_path: Path) -> None:
    set_dtype(run_dir, "bfloat16")
    export(str(run_dir), "1", str(tmp_path / "half"))
    export(str(run_dir), "1", str(tmp_path / "whole"), dtype="float32")
    assert read_dtypes(tmp_path / "half") == ({torch.bfloat16}, "bfloat16")
    assert read_dtypes(tmp_path / "whole") == ({torch.float32}, "float32")
    promoted = load_file(run_dir / "iterations/001/policy/model.safetensors")
    half, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "whole"))
    assert promoted.keys() == half.keys() == whole.keys()
    for name, weight in promoted.items():
        assert torch.equal(whole[name], weight)
        # As an engine in bfloat16 rounds what it loads.
        assert torch.equal(half[name], weight.bfloat16())
    # transformers loads it with the head tied, in the dtype of the config.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    # The policy of the run stays as it was promoted: training goes on from it.
    facts = Ledger(RunLayout(run_dir).ledger, read_only=True).get("iterations/001/policy")
    assert policy_digest(run_dir / "iterations/001/policy") == facts["digest"]


def test_a_model_of_several_files_is_converted_file_by_file(tmp_path: Path) -> None:
    write_model(tmp_path / "whole", seed=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    before = {}
    for path in sorted((tmp_path / "parts").glob("*.safetensors")):
        before |= load_file(path)
    convert_folder(tmp_path / "parts", "bfloat16")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    after = {}
    for path in sorted((tmp_path / "parts").glob("*.safetensors")):
        after |= load_file(path)
    assert all(torch.equal(after[name], weight.bfloat16()) for name, weight in before.items())
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(2 * weight.numel() for weight in before.values())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "parts").dtype == torch.bfloat16


def test_a_dtype_that_nothing_has_is_refused(run_dir: Path, tmp_path: Path) -> None:
    for dtype, more, message in (
        ("float16", {}, "dtype=float16: expected float32 or bfloat16"),
        ("bfloat16", {"weights": "adapter"}, "adapters and reward models are exported in float32"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(str(run_dir), "1", str(tmp_path / "one"), dtype=dtype, **more)


def test_an_adapter_of_a_run_in_bfloat16_is_added_to_its_base_in_float32_and_then_rounded(tmp_path: Path) -> None:
    served = make_adapter_run(tmp_path, Serve.adapter)
    export(str(served), "0", str(tmp_path / "whole"))
    set_dtype(served, "bfloat16")
    export(str(served), "0", str(tmp_path / "half"))
    assert read_dtypes(tmp_path / "whole") == ({torch.float32}, "float32")
    assert read_dtypes(tmp_path / "half") == ({torch.bfloat16}, "bfloat16")
    half = load_file(tmp_path / "half" / "model.safetensors")
    for name, weight in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(half[name], weight.bfloat16())
    export(str(served), "0", str(tmp_path / "exported"), weights="adapter")
    weights = load_file(tmp_path / "exported" / "adapter_model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.float32}


def make_adapter_run(tmp_path: Path, serve: Serve) -> Path:
    """Write a run with one iteration of an adapter, merged or served on its base."""
    layout = RunLayout(tmp_path / serve.name)
    config = RunConfig(
        str(layout.root),
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        objective=IpoObjective(),
        adapter=replace(LORA, serve=serve),
    )
    base = write_model(layout.model, seed=0)
    stage = layout.iteration(0)
    if serve is Serve.adapter:
        policy = write_adapter_of(base, stage.policy, seed=1, name="../../../model")
        digest = policy.digest
    else:
        policy = write_adapter_of(base, stage.adapter, seed=1, name="../../../model")
        write_merged(AdapterFolder(stage.adapter, layout.model), stage.policy, False, "float32")
        digest = policy_digest(stage.policy)
    layout.config.write_text(yaml.safe_dump(to_plain(config)))
    ledger = Ledger(layout.ledger)
    ledger.append("iterations/000/policy", digest=digest, adapter=policy.digest, base=base.digest)
    write_card(stage, config, digest, base.digest, None)
    return layout.root


def test_a_policy_with_an_adapter_is_exported_whole_or_as_an_adapter_in_both_ways_of_serving(tmp_path: Path) -> None:
    merged = make_adapter_run(tmp_path, Serve.merged)
    served = make_adapter_run(tmp_path, Serve.adapter)
    for run in (merged, served):
        export(str(run), "0", str(run) + "-whole", None)
        export(str(run), "0", str(run) + "-adapter", None, "adapter")
    weights = [load_file(tmp_path / f"{name}-whole" / "model.safetensors") for name in ("merged", "adapter")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])
    for name in ("merged", "adapter"):
        folder = tmp_path / f"{name}-adapter"
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            (tmp_path / name / "model").resolve()
        )
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "peft"
        assert "lora" in card.data.tags
        assert "rank 4, alpha 8" in card.text


def test_an_adapter_is_refused_where_there_is_none_and_where_its_base_was_altered(
    run_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="was trained without adapters"):
        export(str(run_dir), "0", str(tmp_path / "one"), None, "adapter")
    served = make_adapter_run(tmp_path, Serve.adapter)
    (served / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not the model that"):
        export(str(served), "0", str(tmp_path / "one"), None)


def test_the_reward_model_is_exported_by_its_name(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has trained no reward model; expected best, or the number"):
        export(str(run_dir), "reward_model", str(tmp_path / "judge"), None)
    layout = RunLayout(run_dir)
    config = yaml.safe_load(layout.config.read_text())
    config["reward_model"] |= {"data_path": "builtin:letters-ranked", "refresh": "every", "refresh_by": "exact_match"}
    config["feedback"] |= {"rows": "soft_pairs", "rewards": ["reward_model", "exact_match"]}
    layout.config.write_text(yaml.safe_dump(config))
    # That of the start, and then the newest one of the iterations.
    for number, stage in enumerate((layout.reward_model, layout.refreshed_reward_model(1))):
        model = write_model(stage.reward_model, seed=5 + number)
        Ledger(layout.ledger).append(f"{stage.name}/reward_model", digest=model.digest)
        export(str(run_dir), "reward_model", str(tmp_path / f"judge{number}"), None)
        with pytest.raises(ConfigError, match="weights=adapter: the reward model.* is a whole model; leave it out"):
            export(str(run_dir), "reward_model", str(tmp_path / "adapter"), None, weights="adapter")
        assert policy_digest(tmp_path / f"judge{number}") == model.digest
