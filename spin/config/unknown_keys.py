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
    parent, dot, name = key.rpartition(".")
    siblings = field_names(group)
    # A typo of a key in the same group, the same name in another group, or neither.
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if near:
        return f"no config key {key}; did you mean {parent}{dot}{near[0]}?"
    elsewhere = [other for other in list_keys() if other.rpartition(".")[2] == name and other != key]
    if elsewhere:
        return f"no config key {key}; did you mean {min(elsewhere, key=len)}?"
    names = ", ".join(siblings)
    return f"no config key {key}; expected one of {names} in {parent or 'a run'} (spin run --help lists all keys)"


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
