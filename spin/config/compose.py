"""Compose the config of a run and of each iteration with Hydra; explain its errors in one line."""

from __future__ import annotations

import dataclasses
import re
import sys

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from spin.config.keys import check_keys, describe_unknown_key
from spin.config.run import CONF_DIR, RUN_KEYS, SCHEDULED_KEYS, RunConfig, flatten, to_plain
from spin.errors import ConfigError, single_line

OVERRIDE_IN_LIST = re.compile(r"(?<=[\[,\s])(?:[\w./@+~]+=(?:\${[^}]*}|\[[^\[\]'\"]*\]|[^,\[\]{}'\"])+|~[\w./@]+)")
"""One unquoted `key=value` or `~key` inside a list of the schedule; the value may be a list."""

FREE_DICTS = ("model.chat_template_kwargs", "objective.parameters")
"""Keys of dicts whose entries the user names."""

UNKNOWN_KEY = (ConfigAttributeError, ConfigKeyError)
"""Errors of OmegaConf for a key that a group does not have, by the way it is set."""


def quote_schedule(override: str) -> str:
    """Return ``schedule={1:[objective=ipo]}`` as Hydra's grammar accepts it.

    Hydra allows no bare equals sign inside a list, and adds new keys of a dict with ``++`` only.
    """
    key, value = override.split("=", 1)
    quoted = OVERRIDE_IN_LIST.sub(lambda match: f"'{match[0].strip()}'", value)
    return f"++{key}={quoted}"


def adapt_override(override: str) -> str:
    """Return an override as Hydra's grammar accepts it; users write all keys alike."""
    if override.startswith("schedule="):
        return quote_schedule(override)
    # Hydra adds entries to a free dict with ++ only.
    if override.startswith(FREE_DICTS):
        return f"++{override}"
    return override


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
        return str(error)
    # Hydra chains the reason either way: "raise … from" for an override, a plain raise for a file.
    cause = error.__cause__ or error.__context__ or error
    first_line = str(error).split("\n", 1)[0]
    # An unknown key: not Hydra's text, which advises to add it with +.
    if isinstance(cause, UNKNOWN_KEY) and cause.full_key and dataclasses.is_dataclass(cause.object_type):
        place = re.match(r"In '[^']*': ", first_line)
        message = describe_unknown_key(cause.full_key, cause.object_type)
        return place[0] + message if place else message
    # Any other error of OmegaConf: Hydra's headline and the reason below it.
    text = str(error)
    if cause is not error and isinstance(cause, OmegaConfBaseException | ConfigError):
        text = f"{first_line} {cause}"
    return single_line(text.split("Set the environment variable")[0])


def resolve_config(cfg: DictConfig) -> RunConfig:
    """Return the composed config as dataclasses, with all checks passed.

    A job of a sweep gets a sub-folder of `run_dir`, named by the values that are swept. Raises
    ConfigError.
    """
    # Keys that do not exist, and values that must be given.
    check_keys(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        given = " ".join(f"{key}=…" for key in missing)
        raise ConfigError(f"nothing given for {', '.join(missing)}; add {given}, or experiment=quickstart")
    # The dataclasses check single values when they are made.
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)
    for index in sorted(config.schedule):
        if not 0 <= index < config.iterations:
            raise ConfigError(
                f"schedule names iteration {index}, but the run has iterations 0 to {config.iterations - 1}; "
                "raise iterations, or take it out"
            )
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        # No Path here: run_dir may be a URL.
        config.run_dir = f"{config.run_dir.rstrip('/')}/{name_job(sys.argv[1:])}"
    return config


def name_job(words: list[str]) -> str:
    """Return the folder name of the current job of a sweep: its values of the swept keys."""
    # The command line has all values of a swept key, Hydra's task has the one of this job.
    overrides = OverridesParser.create().parse_overrides(list_overrides(words))
    swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
    values = [value for value in HydraConfig.get().overrides.task if value.split("=")[0].lstrip("+") in swept]
    return ",".join(values).replace("/", "_")


def list_overrides(words: list[str]) -> list[str]:
    """Return the `key=value` words of a command line."""
    return [word for word in words if "=" in word and not word.startswith("-")]


def apply_schedule(config: RunConfig, index: int, overrides: list[str] | None = None) -> RunConfig:
    """Return the config of an iteration: the run's, with the overrides of `schedule` for it.

    Args:
        config: The config of the whole run.
        index: Number of the iteration, from 0.
        overrides: Those of the command line; None asks Hydra, which knows them inside a job.

    Raises:
        ConfigError: An override does not fit, or changes what only the whole run can set.
    """
    changes = config.schedule.get(index, [])
    if not changes:
        return config
    if overrides is None:
        overrides = list(HydraConfig.get().overrides.task)
    # Compose the whole config again: a change such as objective=ipo replaces a group.
    try:
        check_overrides(changes)
        adapted = [adapt_override(change) for change in changes]
        cfg = compose("config", overrides=[*overrides, *adapted])
        check_keys(cfg)
        iteration = OmegaConf.to_object(cfg)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"schedule, iteration {index}: {explain_error(error)}") from error
    assert isinstance(iteration, RunConfig)
    iteration.run_dir = config.run_dir  # in a sweep, that of the job
    # Only the keys of SCHEDULED_KEYS may differ from the run's.
    values, run_values = flatten(to_plain(iteration)), flatten(to_plain(config))
    for key in sorted(values | run_values):
        schedulable = key.startswith(SCHEDULED_KEYS) and key not in RUN_KEYS
        if values.get(key) != run_values.get(key) and not schedulable:
            raise ConfigError(
                f"schedule, iteration {index}: {key} is the whole run's and cannot change; "
                f"a schedule may set {', '.join(SCHEDULED_KEYS)}"
            )
    return iteration


def print_schedule(words: list[str]) -> None:
    """Print the groups that differ in each scheduled iteration, after Hydra's `--cfg job`.

    Raises ConfigError for unknown keys, which `--cfg` alone would print as if they were used.
    """
    overrides = list_overrides(words)
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
        check_keys(cfg)
        if not cfg.schedule:
            return
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, RunConfig)
        run_values = to_plain(config)
        # Only the groups that differ, as one YAML document for each iteration.
        for index in sorted(config.schedule):
            values = to_plain(apply_schedule(config, index, overrides))
            changed = {key: value for key, value in values.items() if value != run_values[key]}
            document = OmegaConf.to_yaml(OmegaConf.create(changed))
            print(f"---\n# iteration {index}, where it differs\n{document}", end="")
