"""`spin run`, `spin check`, the other commands. Hydra composes the config; a failure is one line and an exit code (2: your input; 1: the run; 130: interrupted)."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spin import __version__
from spin.commands import COMMANDS, TableArguments, run_command, table
from spin.config import CONF_DIR, RUN_KEYS, SCHEDULED_KEYS, RunConfig, flatten, plain, register
from spin.errors import ConfigError, joined, one_line
from spin.ray_environment import prepare_ray

USAGE = f"""spin {__version__}: self-play iterative finetuning

  spin run experiment=quickstart          the built-in task, offline, on any machine
  spin run run_dir=outputs/my model.path=… data.path=…
                                          your model and SFT set; the same command again continues the run
  spin check …                            what spin run would check, and what it will take: memory, time, disk
  spin run … --cfg job                    show the resolved config, run nothing
  spin run … -m seed=0,1,2                several runs, one a value
  spin run --help                         every config group and key
{chr(10).join(f"  spin {name + ' run_dir=…':<34} {text}" for name, (_, _, text) in COMMANDS.items())}
  eval "$(spin -sc install=bash)"         tab completion (also zsh, fish)
"""


_RUN_DIRS: list[str] = []
"""What this command has run: several in a sweep."""


def main() -> None:
    """Entry point of the console script."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return
    if command == "--version":
        print(__version__)
        return
    if command == "-sc":  # what the shell's completion calls; it knows the program by its first word alone
        sys.argv.insert(1, "run")
        command = "run"
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace("spin run ", "spin ", 1)
    if command in COMMANDS:
        with reported():
            run_command(command, sys.argv[2:])
        return
    if command not in ("run", "check"):
        _fail(
            f"no command {command!r}; expected {', '.join(['run', 'check', *COMMANDS])} (spin --help shows examples)", 2
        )
    rest = sys.argv[2:]
    flags = [
        word for word in rest if word in ("-m", "--multirun")
    ]  # Hydra's parser wants them before the overrides; people write them anywhere
    rest = [_quoted(word) if word.startswith("schedule=") else word for word in rest if word not in flags]
    sys.argv = [sys.argv[0], *flags, *rest]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us: it would print them over several lines
    register()
    with reported():
        (_run if command == "run" else _check)()
        if len(_RUN_DIRS) > 1:  # a sweep
            table(TableArguments(_RUN_DIRS))
        if "--cfg" in rest and not {"hydra", "--package", "-p"} & set(rest):
            show_schedule(rest)


@contextmanager
def reported() -> Iterator[None]:
    """Turn what went wrong into one line and an exit code; SPIN_TRACEBACK=1 shows where."""
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues the run", 130)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("SPIN_TRACEBACK"):
            raise
        _fail(_explain(error), 2)
    except Exception as error:  # the top: whatever a run can raise is said in one line, and the run can be continued
        if os.environ.get("SPIN_TRACEBACK"):
            raise
        _fail(f"{one_line(error)} (SPIN_TRACEBACK=1 shows where; the same command continues the run)", 1)


def _fail(message: str, code: int) -> None:
    print(f"spin: {message}", file=sys.stderr)
    raise SystemExit(code)


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
    line = joined(text.split("Set the environment variable")[0])
    key = getattr(error.__cause__ or error, "full_key", None)
    if isinstance(key, str) and "not in" in line:
        near = difflib.get_close_matches(
            key, list(flatten(OmegaConf.to_container(OmegaConf.structured(RunConfig)))), n=1, cutoff=0.5
        )  # type: ignore[arg-type]
        line += f"; did you mean {near[0]}?" if near else "; spin run --help lists the keys"
    return line


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def _run(cfg: DictConfig) -> None:
    with reported():  # here too: Hydra prints a line of its own about an exception that leaves the job
        config, plan = planned(cfg)
        from spin.loop import run_loop  # torch and Ray are imported for a config that stands, not before

        run_loop(config, plan)
        _RUN_DIRS.append(config.run_dir)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def _check(cfg: DictConfig) -> None:
    with reported():
        config, plan = planned(cfg)
        from spin.check import check

        check(config, plan)


def planned(cfg: DictConfig) -> tuple[RunConfig, list[RunConfig]]:
    """The config and that of each iteration; what libraries read from the environment when they are imported is set."""
    config = resolve(cfg)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    prepare_ray(config.cluster.address)
    return config, [scheduled(config, index) for index in range(config.iterations)]


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
    now, then = flatten(plain(iteration)), flatten(plain(config))
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
            now, then = plain(scheduled(config, index, overrides)), plain(config)
            changed = {key: value for key, value in now.items() if value != then[key]}
            print(f"---\n# iteration {index}, where it differs\n{OmegaConf.to_yaml(OmegaConf.create(changed))}", end="")
