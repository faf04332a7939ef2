"""Load the config.yaml of a run directory, which an older version of spin may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spin.config.objective import OBJECTIVE_CONFIGS
from spin.config.run import RunConfig
from spin.config.unknown_keys import RENAMED_KEYS, describe_renamed_key
from spin.errors import ConfigError, single_line


def load_config(path: Path) -> RunConfig:
    """Return the config that a run wrote.

    Raises:
        ConfigError: The file is damaged or does not fit this version; for a key that was renamed,
            the message gives its new name.
    """
    problem = f"{path} was written by another version of spin"
    try:
        saved: Any = OmegaConf.load(path)
    except (YAMLError, OSError, ValueError, OmegaConfBaseException) as error:
        reason = single_line(str(error))
        raise ConfigError(f"{path} cannot be read ({reason}); restore the file from a copy") from error
    if not OmegaConf.is_dict(saved):
        raise ConfigError(f"{path} holds no config; restore the file from a copy")
    for key in RENAMED_KEYS:
        if _holds(saved, key):
            raise ConfigError(f"{problem}: {describe_renamed_key(key)}")
    # The dataclass of `objective` depends on its name.
    name = OmegaConf.select(saved, "objective.name")
    if name not in OBJECTIVE_CONFIGS:
        raise ConfigError(f"{problem}: objective={name} is unknown")
    cfg = OmegaConf.structured(RunConfig)
    try:
        cfg.objective = OmegaConf.structured(OBJECTIVE_CONFIGS[name])
        config = OmegaConf.to_object(OmegaConf.merge(cfg, saved))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{problem}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, RunConfig)
    return config


def _holds(saved: Any, key: str) -> bool:
    """Return True when a nested config has a dotted key, with any value."""
    for name in key.split("."):
        if not OmegaConf.is_dict(saved) or name not in saved:
            return False
        saved = saved[name]
    return True
