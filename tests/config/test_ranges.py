"""Every number of the config has a range, and values outside of it are refused by name."""

import dataclasses
import typing
from types import NoneType, UnionType
from typing import Any

import pytest

from spin.config.cluster import ClusterConfig
from spin.config.groups import DataConfig
from spin.config.judge import JudgeConfig
from spin.config.objective import OBJECTIVE_CONFIGS
from spin.config.ranges import Range, bounded, check_ranges
from spin.config.run import RunConfig
from spin.config.training import TrainingConfig
from spin.errors import ConfigError


def list_groups(group: type[Any]) -> list[type[Any]]:
    """Return a config dataclass with all groups inside it; no new group is left out."""
    groups = [group]
    for hint in typing.get_type_hints(group).values():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            groups += list_groups(hint)
    return groups


GROUPS = list(dict.fromkeys([*list_groups(RunConfig), *OBJECTIVE_CONFIGS.values()]))


def list_numbers() -> list[tuple[type[Any], str]]:
    """Return every field of every config group that holds a number."""
    numbers = []
    for group in GROUPS:
        hints = typing.get_type_hints(group)
        for entry in dataclasses.fields(group):
            kinds = {hints[entry.name]}
            if isinstance(hints[entry.name], UnionType):
                kinds = set(typing.get_args(hints[entry.name])) - {NoneType}
            if kinds in ({int}, {float}):
                numbers.append((group, entry.name))
    return numbers


NUMBERS = list_numbers()


def test_the_numbers_are_found() -> None:
    assert len(NUMBERS) > 50
    assert (TrainingConfig, "learning_rate") in NUMBERS
    assert (ClusterConfig, "cpus") in NUMBERS
    assert (JudgeConfig, "timeout") in NUMBERS


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -1e30, 1e30])
@pytest.mark.parametrize(("group", "name"), NUMBERS)
def test_a_number_that_makes_no_sense_is_refused_by_name(group: type[Any], name: str, value: float) -> None:
    needed: dict[str, Any] = {}
    if group is DataConfig:
        needed = {"path": "d"}
    with pytest.raises(ConfigError, match=rf"{name}=.*: expected "):
        group(**{**needed, name: value})


def test_the_message_names_value_and_both_bounds() -> None:
    @dataclasses.dataclass
    class Group:
        share: float = bounded(0.5, above=0, at_most=1)
        limit: int | None = bounded(None, at_least=1, below=10)

    check_ranges(Group(), "group.")
    check_ranges(Group(1.0, 9), "group.")
    with pytest.raises(ConfigError, match=r"^group\.share=0: expected above 0 and at most 1$"):
        check_ranges(Group(0), "group.")
    with pytest.raises(ConfigError, match=r"^group\.limit=10: expected at least 1 and below 10, or null$"):
        check_ranges(Group(limit=10), "group.")


def test_bounds_are_inside_or_outside_as_named() -> None:
    closed, open_ended = Range(1, None, 2, None), Range(None, 1, None, 2)
    assert [closed.contains(value) for value in (0.9, 1, 2, 2.1)] == [False, True, True, False]
    assert [open_ended.contains(value) for value in (1, 1.5, 2)] == [False, True, False]
