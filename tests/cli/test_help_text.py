"""The help explains every key from the config's docstrings and fits the terminal."""

import dataclasses

import pytest

from spin.cli.commands import COMMANDS
from spin.cli.dispatch import print_usage
from spin.cli.help_text import describe_arguments, describe_run, describe_topic
from spin.config.key_docs import describe_keys
from spin.errors import ConfigError


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_help_of_a_run_has_every_key_and_no_names_of_hydra() -> None:
    text = describe_run("run")
    for key in describe_keys():
        # Keys of objectives and of stages are named by their last part.
        assert key.key in text or key.key.rpartition(".")[2] in text
    assert "_schema" not in text
    assert "Hydra" not in text


def test_the_helps_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_usage()
    texts = [describe_run("check"), describe_topic("training"), describe_topic("objective"), capsys.readouterr().out]
    for line in "\n".join(texts).splitlines():
        assert len(line) <= 80, line


def test_a_key_is_explained_with_its_default_its_values_and_its_group() -> None:
    text = describe_topic("training.lr_schedule")
    assert text.splitlines()[0] == "  training.lr_schedule=linear"
    assert "constant: The learning rate stays as it is." in text
    assert "Group training: One training stage" in text


def test_the_last_name_of_a_key_finds_it_in_every_group() -> None:
    heads = [
        line.strip() for line in describe_topic("split").splitlines() if line.startswith("  ") and ".split=" in line
    ]
    assert heads == [
        "data.split=train",
        "data.ptx.split=train",
        "feedback.split=train",
        "reward_model.split=train",
        "warmup.split=train",
    ]


def test_objectives_that_share_a_key_are_named_together() -> None:
    assert "Objectives: spin, dpo, ipo, kto, kto_pair, irpo." in describe_topic("objective.beta")


def test_a_recipe_is_explained_by_the_comment_at_its_head() -> None:
    assert "The recipe of the SPIN paper" in describe_topic("experiment=spin_paper")


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("training.lr", "did you mean training.learning_rate?"),
        ("generation.temprature", "did you mean generation.temperature?"),
        ("qqqq", "spin run --help lists all keys"),
        ("trainin", "did you mean training?"),
    ],
)
def test_help_about_nothing_names_the_nearest_key(topic: str, expected: str) -> None:
    with pytest.raises(ConfigError, match="no config key or group") as caught:
        describe_topic(topic)
    assert expected in str(caught.value)


def test_the_help_of_each_command_explains_each_of_its_arguments() -> None:
    for name, command in COMMANDS.items():
        lines = describe_arguments(name, command.help, command.arguments).splitlines()
        for argument in dataclasses.fields(command.arguments):
            [place] = [number for number, line in enumerate(lines) if line.startswith(f"  {argument.name}=")]
            # The text is indented more than the key.
            assert lines[place + 1].startswith("      "), f"{name}: {argument.name} has no text"
