"""Every config key is documented where it is defined."""

from spin.config.key_docs import describe_groups, describe_keys, list_options, read_field_docs
from spin.config.training import LrSchedule
from spin.config.unknown_keys import list_keys


def test_every_key_has_a_docstring_whose_first_paragraph_is_a_sentence() -> None:
    for key in describe_keys():
        assert key.summary.endswith("."), key.key


def test_the_documented_keys_are_those_of_a_run() -> None:
    documented = {key.key for key in describe_keys()}
    # A dict of the user's own entries is no key in list_keys.
    free = {"schedule", "model.chat_template_kwargs", "objective.parameters", "reward_model.subset_counts"}
    assert documented - free == set(list_keys()) - free


def test_a_key_has_its_default_type_and_values() -> None:
    keys = {key.key: key for key in describe_keys()}
    schedule = keys["training.lr_schedule"]
    assert schedule.default == "linear"
    assert schedule.choices["constant"] == "The learning rate stays as it is."
    assert (keys["data.limit"].default, keys["data.limit"].kind) == ("null", "whole number, or null")
    assert keys["training.learning_rate"].default == "5e-07"
    assert keys["run_dir"].default == "…"
    assert keys["judge.price"].default == "[0.0,0.0]"


def test_a_stage_has_the_defaults_of_its_own_group() -> None:
    keys = {key.key: key for key in describe_keys()}
    assert keys["reward_model.training.lr_schedule"].default == "cosine_to_tenth"


def test_each_objective_is_a_group_with_the_keys_of_its_base_classes() -> None:
    groups = {group.name: group for group in describe_groups()}
    assert [key.key for key in groups["objective=dpo"].keys] == [
        "objective.name",
        "objective.sft_weight",
        "objective.reference",
        "objective.beta",
        "objective.label_smoothing",
    ]


def test_the_members_of_an_enum_are_documented() -> None:
    assert set(read_field_docs(LrSchedule)) == set(LrSchedule.__members__)


def test_every_option_of_a_group_is_described_by_a_sentence() -> None:
    options = list_options()
    assert set(options) == {"adapter", "experiment", "feedback", "objective"}
    for group, names in options.items():
        for name, text in names.items():
            assert text.endswith("."), f"{group}={name}"
