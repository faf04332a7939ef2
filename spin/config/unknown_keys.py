"""Refuse config keys that do not exist, and name the nearest key that does.

Hydra refuses `training.lr=1` but adds `+training.lr=1` to the composed config, where nothing reads
it. Both are refused here with the same message. The entries of a free dict (`schedule`,
`objective.parameters`, `model.chat_template_kwargs`) are not checked.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spin.config.objective import OBJECTIVE_CONFIGS
from spin.config.run import RunConfig, flatten
from spin.errors import ConfigError

RENAMED_KEYS: dict[str, str] = {
    "feedback._target_": "feedback.rows (how rows are built) and feedback.rewards",
    "pairs.drop_right": "feedback.rows=wrong_truth_pairs with feedback.rewards=[exact_match]",
}
"""Old dotted key: the new key, or several as text. An old key is refused with the new one named."""


def check_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Raise ConfigError for the first key, at any depth, that its dataclass does not have.

    Args:
        cfg: A composed config, or one of its groups.
        prefix: Dotted name of the group, with a dot at its end.
    """
    group = OmegaConf.get_type(cfg)
    if not dataclasses.is_dataclass(group):
        return  # a free dict
    known = field_names(group)
    for name in map(str, cfg):
        key = prefix + name
        if name not in known:
            raise ConfigError(describe_unknown_key(key, group))
        # A missing or interpolated value has no keys of its own.
        if OmegaConf.is_missing(cfg, name) or OmegaConf.is_interpolation(cfg, name):
            continue
        if isinstance(cfg[name], DictConfig):
            check_keys(cfg[name], f"{key}.")


def describe_unknown_key(key: str, group: Any) -> str:
    """Return the message for a key that does not exist.

    Args:
        key: The full dotted key.
        group: The dataclass that was expected to have it as a field.
    """
    if key in RENAMED_KEYS:
        return describe_renamed_key(key)
    near = find_near_key(key, group)
    if near is not None:
        return f"no config key {key}; did you mean {near}?"
    names = ", ".join(field_names(group))
    parent = key.rpartition(".")[0] or "a run"
    return f"no config key {key}; expected one of {names} in {parent} (spin run --help lists all keys)"


def find_near_key(key: str, group: Any = None) -> str | None:
    """Return the key that was probably meant, or None.

    Args:
        key: A dotted key that does not exist.
        group: The dataclass that was expected to have it as a field; None if that is not known.
    """
    parent, dot, name = key.rpartition(".")
    known = [other for other in list_keys() if other != key]
    # A typo, an abbreviation (lr) or a beginning (temp) of a key in the same group.
    if group is not None:
        siblings = field_names(group)
    else:
        siblings = [other.removeprefix(parent + dot) for other in known if other.startswith(parent + dot)]
    near = find_near_name(name, siblings)
    if near is not None:
        return f"{parent}{dot}{near}"
    # The same in any group; of equally near names the one with the shortest key.
    last_names = {other: other.rpartition(".")[2] for other in known}
    near = find_near_name(name, list(last_names.values()), cutoff=0.8)
    if near is None:
        return None
    return min((other for other, last in last_names.items() if last == near), key=len)


def find_near_name(name: str, known: list[str], cutoff: float = 0.6) -> str | None:
    """Return the name among the known ones that was probably meant, or None.

    Args:
        name: A name that does not exist.
        known: The names that do.
        cutoff: Least similarity of a typo, from 0 to 1, see `difflib.get_close_matches`.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if near:
        return near[0]
    for other in known:
        initials = "".join(word[:1] for word in other.split("_"))
        if len(name) > 1 and name == initials:
            return other
    for other in known:
        if len(name) > 2 and other.startswith(name):
            return other
    return None


def describe_renamed_key(key: str) -> str:
    """Return the message for a key of RENAMED_KEYS."""
    return f"{key} is no config key any more; use {RENAMED_KEYS[key]}"


def field_names(group: Any) -> list[str]:
    """Return the names of a dataclass's fields, in order."""
    return [field.name for field in dataclasses.fields(group)]


def list_keys() -> list[str]:
    """Return every dotted key of a run; of `objective`, the keys of all objectives."""
    defaults: Any = OmegaConf.to_container(OmegaConf.structured(RunConfig))
    keys = dict.fromkeys(flatten(defaults))
    for objective in OBJECTIVE_CONFIGS.values():
        for name in field_names(objective):
            keys[f"objective.{name}"] = None
    return list(keys)
