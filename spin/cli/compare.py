"""`spin compare`: run several methods on several seeds, and print one table of them.

Each method on each seed is an ordinary run in ``TO/METHOD/seed-SEED``. The same command continues
what is not finished.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from spin.errors import ConfigError, require
from spin.interrupts import ToldInterrupt
from spin.run_dir.files import expand_home

COMPARISONS = Path(__file__).parent / "comparisons"
"""Folder of the comparisons of spin."""

METHODS = Path(__file__).parent / "methods.yaml"
"""Overrides of the methods of spin, by name."""

MAX_SEEDS = 10
"""Most seeds of a comparison."""

EXIT_INTERRUPTED = 130
"""Exit code of a run that was interrupted and has said so."""

PROGRAM = [sys.executable, "-c", "from spin.cli.main import main; main()", "run"]
"""A run in a process of its own, so that nothing of one run is left for the next."""


@dataclass
class Comparison:
    """The content of a settings file."""

    methods: dict[str, list[str]]
    """Overrides of `spin run` by the name of the method; the others are compared with the first.

    A list names methods of spin, whose overrides are those of METHODS."""
    seeds: list[int]
    to: str
    """Folder of the runs."""
    shared: list[str] = field(default_factory=list)
    """Overrides of all methods."""
    further: dict[str, list[str]] = field(default_factory=dict)
    """Further overrides of single methods, by name."""
    share_start: bool = False
    """True if all methods of a seed start from the policy that the first method made."""

    def __post_init__(self) -> None:
        if isinstance(self.methods, list):
            self.methods = find_methods(self.methods)
        require(isinstance(self.methods, dict) and len(self.methods) > 0, "methods: expected names with overrides")
        for name, overrides in self.methods.items():
            require(
                re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) is not None,
                f"methods: name={name}: expected letters, digits, _ and -",
            )
            _check_overrides(f"methods.{name}", overrides)
        _check_overrides("shared", self.shared)
        require(isinstance(self.further, dict), f"further={self.further}: expected names with overrides")
        for name, overrides in self.further.items():
            _check_overrides(f"further.{name}", overrides)
        are_numbers = isinstance(self.seeds, list) and all(isinstance(seed, int) for seed in self.seeds)
        require(
            are_numbers and 1 <= len(set(self.seeds)) == len(self.seeds) <= MAX_SEEDS,
            f"seeds={self.seeds}: expected 1 to {MAX_SEEDS} different numbers",
        )

    def choose_methods(self, names: Sequence[str]) -> None:
        """Keep the first method and those that are named, which may also be methods of spin.

        Raises:
            ConfigError: There is no such method.
        """
        first = next(iter(self.methods))
        chosen = {first: self.methods[first]}
        for name in names:
            if name in self.methods:
                chosen[name] = self.methods[name]
            else:
                chosen |= find_methods([name])
        self.methods = chosen

    def list_runs(self, to: Path) -> dict[str, list[tuple[Path, list[str]]]]:
        """Return run directory and overrides of each run, by method."""
        first = next(iter(self.methods))
        runs: dict[str, list[tuple[Path, list[str]]]] = {}
        for method, own in self.methods.items():
            runs[method] = []
            for seed in self.seeds:
                folder = to / method / f"seed-{seed}"
                overrides = [*self.shared, *own, *self.further.get(method, []), f"seed={seed}", f"run_dir={folder}"]
                if self.share_start and method != first:
                    start = to / first / f"seed-{seed}" / "start" / "policy"
                    overrides += ["warmup.enabled=false", f"model.path={start}"]
                runs[method].append((folder, overrides))
        return runs


def find_methods(names: Sequence[Any]) -> dict[str, list[str]]:
    """Return the overrides of methods of spin, by name.

    Raises:
        ConfigError: One of the names is unknown.
    """
    known = yaml.safe_load(METHODS.read_text(encoding="utf-8"))
    for name in names:
        require(name in known, f"methods: no method {name}; expected {', '.join(known)}")
    return {name: known[name] for name in names}


def _check_overrides(key: str, overrides: Any) -> None:
    """Raise ConfigError when overrides are no list of texts such as ``objective=dpo``."""
    is_list = isinstance(overrides, list) and all(isinstance(word, str) and "=" in word for word in overrides)
    require(is_list, f"{key}={overrides}: expected a list of overrides, such as [objective=dpo]")
    for word in overrides:
        name = word.partition("=")[0]
        require(name not in ("seed", "run_dir"), f"{key}: {word}: seeds and folders are those of the comparison")


def read_comparison(settings: str) -> Comparison:
    """Read a settings file.

    Args:
        settings: The name of a comparison of spin, or a .yaml file.

    Raises:
        ConfigError: There is no such file, or it does not hold a comparison.
    """
    path = COMPARISONS / f"{settings}.yaml"
    if settings.endswith((".yaml", ".yml")):
        path = expand_home(settings)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (COMPARISONS).glob("*.yaml")))
        raise ConfigError(f"settings={settings}: no such comparison; expected {known}, or a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    known_keys = [entry.name for entry in fields(Comparison)]
    require(isinstance(values, dict), f"{path}: expected the keys {', '.join(known_keys)}")
    for key in values:
        require(key in known_keys, f"{path}: no key {key}; expected {', '.join(known_keys)}")
    for key in ("methods", "seeds", "to"):
        require(key in values, f"{path}: {key} is missing")
    try:
        return Comparison(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def run_comparison(settings: str, to: str | None, methods: Sequence[str] = ()) -> None:
    """Make all runs that are not finished, one after the other, then print the table.

    Args:
        settings: The name of a comparison of spin, or a .yaml file.
        to: Folder of the runs; None: that of the settings.
        methods: Methods that are compared with the first one; none: those of the settings.

    Raises:
        ConfigError: The settings cannot be used.
        RuntimeError: A run failed; its own message was printed before.
        KeyboardInterrupt: The user interrupted the comparison; the run has ended.
    """
    comparison = read_comparison(settings)
    if methods:
        comparison.choose_methods(methods)
    folder = Path(to or comparison.to)
    runs = comparison.list_runs(folder)
    total = len(runs) * len(comparison.seeds)
    begun = 0
    # Seed by seed, so that an interrupted comparison has whole seeds.
    for number in range(len(comparison.seeds)):
        for method, method_runs in runs.items():
            run_dir, overrides = method_runs[number]
            begun += 1
            if is_complete(run_dir):
                print(f"run {begun} of {total}: {run_dir} is complete", flush=True)
                continue
            print(f"run {begun} of {total}: spin run {shlex.join(overrides)}", flush=True)
            code = run_in_process(overrides)
            if code:
                raise RuntimeError(f"{method} with seed {comparison.seeds[number]} ended with exit code {code}")
    show_comparison(runs)
    print(f"one page of all runs: spin report run_dir={folder}")


def run_in_process(overrides: Sequence[str]) -> int:
    """Make one run in a process of its own, and return its exit code.

    Each interrupt is passed on to the run once, and the run may save its state before it ends.

    Raises:
        KeyboardInterrupt: An interrupt came, and the run has ended; ToldInterrupt if it said so.
    """
    processes: list[subprocess.Popen[bytes]] = []
    interrupted, passed_on = False, False

    def pass_on(number: int, frame: Any) -> None:
        nonlocal interrupted, passed_on
        interrupted = True
        for process in processes:
            process.send_signal(signal.SIGINT)
            passed_on = True

    # A closed terminal sends SIGHUP; with nohup it is ignored, and stays so.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        # In a group of its own: Ctrl-C reaches a whole group, and a second signal would end the
        # run without its saved state.
        processes.append(subprocess.Popen([*PROGRAM, *overrides], process_group=0))
        # It came before there was a process.
        if interrupted and not passed_on:
            processes[0].send_signal(signal.SIGINT)
        code = processes[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted:
        raise ToldInterrupt if code == EXIT_INTERRUPTED else KeyboardInterrupt
    return code


def is_complete(run_dir: Path) -> bool:
    """Return whether a run directory holds a run that is finished."""
    from spin.report.status import describe
    from spin.run_dir.paths import RunLayout
    from spin.run_dir.store import open_store

    if not RunLayout(run_dir).ledger.is_file() or not RunLayout(run_dir).config.is_file():
        return False
    return describe(open_store(str(run_dir)))["state"] == "complete"


def show_comparison(runs: dict[str, list[tuple[Path, list[str]]]]) -> None:
    """Print the table of finished runs."""
    from spin.report.method_table import show_methods
    from spin.report.terminal import open_console

    folders = {method: [run_dir for run_dir, _ in method_runs] for method, method_runs in runs.items()}
    show_methods(folders, open_console())
