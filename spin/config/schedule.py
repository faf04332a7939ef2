"""Apply the schedule of a run: the overrides that the config gives to single iterations.

An override that does not fit, or that changes a key of the whole run, is refused.
"""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spin.config.overrides import adapt_override, check_overrides, explain_error, list_overrides
from spin.config.run import CONF_DIR, RUN_KEYS, SCHEDULED_KEYS, RunConfig, flatten, to_plain
from spin.config.unknown_keys import check_keys
from spin.errors import ConfigError


def check_scheduled_iterations(config: RunConfig) -> None:
    """Raise ConfigError when the schedule names an iteration that the run does not have."""
    for index in sorted(config.schedule):
        if not 0 <= index < config.iterations:
            raise ConfigError(
                f"schedule names iteration {index}, but the run has iterations 0 to {config.iterations - 1}; "
                "raise iterations, or take it out"
            )


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
