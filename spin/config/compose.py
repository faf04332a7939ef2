"""Compose the config of a run and of each scheduled iteration with Hydra, and explain its errors in one line."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spin.config.run import CONF_DIR, RUN_KEYS, SCHEDULED_KEYS, RunConfig, flatten, to_plain
from spin.errors import ConfigError, single_line


def _quoted(schedule: str) -> str:
    """Make ``schedule={1:[objective=ipo]}`` Hydra's: its grammar takes no bare equals sign in a list, and a new key of a dict must be added."""
    key, value = schedule.split("=", 1)
    return f"++{key}=" + re.sub(
        r"(?<=[\[,\s])[\w./@+~]+=(?:\${[^}]*}|[^,\[\]{}'\"])+", lambda found: f"'{found[0].strip()}'", value
    )


def _explain(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in one line, with the nearest known key."""
    text = str(error)
    if isinstance(error, ConfigError):
        return text
    if error.__cause__ is not None and isinstance(error.__cause__, OmegaConfBaseException | ConfigError):
        text = f"{text.splitlines()[0]} {error.__cause__}"
    line = single_line(text.split("Set the environment variable")[0])
    key = getattr(error.__cause__ or error, "full_key", None)
    if isinstance(key, str) and "not in" in line:
        known = OmegaConf.to_container(OmegaConf.structured(RunConfig))
        assert isinstance(known, dict)
        near = difflib.get_close_matches(key, list(flatten({str(k): v for k, v in known.items()})), n=1, cutoff=0.5)
        line += f"; did you mean {near[0]}?" if near else "; spin run --help lists the keys"
    return line


def resolve(cfg: DictConfig) -> RunConfig:
    """The composed config as dataclasses, all checks passed; a job of a sweep gets a sub-folder by what is swept."""
    unknown = set(cfg) - {field.name for field in dataclasses.fields(RunConfig)}
    if unknown:
        raise ConfigError(f"no config key {', '.join(sorted(map(str, unknown)))}; spin run --help lists the keys")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            f"nothing given for {', '.join(missing)}; add {' '.join(f'{key}=…' for key in missing)}, or experiment=quickstart"
        )
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)
    beyond = sorted(index for index in config.schedule if not 0 <= index < config.iterations)
    if beyond:
        raise ConfigError(
            f"schedule names iteration {beyond[0]}, but the run has iterations 0 to {config.iterations - 1}; raise iterations, or take it out"
        )
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        parser = OverridesParser.create()
        swept = [
            o.key_or_group
            for o in parser.parse_overrides([arg for arg in sys.argv[1:] if "=" in arg and not arg.startswith("-")])
            if o.is_sweep_override()
        ]
        values = [o for o in hydra_config.overrides.task if o.split("=")[0].lstrip("+") in swept]
        config.run_dir = f"{config.run_dir.rstrip('/')}/{','.join(values).replace('/', '_')}"  # which may be a URL
    return config


def scheduled(config: RunConfig, index: int, overrides: list[str] | None = None) -> RunConfig:
    """The config of one iteration. Raises ConfigError naming the iteration and the key when its schedule cannot be, or changes what is the whole run's.

    `overrides`: the command line's; None asks Hydra, which knows them inside a job.
    """
    changes = config.schedule.get(index, [])
    if not changes:
        return config
    given = list(HydraConfig.get().overrides.task) if overrides is None else overrides
    try:
        cfg = compose("config", overrides=[*given, *changes])
        iteration = OmegaConf.to_object(cfg)
        unknown = set(cfg) - {field.name for field in dataclasses.fields(RunConfig)}
        if unknown:
            raise ConfigError(f"no config key {', '.join(sorted(map(str, unknown)))}")
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"schedule, iteration {index}: {_explain(error)}") from error
    assert isinstance(iteration, RunConfig)
    iteration.run_dir = config.run_dir
    now, then = flatten(to_plain(iteration)), flatten(to_plain(config))
    for key in sorted(now | then):
        if now.get(key) != then.get(key) and (not key.startswith(SCHEDULED_KEYS) or key in RUN_KEYS):
            raise ConfigError(
                f"schedule, iteration {index}: {key} is the whole run's and cannot change; a schedule may set {', '.join(SCHEDULED_KEYS)}"
            )
    return iteration


def show_schedule(words: list[str]) -> None:
    """After `--cfg job`: each scheduled iteration's groups that differ, as YAML documents of their own."""
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
        if not cfg.schedule:
            return
        OmegaConf.set_struct(cfg, False)
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, RunConfig)
        for index in sorted(config.schedule):
            now, then = to_plain(scheduled(config, index, overrides)), to_plain(config)
            changed = {key: value for key, value in now.items() if value != then[key]}
            print(f"---\n# iteration {index}, where it differs\n{OmegaConf.to_yaml(OmegaConf.create(changed))}", end="")
