"""`spin run`, `spin check`, the other commands. Hydra composes the config; a failure is one line and an exit code (2: your input; 1: the run; 130: interrupted)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from spin import __version__
from spin.cli.commands import COMMANDS, TableArguments, run_command, table
from spin.cluster.environment import prepare_ray
from spin.config.compose import adapt_override, apply_schedule, explain_error, print_schedule, resolve_config
from spin.config.run import CONF_DIR, RunConfig, register
from spin.errors import ConfigError, one_line

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
    rest = [adapt_override(word) for word in rest if word not in flags]
    sys.argv = [sys.argv[0], *flags, *rest]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us: it would print them over several lines
    register()
    with reported():
        (_run if command == "run" else _check)()
        if len(_RUN_DIRS) > 1:  # a sweep
            table(TableArguments(_RUN_DIRS))
        if "--cfg" in rest and not {"hydra", "--package", "-p"} & set(rest):
            print_schedule(rest)


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
        _fail(explain_error(error), 2)
    except Exception as error:  # the top: whatever a run can raise is said in one line, and the run can be continued
        if os.environ.get("SPIN_TRACEBACK"):
            raise
        _fail(f"{one_line(error)} (SPIN_TRACEBACK=1 shows where; the same command continues the run)", 1)


def _fail(message: str, code: int) -> None:
    print(f"spin: {message}", file=sys.stderr)
    raise SystemExit(code)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def _run(cfg: DictConfig) -> None:
    with reported():  # here too: Hydra prints a line of its own about an exception that leaves the job
        config, iteration_configs = planned(cfg)
        from spin.orchestration.orchestrator import (
            run_loop,  # torch and Ray are imported for a config that stands, not before
        )

        run_loop(config, iteration_configs)
        _RUN_DIRS.append(config.run_dir)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def _check(cfg: DictConfig) -> None:
    with reported():
        config, iteration_configs = planned(cfg)
        from spin.preflight.checks import check

        check(config, iteration_configs)


def planned(cfg: DictConfig) -> tuple[RunConfig, list[RunConfig]]:
    """The config and that of each iteration; what libraries read from the environment when they are imported is set."""
    config = resolve_config(cfg)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    prepare_ray(config.cluster.address)
    return config, [apply_schedule(config, index) for index in range(config.iterations)]
