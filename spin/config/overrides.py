"""Adapt the overrides of a user to Hydra's grammar, and explain Hydra's errors in one line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from spin.config.text_values import quote_text
from spin.config.unknown_keys import describe_unknown_key, find_near_name
from spin.errors import ConfigError, single_line

OVERRIDE_IN_LIST = re.compile(r"(?<=[\[,\s])(?:[\w./@+~]+=(?:\${[^}]*}|\[[^\[\]'\"]*\]|[^,\[\]{}'\"])+|~[\w./@]+)")
"""One unquoted `key=value` or `~key` inside a list of the schedule; the value may be a list."""

FREE_DICTS = ("model.chat_template_kwargs", "objective.parameters")
"""Keys of dicts whose entries the user names."""

MERGING = "Error merging override "
"""Beginning of Hydra's headline for an override."""

UNKNOWN_KEY = (ConfigAttributeError, ConfigKeyError)
"""Errors of OmegaConf for a key that a group does not have, by the way it is set."""


def quote_schedule(override: str) -> str:
    """Return ``schedule={1:[objective=ipo]}`` as Hydra's grammar accepts it.

    Hydra allows no bare equals sign inside a list, and adds new keys of a dict with ``++`` only.
    """
    key, value = override.split("=", 1)
    quoted = OVERRIDE_IN_LIST.sub(lambda match: f"'{match[0].strip()}'", value)
    return f"++{key}={quoted}"


def adapt_override(override: str, sweep: bool = False) -> str:
    """Return an override as Hydra's grammar accepts it; users write all keys alike.

    Args:
        override: One word of the command line.
        sweep: Whether several runs were asked for.
    """
    if override.startswith("schedule="):
        return quote_schedule(override)
    # Hydra adds entries to a free dict with ++ only.
    if override.startswith(FREE_DICTS):
        return f"++{override}"
    return quote_text(override, sweep)


def check_overrides(overrides: list[str]) -> None:
    """Raise ConfigError for an override that deletes a key: every run needs all keys."""
    for override in overrides:
        if override.startswith("~"):
            raise ConfigError(f"{override} deletes a part of the config; give its keys other values, or leave it out")


def explain_error(error: Exception) -> str:
    """Return an error of this package, Hydra or OmegaConf as one line.

    For an unknown key, the line names the nearest known one.
    """
    if isinstance(error, ConfigError):
        # One that a Ray actor raised prints as a traceback; its cause is the error itself.
        return single_line(str(getattr(error, "cause", None) or error))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return describe_unknown_option(error.missing_cfg_file, error.options)
    # Hydra chains the reason either way: "raise … from" for an override, a plain raise for a file.
    cause = error.__cause__ or error.__context__ or error
    first_line = str(error).split("\n", 1)[0]
    # An unknown key: not Hydra's text, which advises to add it with +.
    if isinstance(cause, UNKNOWN_KEY) and cause.full_key and dataclasses.is_dataclass(cause.object_type):
        place = re.match(r"In '[^']*': ", first_line)
        message = describe_unknown_key(cause.full_key, cause.object_type)
        return place[0] + message if place else message
    # A value of another type: the override as it was given, and what OmegaConf says of it.
    if isinstance(cause, ValidationError) and MERGING in first_line:
        reason = str(cause).split("\n", 1)[0]
        if "is not Optional" in reason:
            reason = "null is no value of this key"
        return single_line(f"{first_line.replace(MERGING, '')}: {reason}")
    # Any other error of OmegaConf: Hydra's headline and the reason below it.
    text = str(error)
    if cause is not error and isinstance(cause, OmegaConfBaseException | ConfigError):
        text = f"{first_line} {cause}"
    return single_line(text.split("Set the environment variable")[0])


def describe_unknown_option(path: str, options: Sequence[str]) -> str:
    """Return the message for a config file that does not exist.

    Args:
        path: Group and option, such as ``experiment/quickstar``.
        options: The options that the group has.
    """
    group, _, name = path.rpartition("/")
    known = [option for option in options if not option.endswith("_schema")]
    near = find_near_name(name, known)
    if near is not None:
        return f"no {group}={name}; did you mean {group}={near}?"
    return f"no {group}={name}; expected one of {', '.join(known)}"


def list_overrides(words: list[str]) -> list[str]:
    """Return the `key=value` words of a command line."""
    return [word for word in words if "=" in word and not word.startswith("-")]
