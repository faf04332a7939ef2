"""The reward model that a run is given: what is refused, and what is recorded."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from spin.config.groups import FeedbackConfig, ModelConfig
from spin.config.reward_model import Center, RewardModelConfig
from spin.config.run import RunConfig
from spin.data import builtin
from spin.data.chat_renderer import Renderer
from spin.data.renderer_setup import load_renderer
from spin.errors import CheckpointError, ConfigError
from spin.feedback.feedback_checks import check_feedback
from spin.feedback.reward_model_setup import resolve_reward_model
from spin.feedback.reward_sources import ModelReward
from spin.models.packing import Group
from spin.models.policy import policy_digest
from spin.models.reward_export import RewardFacts, export_reward_model
from spin.models.scalar_head import load_reward_model
from spin.run_dir.ledger import Ledger
from tests.feedback.samples import make_config, make_group
from tests.tiny import write_model

FEEDBACK = {"rows": "soft_pairs", "rewards": ["reward_model"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy in `policy`, and a reward model made from it in `reward`."""
    folder = tmp_path_factory.mktemp("models")
    builtin.write_tiny_model(folder / "policy", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    model = load_reward_model(folder / "policy")
    export_reward_model(model, tokenizer, folder / "reward", "float32", (2,), RewardFacts())
    return folder


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return load_renderer(ModelConfig(str(folder / "policy")), folder / "policy")


def config_of(path: Path | None, data_path: str | None = None) -> RunConfig:
    given = None if path is None else str(path)
    config = make_config(**FEEDBACK)
    return replace(config, reward_model=RewardModelConfig(path=given, data_path=data_path))


def test_a_given_model_is_recorded_and_must_stay_the_same(folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    config = config_of(folder / "reward")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    model = resolve_reward_model(config, [config], ledger, renderer)
    assert model is not None
    assert model.digest == policy_digest(folder / "reward")
    assert resolve_reward_model(config, [config], ledger, renderer) == model
    other = Ledger(tmp_path / "other.jsonl")
    other.append("given_reward_model", digest="ab")
    with pytest.raises(CheckpointError, match="was altered since the run began"):
        resolve_reward_model(config, [config], other, renderer)


def test_a_source_without_a_model_and_a_model_without_a_source_are_refused(
    folder: Path, renderer: Renderer, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    config = config_of(None)
    with pytest.raises(ConfigError, match=r"feedback.rewards=\[reward_model\] needs a reward model"):
        resolve_reward_model(config, [config], ledger, renderer)
    unused = replace(config_of(folder / "reward"), feedback=FeedbackConfig())
    with pytest.raises(ConfigError, match="scores nothing; set feedback=reward_model"):
        resolve_reward_model(unused, [unused], ledger, renderer)
    trained = config_of(None, "builtin:letters-ranked")
    assert resolve_reward_model(trained, [trained], ledger, renderer) is None


def test_a_policy_and_a_model_with_another_vocabulary_are_refused(
    folder: Path, renderer: Renderer, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    config = config_of(folder / "policy")
    with pytest.raises(ConfigError, match="is LlamaForCausalLM with .*expected a model for sequence classification"):
        resolve_reward_model(config, [config], ledger, renderer)
    other = write_model(tmp_path / "other", seed=0)
    renderer_of_other = replace(renderer, tokenizer=AutoTokenizer.from_pretrained(other.path))
    config = config_of(folder / "reward")
    with pytest.raises(ConfigError, match="has another vocabulary than model.path"):
        resolve_reward_model(config, [config], ledger, renderer_of_other)


def test_ratings_need_a_mean_of_truths_or_another_centre(folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    for file in (folder / "reward").iterdir():
        if file.name != "reward.json":
            (tmp_path / "reward" / file.name).write_bytes(file.read_bytes())
    given = RewardModelConfig(path=str(tmp_path / "reward"))
    config = replace(make_config(rows="ratings", rewards=["reward_model"]), reward_model=given)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ConfigError, match=r"has no reward\.json with the mean reward of the ground truths"):
        resolve_reward_model(config, [config], ledger, renderer)
    config = replace(config, reward_model=replace(given, center=Center.batch))
    assert resolve_reward_model(config, [config], ledger, renderer) is not None


def test_a_model_is_either_given_or_trained() -> None:
    with pytest.raises(ConfigError, match="the model is either given or trained"):
        RewardModelConfig(path="a/b", data_path="builtin:letters-ranked")


def test_the_source_scores_the_samples_of_each_prompt_in_their_order() -> None:
    seen: list[Group] = []

    def score(groups: list[Group]) -> list[list[float]]:
        seen.extend(groups)
        return [[float(ids[1]) for ids in group.completions] for group in groups]

    assert ModelReward(score).score([make_group("a", "b"), make_group("c", prompt_id=5)]) == [[0.0, 1.0], [0.0]]
    assert [group.prompt_ids for group in seen] == [[1, 9, 3], [1, 9, 5]]


def test_the_source_takes_no_parameters() -> None:
    check_feedback(make_config(**FEEDBACK))
    config = make_config(rows="soft_pairs", rewards=[{"name": "reward_model", "parameters": {"a": 1}}])
    with pytest.raises(ConfigError, match="reward_model takes no parameters"):
        check_feedback(config)
