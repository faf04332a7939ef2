"""The documentation of the config keys, read from the docstrings under the dataclass fields.

`spin help`, `spin run --help`, tab completion and docs/configuration_reference.md all take it from
here, so that a key is described in one place: its dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any

from omegaconf import MISSING

from spin.config.objective import OBJECTIVE_CONFIGS
from spin.config.run import CONF_DIR, RunConfig

TYPE_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
"""Names of field types in the documentation."""


@dataclass(frozen=True)
class KeyDoc:
    """The documentation of one config key."""

    key: str
    """Dotted name, such as ``training.learning_rate``."""
    kind: str
    """Type of its values in words."""
    default: str
    """Default as it is typed on the command line; ``…`` if a value must be given."""
    text: str
    """The docstring under the field; its first line is a sentence of its own."""
    choices: dict[str, str]
    """Values of a key that has a list of them, each with its docstring."""

    @property
    def summary(self) -> str:
        """Return the first paragraph of the text."""
        return self.text.split("\n\n", 1)[0].replace("\n", " ")


@dataclass(frozen=True)
class GroupDoc:
    """The documentation of one dataclass of the config, with its keys."""

    name: str
    """Dotted name, such as ``benchmark.lm_eval``; or ``objective=dpo``; empty for a run."""
    text: str
    """Docstring of the dataclass."""
    keys: list[KeyDoc]
    """Its own keys, without those of the groups in it."""


@cache
def describe_groups() -> list[GroupDoc]:
    """Return all groups of a run in the order of the dataclasses; each objective is a group."""
    return list(_walk(RunConfig, RunConfig(), ""))


def describe_keys() -> list[KeyDoc]:
    """Return all keys of a run; a key that several objectives have is there once for each."""
    keys = []
    for group in describe_groups():
        keys += group.keys
    return keys


def list_options() -> dict[str, dict[str, str]]:
    """Return the config groups that are chosen by name: group, option, text about it."""
    options: dict[str, dict[str, str]] = {}
    for path in sorted(CONF_DIR.glob("*/*.yaml")):
        summary = _read_comment(path.read_text())
        if path.parent.name == "objective" and path.stem in OBJECTIVE_CONFIGS:
            summary = join_lines(inspect.getdoc(OBJECTIVE_CONFIGS[path.stem]) or "")
        options.setdefault(path.parent.name, {})[path.stem] = summary
    return options


def join_lines(text: str) -> str:
    """Return the first paragraph of a text in one line."""
    return " ".join(text.split("\n\n", 1)[0].split())


def read_field_docs(owner: type[Any]) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, or under each member of an enum.

    Fields without a docstring are left out, but for those that a base class describes.
    """
    docs: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if base.__module__.startswith("spin."):
            docs.update(_read_class_docs(base))
    return docs


def _walk(group: type[Any], values: Any, prefix: str) -> typing.Iterator[GroupDoc]:
    """Yield the documentation of a dataclass and of the groups in it.

    Args:
        group: The dataclass.
        values: One of its objects, with the default of each field.
        prefix: What stands before the name of a field, such as ``training.``.
    """
    hints = typing.get_type_hints(group)
    docs = read_field_docs(group)
    keys = []
    inner: list[tuple[str, type[Any], Any]] = []
    for entry in dataclasses.fields(group):
        key = prefix + entry.name
        hint, value = hints[entry.name], getattr(values, entry.name)
        if dataclasses.is_dataclass(hint):
            inner.append((key, typing.cast(type[Any], hint), value))
        else:
            keys.append(KeyDoc(key, _name_type(hint), _show(value), docs.get(entry.name, ""), _list_choices(hint)))
    yield GroupDoc(prefix.rstrip("."), inspect.getdoc(group) or "", keys)
    for key, hint, value in inner:
        if key == "objective":
            yield from _walk_objectives()
        else:
            yield from _walk(hint, value, f"{key}.")


def _walk_objectives() -> typing.Iterator[GroupDoc]:
    """Yield the documentation of each objective."""
    for name, config_type in OBJECTIVE_CONFIGS.items():
        # Made without checks: `custom` has no function by default.
        values = object.__new__(config_type)
        for entry in dataclasses.fields(config_type):
            default = entry.default
            if entry.default_factory is not dataclasses.MISSING:
                default = entry.default_factory()
            setattr(values, entry.name, default)
        [group] = _walk(config_type, values, "objective.")
        yield GroupDoc(f"objective={name}", group.text, group.keys)


def _read_class_docs(owner: type[Any]) -> dict[str, str]:
    """Return the docstrings under the fields that a class itself defines."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(following, ast.Expr) or not isinstance(following.value, ast.Constant):
            continue
        target: Any = None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign):
            target = statement.targets[0]
        if isinstance(target, ast.Name):
            docs[target.id] = inspect.cleandoc(str(following.value.value))
    return docs


def _name_type(hint: Any) -> str:
    """Return the type of a field in words."""
    if hint is Any:
        return "any value"
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is list:
        return "list"
    if origin is dict:
        return "mapping"
    if NoneType in arguments:
        [other] = [argument for argument in arguments if argument is not NoneType]
        return f"{_name_type(other)}, or null"
    if issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    return TYPE_NAMES[hint]


def _list_choices(hint: Any) -> dict[str, str]:
    """Return the values of an enum with their docstrings; of a truth value, both."""
    if hint is bool:
        return {"true": "", "false": ""}
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, Enum):
            docs = read_field_docs(kind)
            return {name: join_lines(docs.get(name, "")) for name in kind.__members__}
    return {}


def _show(value: Any) -> str:
    """Return a default as it is typed on the command line."""
    if value == MISSING:
        return "…"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{','.join(str(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def _read_comment(text: str) -> str:
    """Return the first paragraph of the comment at the head of a config file, in one line."""
    words: list[str] = []
    for line in text.splitlines():
        # The package of the file, for Hydra.
        if line.startswith("# @"):
            continue
        if not line.startswith("# "):
            break
        words.append(line.removeprefix("# "))
    return " ".join(words)
