"""Turn the config that Hydra composed into the dataclasses of a run, with all checks passed."""

from __future__ import annotations

import sys

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from spin.config.overrides import list_overrides
from spin.config.run import RunConfig
from spin.config.schedule import check_scheduled_iterations
from spin.config.unknown_keys import check_keys
from spin.errors import ConfigError


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
    check_scheduled_iterations(config)
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
