"""Keys that do not exist are refused at any depth, with the nearest one that does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from spin.config import unknown_keys
from spin.config.objective import CustomObjective
from spin.config.overrides import adapt_override, check_overrides, explain_error, quote_schedule
from spin.config.run import CONF_DIR, RunConfig, fingerprint, register
from spin.config.schedule import apply_schedule
from spin.config.unknown_keys import check_keys
from spin.errors import ConfigError

LOSS = ["objective=custom", "objective._target_=my.loss"]


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        yield


def quickstart(**overrides: Any) -> RunConfig:
    """The config of the quickstart, with other values of its top-level keys."""
    config = OmegaConf.to_object(compose("config", overrides=["experiment=quickstart"]))
    assert isinstance(config, RunConfig)
    return replace(config, **overrides)


def message_of(*overrides: str) -> str:
    """The message that a command line with these overrides is refused with."""
    with pytest.raises((ConfigError, HydraException)) as caught:
        check_keys(compose("config", overrides=["experiment=quickstart", *overrides]))
    return explain_error(caught.value)


@pytest.mark.parametrize("prefix", ["+", "++"])
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("training.lerning_rate", "did you mean training.learning_rate?"),
        ("training.max_grad_nrm", "did you mean training.max_grad_norm?"),
        ("warmup.training.epoch", "did you mean warmup.training.epochs?"),
        ("benchmark.lm_eval.fewshot", "did you mean benchmark.lm_eval.num_fewshot?"),
        ("objective.foo", "expected one of name, sft_weight, reference, base_weight, beta, link in objective"),
        ("objective.parameters", "expected one of name, sft_weight, reference, base_weight, beta, link in objective"),
        ("feedback.zzz", "expected one of "),
        ("training.temperature", "did you mean generation.temperature?"),
        ("beta", "did you mean objective.beta?"),
        ("training.lr", "did you mean training.learning_rate?"),
        ("lr", "did you mean training.learning_rate?"),
        ("generation.temp", "did you mean generation.temperature?"),
        ("training.temprature", "did you mean generation.temperature?"),
        ("sed", "did you mean seed?"),
        ("foo", "expected one of run_dir, iterations, seed, "),
    ],
)
def test_an_unknown_key_that_is_added_is_refused_with_the_nearest_known_one(
    prefix: str, key: str, expected: str
) -> None:
    message = message_of(f"{prefix}{key}=1")
    assert message.startswith(f"no config key {key}; {expected}")
    assert "\n" not in message


def test_an_unknown_key_has_the_same_message_with_and_without_a_plus() -> None:
    assert message_of("training.lerning_rate=1") == message_of("+training.lerning_rate=1")
    assert message_of("++training={lerning_rate: 1}") == message_of("+training.lerning_rate=1")


def test_the_entries_of_free_dicts_are_not_checked() -> None:
    words = [*LOSS, "+objective.parameters.anything.deeper=1", quote_schedule("schedule={1:[objective=ipo]}")]
    check_keys(compose("config", overrides=["experiment=quickstart", *words]))


@pytest.mark.parametrize(
    "word", ["chat_template_kwargs.enable_thinking=false", "chat_template_kwargs={enable_thinking: false}"]
)
def test_an_entry_of_a_free_dict_is_set_as_any_key_and_binds_a_resume(word: str) -> None:
    overrides = ["experiment=quickstart", "run_dir=x", adapt_override(f"model.{word}")]
    config = OmegaConf.to_object(compose("config", overrides=overrides))
    assert isinstance(config, RunConfig)
    assert config.model.chat_template_kwargs == {"enable_thinking": False}
    assert fingerprint(config)["model.chat_template_kwargs.enable_thinking"] == "false"


def test_an_entry_of_a_free_dict_is_set_in_a_schedule_as_any_key() -> None:
    changes = [*LOSS, "objective.parameters.margin=2"]
    schedule = adapt_override(f"schedule={{1:[{','.join(changes)}]}}")
    iteration = apply_schedule(quickstart(schedule={1: changes}), 1, ["experiment=quickstart", schedule])
    objective = iteration.objective
    assert isinstance(objective, CustomObjective)
    assert objective.parameters == {"margin": 2}


def test_every_shipped_experiment_and_objective_has_known_keys_only() -> None:
    for experiment in (CONF_DIR / "experiment").glob("*.yaml"):
        check_keys(compose("config", overrides=[f"experiment={experiment.stem}"]))
    for objective in (CONF_DIR / "objective").glob("*.yaml"):
        check_keys(compose("config", overrides=["experiment=quickstart", f"objective={objective.stem}"]))


@pytest.mark.parametrize("change", ["+training.lerning_rate=1", "++training.lerning_rate=1", "training.lerning_rate=1"])
def test_an_unknown_key_in_a_schedule_is_refused_with_its_iteration(change: str) -> None:
    config = quickstart(schedule={1: [change]})
    with pytest.raises(ConfigError) as caught:
        apply_schedule(config, 1, ["experiment=quickstart"])
    assert str(caught.value) == (
        "schedule, iteration 1: no config key training.lerning_rate; did you mean training.learning_rate?"
    )


def test_a_renamed_key_is_refused_with_the_new_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unknown_keys.RENAMED_KEYS, "training.rate", "training.learning_rate")
    expected = "training.rate is no config key any more; use training.learning_rate"
    assert message_of("training.rate=1") == message_of("+training.rate=1") == expected


def test_the_overrides_of_a_schedule_are_quoted_as_hydra_reads_them() -> None:
    quoted = quote_schedule("schedule={1:[objective=ipo, ~training.epochs], 2:[~objective=spin]}")
    assert quoted == "++schedule={1:['objective=ipo', '~training.epochs'], 2:['~objective=spin']}"


def test_an_override_that_deletes_a_key_is_refused() -> None:
    check_overrides(["training.batch_size=1", "+objective.parameters.a=~1"])
    for override in ("~training", "~training.batch_size", "~objective=spin"):
        with pytest.raises(ConfigError, match=f"{override} deletes a part of the config"):
            check_overrides(["seed=1", override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("iterations=abc", "iterations=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("data.path=null", "data.path=null: null is no value of this key"),
        ("training.workers=1.5", "training.workers=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
        ("benchmark.enabled=maybe", "benchmark.enabled=maybe: Value 'maybe' is not a valid bool (type str)"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_override_as_it_was_given(override: str, expected: str) -> None:
    assert message_of(override) == expected


def test_an_unknown_key_of_a_recipe_is_refused_with_the_recipe_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntraining: {lerning_rate: 1}\n")
    with pytest.raises(HydraException) as caught:
        compose("config", overrides=[f"hydra.searchpath=[{tmp_path}]", "experiment=mine"])
    expected = "In 'experiment/mine': no config key training.lerning_rate; did you mean training.learning_rate?"
    assert explain_error(caught.value) == expected
