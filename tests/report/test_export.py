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

from spin.config.adapter import Serve
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import IpoObjective
from spin.config.run import RunConfig, to_plain
from spin.errors import CheckpointError, ConfigError
from spin.models.adapter_folder import AdapterFolder, write_merged
from spin.models.policy import policy_digest
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
    assert digest in after.text
    assert (after.data.base_model, after.data.datasets, after.data.tags) == (
        "owner/model",
        None,
        ["spin", "self-play", "ipo"],
    )


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
    model = write_model(layout.reward_model.reward_model, seed=5)
    Ledger(layout.ledger).append("reward_model/reward_model", digest=model.digest)
    export(str(run_dir), "reward_model", str(tmp_path / "judge"), None)
    assert policy_digest(tmp_path / "judge") == model.digest
