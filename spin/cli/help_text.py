"""The text of `spin run --help` and of `spin help KEY`, from the docstrings of the config."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from typing import Any

from spin.config.key_docs import (
    GroupDoc,
    KeyDoc,
    describe_groups,
    describe_keys,
    join_lines,
    list_options,
    read_field_docs,
)
from spin.config.unknown_keys import find_near_key, find_near_name
from spin.errors import ConfigError

STAGES = ("warmup.training", "reward_model.training")
"""Groups whose keys are those of `training`, with other defaults."""


def text_width() -> int:
    """Return the columns that help texts use: those of the terminal, at most 100."""
    return min(shutil.get_terminal_size().columns, 100)


def describe_run(command: str) -> str:
    """Return the help of `spin run` and the commands like it: every config group and key.

    Args:
        command: ``run``, ``check`` or ``reward``.
    """
    introduction = (
        f"spin {command} KEY=VALUE …\n\n"
        "spin help KEY explains one key with its values, spin help GROUP a whole group. "
        f"spin {command} … --cfg job prints the config of a run."
    )
    blocks = [_fill(introduction), "Chosen by name:\n" + _list_choices()]
    for group in describe_groups():
        if group.name in STAGES:
            blocks.append(_describe_stage(group))
        elif group.name.startswith("objective="):
            blocks.append(_describe_objective(group))
        elif group.keys:
            blocks.append(_describe_group(group, summaries=True))
    return "\n\n".join(blocks)


def describe_arguments(name: str, text: str, arguments: type) -> str:
    """Return the help of a command besides `spin run`: its arguments, their defaults and meanings.

    Args:
        name: The command.
        text: One line about it.
        arguments: The dataclass of its arguments, with a docstring under each field.
    """
    docs = read_field_docs(arguments)
    lines = [_fill(f"spin {name}: {text}")]
    for argument in dataclasses.fields(arguments):
        lines.append(f"  {argument.name}={_show_default(argument)}")
        if argument.name in docs:
            lines.append(_indent(join_lines(docs[argument.name]).replace("``", "`")))
    return "\n".join(lines)


def _show_default(argument: dataclasses.Field[Any]) -> str:
    """Return the default of an argument; ``…`` if it has none."""
    if argument.default_factory is not dataclasses.MISSING:
        return "[]"
    if argument.default is dataclasses.MISSING:
        return "…"
    return "null" if argument.default is None else str(argument.default)


def describe_topic(topic: str) -> str:
    """Return the help about a key, a group, an option or the last name of a key.

    Raises:
        ConfigError: No key, group or option has this name; the message names the nearest one.
    """
    groups = {group.name: group for group in describe_groups()}
    name, equals, option = topic.partition("=")
    options = list_options()
    if name in options and (not equals or option in options[name]):
        if topic in groups:
            return _describe_group(groups[topic])
        chosen = options[name]
        if equals:
            chosen = {option: chosen[option]}
        text = "\n".join(_describe_option(name, *item) for item in chosen.items())
        if name in groups:
            text += "\n\n" + _describe_group(groups[name])
        return text
    if topic in groups:
        return _describe_group(groups[topic])
    # A whole key, otherwise all keys with this last name; a value behind it says nothing more.
    found = [key for key in describe_keys() if key.key == name]
    if not found:
        found = [key for key in describe_keys() if key.key.rpartition(".")[2] == name]
    if not found:
        near = find_near_key(name)
        if "." not in name:
            near = find_near_name(name, list(groups)) or near
        hint = "spin run --help lists all keys"
        if near is not None:
            hint = f"did you mean {near}?"
        raise ConfigError(f"no config key or group {name}; {hint}")
    return "\n\n".join(_describe_keys_of_one_name(found))


def _describe_keys_of_one_name(keys: list[KeyDoc]) -> list[str]:
    """Return the texts of keys; objectives that share a key and its text are named together."""
    found: dict[tuple[str, str, str], tuple[KeyDoc, list[GroupDoc]]] = {}
    for group in describe_groups():
        for key in group.keys:
            if key in keys:
                same = (key.key, key.default, key.text)
                found.setdefault(same, (key, []))[1].append(group)
    texts = []
    for key, groups in found.values():
        lines = [_describe_key(key)]
        names = [group.name for group in groups]
        if names[0].startswith("objective="):
            lines.append(_indent(f"Objectives: {', '.join(name.partition('=')[2] for name in names)}."))
        elif names[0]:
            lines.append(_indent(f"Group {names[0]}: {join_lines(groups[0].text)}"))
        texts.append("\n".join(lines))
    return texts


def _describe_group(group: GroupDoc, summaries: bool = False) -> str:
    """Return the docs of a group: each key with its whole text, or with its first sentence."""
    head = _fill(f"{group.name or 'Without a group'}: {' '.join(group.text.split())}")
    return "\n".join([head, *(_describe_key(key, summaries) for key in group.keys)])


def _describe_stage(group: GroupDoc) -> str:
    """Return the docs of a training stage: only the defaults that are not those of `training`."""
    usual = {key.key: key.default for key in describe_keys()}
    other = []
    for key in group.keys:
        if key.default != usual["training." + key.key.rpartition(".")[2]]:
            other.append(f"{key.key.rpartition('.')[2]}={key.default}")
    return _fill(f"{group.name}: the keys of training, with the defaults {', '.join(other)}")


def _describe_objective(group: GroupDoc) -> str:
    """Return one sentence about an objective, and the names of its keys."""
    names = [key.key.rpartition(".")[2] for key in group.keys]
    names.remove("name")
    return f"{_fill(f'{group.name}: {join_lines(group.text)}')}\n{_indent('Keys: ' + ', '.join(names) + '.')}"


def _describe_key(key: KeyDoc, summary: bool = False) -> str:
    """Return the docs of a key: its default and the first sentence, or all that is known."""
    head = f"  {key.key}={key.default}"
    if summary:
        return f"{head}\n{_indent(key.summary)}"
    lines = [head, *(_indent(" ".join(part.split())) for part in key.text.split("\n\n"))]
    if any(key.choices.values()):
        lines += [_indent(f"{name}: {text}") for name, text in key.choices.items()]
    else:
        lines.append(_indent(f"Type: {key.kind}."))
    return "\n".join(lines)


def _describe_option(group: str, name: str, text: str) -> str:
    """Return the docs of an option of a config group."""
    return f"  {group}={name}\n{_indent(text)}"


def _list_choices() -> str:
    """Return the config groups that are chosen by name, with their options."""
    lines = []
    for group, names in list_options().items():
        lines.append(_fill(f"  {group}={', '.join(names)}", "    "))
    return "\n".join(lines)


def _indent(text: str) -> str:
    """Return a paragraph below a key, wrapped at words."""
    indent = " " * 6
    return textwrap.fill(text, text_width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _fill(text: str, indent: str = "") -> str:
    """Return a text wrapped at words, each paragraph apart from the next."""
    parts = text.split("\n\n")
    return "\n\n".join(
        textwrap.fill(part, text_width(), subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
        for part in parts
    )
