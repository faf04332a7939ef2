"""`spin reward-bench` on a tiny reward model and rankings that it orders itself."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from spin.cli.reward_bench import RewardBenchArguments
from spin.config.training import Dtype
from spin.data import builtin
from spin.errors import ConfigError
from spin.models.reward_export import RewardFacts, export_reward_model
from spin.models.scalar_head import load_reward_model
from spin.orchestration.reward_bench import RewardBenchOptions, bench_reward_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy in `policy`, and a random reward model in `reward`."""
    folder = tmp_path_factory.mktemp("models")
    builtin.write_tiny_model(folder / "policy", seed=0)
    model = load_reward_model(folder / "policy")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    export_reward_model(model, tokenizer, folder / "reward", "float32", (2,), RewardFacts())
    return folder


def test_figures_are_printed_and_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "figures.json"
    model = str(folder / "reward")
    bench_reward_model(RewardBenchOptions(model, "builtin:letters-ranked", "test", 30, 64, Dtype.float32, str(to)))
    told = capsys.readouterr().out
    figures = json.loads(to.read_text())
    assert figures["prompts"] == 30
    # A random model is right about half of the time.
    assert 0.2 < figures["accuracy"] < 0.8
    assert "30 of 30 rows of builtin:letters-ranked (rankings) as prompt+responses+ranks" in told
    assert f"accuracy over pairs {figures['accuracy']:.3f}" in " ".join(told.split())


def test_subsets_and_their_weights_are_read_from_the_command_line() -> None:
    given = RewardBenchArguments("model", "data", subset_counts=["easy:100", "a:b:2"])
    assert given.parse_subset_counts() == {"easy": 100.0, "a:b": 2.0}
    for wrong in ("easy", "easy:0", "easy:x"):
        with pytest.raises(ConfigError, match="expected a number above 0"):
            RewardBenchArguments("model", "data", subset_counts=[wrong]).parse_subset_counts()


def test_a_policy_is_no_reward_model(folder: Path) -> None:
    options = RewardBenchOptions(str(folder / "policy"), "builtin:letters-ranked", "test", 5, 64, Dtype.float32, None)
    with pytest.raises(ConfigError, match="expected a model for sequence classification with one label"):
        bench_reward_model(options)
