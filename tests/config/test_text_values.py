"""Values of text keys on the command line mean what they say."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from spin.config.overrides import adapt_override
from spin.config.run import CONF_DIR, register
from spin.config.text_values import list_text_keys

VALUES = [
    "out [b]",
    "ref #2",
    "a=b",
    "a,b",
    "a (1)",
    "{x}",
    "0123",
    "1e3",
    "yes",
    "über/läufe",
    "it's",
    'say "so"',
    "back\\slash",
    "ends with \\",
    "back\\'quote",
    "x: y",
    "*",
    "~user",
]


def compose_value(word: str, key: str, sweep: bool = False) -> object:
    """Return the value of a key after Hydra has read one word of the command line."""
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        overrides = ["experiment=quickstart", "run_dir=x", adapt_override(word, sweep)]
        node = compose("config", overrides=overrides)
    for name in key.split("."):
        node = node[name]
    return node


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["run_dir", "data.path"])
def test_a_text_is_taken_as_it_stands(key: str, value: str) -> None:
    assert compose_value(f"{key}={value}", key) == value


def test_a_pattern_keeps_its_backslashes_and_groups() -> None:
    pattern = r"#### (-?\d+(?:[,.]\d+)*)$"
    assert compose_value(f"data.answer_pattern={pattern}", "data.answer_pattern") == pattern


def test_a_path_at_home_is_expanded() -> None:
    assert compose_value("data.path=~/rows.jsonl", "data.path") == str(Path.home() / "rows.jsonl")


def test_null_quoted_values_and_interpolations_are_left_to_hydra() -> None:
    assert compose_value("data.eval_path=null", "data.eval_path") is None
    assert compose_value("run_dir='quoted already'", "run_dir") == "quoted already"
    assert compose_value("run_dir=outputs/${seed}", "run_dir") == "outputs/0"


def test_a_sweep_still_splits_its_values_at_commas() -> None:
    assert adapt_override("data.path=a.jsonl,b.jsonl", sweep=True) == "data.path=a.jsonl,b.jsonl"
    assert adapt_override("seed=0,1", sweep=True) == "seed=0,1"


def test_only_text_keys_are_quoted() -> None:
    assert {"run_dir", "model.path", "warmup.path", "objective._target_"} <= list_text_keys()
    assert not {"seed", "objective", "objective.name", "training.optimizer"} & list_text_keys()
    assert adapt_override("training.learning_rate=1e-3") == "training.learning_rate=1e-3"
