"""`spin run`, `spin check`, `spin reward`, and the choice of the other commands.

Hydra composes the config of a run. A failure is one line and an exit code: 2 for the user's input,
1 for the run.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import hydra
import psutil
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from spin import __version__
from spin.cli.commands import COMMANDS, TableArguments, print_table, run_command
from spin.cli.completion import RUN_COMMANDS, complete
from spin.cli.help_text import describe_run, describe_topic
from spin.cli.namesake import find_namesake
from spin.cluster.environment import prepare_ray
from spin.cluster.ray_folder import delete_abandoned
from spin.config.compose import resolve_config
from spin.config.overrides import adapt_override, check_overrides, explain_error
from spin.config.run import CONF_DIR, RunConfig, register
from spin.config.schedule import apply_schedule, print_schedule
from spin.config.unknown_keys import find_near_name
from spin.errors import ConfigError, one_line
from spin.interrupts import raise_if_interrupted
from spin.preflight.input_paths import check_input_paths
from spin.report.terminal import open_console
from spin.report.waiting import waiting
from spin.run_dir.credentials import hide_passwords

USAGE = """spin {version}: self-play iterative finetuning

  spin run experiment=quickstart    the built-in task, offline, on any machine
  spin run run_dir=outputs/my model.path=… data.path=…
                                    your model and SFT set; the same command
                                    again continues the run
  spin reward … reward_model.data_path=…
                                    only the reward model of such a run;
                                    spin run continues from it
  spin check …                      what spin run would check, and what it
                                    will take: memory, time, disk
  spin run … --cfg job              show the resolved config, run nothing
  spin run … -m seed=0,1,2          several runs, one a value
  spin run --help                   every config group and key
  spin help KEY                     one key or group, its values and defaults
{commands}
  eval "$(spin completion bash)"    tab completion (also zsh, fish)
"""

_RUN_DIRS: list[str] = []
"""Directories of the runs that this process has finished; a sweep has several."""


def run_command_line() -> None:
    """Run the command that the arguments of the process name."""
    # A log line that does not fit on a full disk must not print a traceback.
    logging.raiseExceptions = False
    delete_abandoned()
    # Files of the other project may be missing or mixed with ours: say so before anything fails.
    namesake = find_namesake()
    if namesake is not None:
        print(f"spin: {namesake}", file=sys.stderr)
    command, words = "--help", []
    # The first word is the command.
    if len(sys.argv) > 1:
        command, words = sys.argv[1], [hide_password(word) for word in sys.argv[2:]]
    if command in ("-h", "--help"):
        print_usage()
    elif command == "--version":
        print(__version__)
    elif command == "help":
        print_help(words)
    elif command == "completion":
        with exit_on_error(continues=False):
            print(complete(words), end="")
    elif command in RUN_COMMANDS and {"-h", "--help"} & set(words):
        print_help([command])
    elif command in RUN_COMMANDS:
        call_hydra(command, words)
    elif command in COMMANDS:
        with exit_on_error(continues=command in ("bench", "compare")):
            run_command(command, words)
    else:
        names = [*RUN_COMMANDS, "help", "completion", *COMMANDS]
        near = find_near_name(command, names)
        advice = f"expected {', '.join(names)} (spin --help shows examples)"
        if near is not None:
            advice = f"did you mean spin {near}?"
        _exit(f"no command {command!r}; {advice}", 2)


def print_usage() -> None:
    """Print the commands with examples, in at most 80 columns."""
    lines = []
    for name, other in COMMANDS.items():
        first = f"  spin {name} {other.first_key}=…"
        help_lines = textwrap.wrap(other.help, 80 - 36)
        # A long name has a line of its own.
        if len(first) > 34:
            lines.append(first)
            first = ""
        lines.append(f"{first:<36}{help_lines[0]}")
        lines += [" " * 36 + line for line in help_lines[1:]]
    print(USAGE.format(version=__version__, commands="\n".join(lines)), end="")


def print_help(words: list[str]) -> None:
    """Print the help of a command, key or group; without one, the commands."""
    # A pager that is closed early ends this process without a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if not words:
        print_usage()
    elif words[0] in RUN_COMMANDS:
        print(describe_run(words[0]))
    elif words[0] in COMMANDS:
        run_command(words[0], ["--help"])
    else:
        with exit_on_error(continues=False):
            print("\n\n".join(describe_topic(word) for word in words))


def hide_password(word: str) -> str:
    """Return an argument without the password of a run directory's URL, so that it is not shown."""
    if word.lstrip("+").startswith(("run_dir=", "to=")):
        return hide_passwords(word)
    return word


def call_hydra(command: str, words: list[str]) -> None:
    """Let Hydra compose the config from the words of the command line, and run or check it."""
    # Hydra expects -m before the overrides.
    flags = [word for word in words if word in ("-m", "--multirun")]
    overrides = []
    for word in words:
        if word not in flags:
            overrides.append(adapt_override(word, sweep=bool(flags)))
    sys.argv = [sys.argv[0], *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors: Hydra would print them over several lines
    register()
    with exit_on_error(continues=command == "run"):
        check_overrides(overrides)
        if "--cfg" not in overrides:
            announce(command)
        {"run": _run, "check": _check, "reward": _reward}[command]()
        # A sweep has run several.
        if len(_RUN_DIRS) > 1:
            print_table(TableArguments(_RUN_DIRS))
        # Hydra has shown the config of the run; show that of the scheduled iterations too.
        if "--cfg" in overrides and not {"hydra", "--package", "-p"} & set(overrides):
            print_schedule(overrides)


def announce(command: str) -> None:
    """Tell a person at a terminal that the program has begun: its imports take seconds."""
    if sys.stdout.isatty():
        print(f"spin {command}: loading PyTorch and checking the settings", flush=True)


@contextmanager
def exit_on_error(continues: bool = True) -> Iterator[None]:
    """Turn an error into one line and an exit code. SPIN_TRACEBACK=1 raises it instead.

    Args:
        continues: True if the same command continues what has failed.
    """
    advice = ""
    if continues:
        advice = "; the same command continues the run"
    try:
        yield
    except Exception as error:
        end_on_error(error, advice)


def end_on_error(error: Exception, advice: str) -> NoReturn:
    """End the process with one line about an error.

    Raises:
        KeyboardInterrupt: The run was interrupted: a library has turned the interrupt into an
            error of its own.
        SystemExit: Otherwise; with SPIN_TRACEBACK=1, the error itself.
    """
    raise_if_interrupted()
    if os.environ.get("SPIN_TRACEBACK"):
        raise error
    if isinstance(error, (ConfigError, HydraException, OmegaConfBaseException)):
        _exit(explain_error(error), 2)
    # Any error of the run: it can be continued.
    _exit(f"{one_line(error)} (SPIN_TRACEBACK=1 shows where{advice})", 1)


def _exit(message: str, code: int) -> NoReturn:
    """Print a message to stderr and end the process."""
    print(f"spin: {hide_passwords(message)}", file=sys.stderr)
    raise SystemExit(code)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def _run(cfg: DictConfig) -> None:
    # Here too: about an error that leaves this function Hydra prints a line of its own.
    with exit_on_error():
        config, iteration_configs = plan_configs(cfg)
        refuse_assumed(config)
        # Not earlier: this imports torch and Ray, which takes seconds.
        with waiting(open_console(), "loading PyTorch and Ray"):
            from spin.orchestration.orchestrator import run_loop

        run_loop(config, iteration_configs, find_start())
        _RUN_DIRS.append(config.run_dir)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def _check(cfg: DictConfig) -> None:
    with exit_on_error(continues=False):
        config, iteration_configs = plan_configs(cfg)
        with waiting(open_console(), "loading PyTorch"):
            from spin.preflight.check_command import check_run

        check_run(config, iteration_configs)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def _reward(cfg: DictConfig) -> None:
    with exit_on_error():
        config, iteration_configs = plan_configs(cfg)
        refuse_assumed(config)
        if config.reward_model.data_path is None:
            raise ConfigError("spin reward trains on ranked answers; give reward_model.data_path=…")
        with waiting(open_console(), "loading PyTorch and Ray"):
            from spin.orchestration.orchestrator import run_loop

        run_loop(config, iteration_configs, find_start(), until_reward_model=True)


def refuse_assumed(config: RunConfig) -> None:
    """Raise ConfigError when a run that is to start names GPUs that are not here."""
    if config.cluster.assume is not None:
        raise ConfigError(
            f"cluster.assume={config.cluster.assume} is a plan for GPUs that are not here, for spin check alone; "
            "leave it out to run on what is here"
        )


def find_start() -> float:
    """Return the time at which the wall clock of a run begins, by `time.perf_counter`.

    It is the start of this process, imports included; for a further run of a sweep, it is now.
    """
    if _RUN_DIRS:
        return time.perf_counter()
    age = time.time() - psutil.Process().create_time()
    return time.perf_counter() - age


def plan_configs(cfg: DictConfig) -> tuple[RunConfig, list[RunConfig]]:
    """Return the config of the run and that of each iteration.

    Also set the environment variables that libraries read when they are imported.
    """
    config = resolve_config(cfg)
    # An experiment file may have given it.
    config.run_dir = hide_passwords(config.run_dir)
    # The console of the run shows progress; libraries show none.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    prepare_ray(config.cluster.address)
    iteration_configs = [apply_schedule(config, index) for index in range(config.iterations)]
    check_input_paths(iteration_configs)
    return config, iteration_configs
