"""The commands beside `spin run`: their arguments, and the function that each one calls.

Arguments are ``key=value``. A value is taken as it stands, since folders may have names such as
``0123``, ``yes`` or ``ref #2``; only a list has a syntax of its own: ``[a,b]``.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from spin.cluster.environment import prepare_ray
from spin.config.run import load_config
from spin.errors import ConfigError, require
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import open_store


@dataclass
class StatusArguments:
    """What `spin status` takes."""

    run_dir: str


def status(arguments: StatusArguments) -> None:
    """Show what is done, running and next."""
    from spin.report.status import show  # each command imports what it needs: the first word is answered at once

    show(arguments.run_dir)


@dataclass
class TableArguments:
    """What `spin table` takes."""

    run_dir: list[str]
    """One run, or several as ``[a,b,c]``."""


def table(arguments: TableArguments) -> None:
    """Print the figures of a run, or of several with mean and deviation over their seeds."""
    from rich.console import Console

    from spin.report.tables import aggregate

    aggregate(arguments.run_dir, Console(highlight=False, soft_wrap=True))


@dataclass
class BenchArguments:
    """What `spin bench` takes; null: as the run had it."""

    run_dir: list[str]
    """One run, or several as ``[a,b,c]``."""
    to: str | None = None
    """Where the outcome goes; null: ``bench`` inside the run directory."""
    samples: int | None = None
    eval_path: str | None = None
    eval_split: str | None = None
    eval_limit: int | None = None
    tasks: list[str] = field(default_factory=list)
    """Of lm-evaluation-harness: one, or several as ``[a,b]``; with them `include_path` and `limit` as in `benchmark.lm_eval`."""
    include_path: str | None = None
    limit: int | None = None
    address: str | None = None
    """As `cluster.address`; ``local``: this machine alone."""

    def __post_init__(self) -> None:
        for name in ("samples", "eval_limit", "limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: expected at least 1")


def bench(arguments: BenchArguments) -> None:
    """Benchmark the policies of a run that was made without, or with other samples or held-out rows."""
    run_dirs = arguments.run_dir
    address = arguments.address
    if address is None and (written := RunLayout(open_store(run_dirs[0]).root).config).is_file():
        address = load_config(written).cluster.address
    address = None if address == "local" else address
    prepare_ray(address)
    from spin.orchestration.bench import bench as start
    from spin.orchestration.bench_inputs import BenchOptions

    values = {
        option.name: getattr(arguments, option.name)
        for option in dataclasses.fields(BenchOptions)
        if option.name != "address"
    }
    start(run_dirs, BenchOptions(**values, address=address))


@dataclass
class ExportArguments:
    """What `spin export` takes."""

    run_dir: str
    to: str
    iteration: str = "best"
    """`best`, or a number."""
    push_to_hub: str | None = None
    """``owner/name``."""


def export(arguments: ExportArguments) -> None:
    """Copy one policy into a folder of its own, with its model card."""
    from spin.report.export import export as start

    start(arguments.run_dir, arguments.iteration, arguments.to, arguments.push_to_hub)


@dataclass
class ReportArguments:
    """What `spin report` takes."""

    run_dir: list[str]
    """A run directory, or several, ``[a,b]``; a folder of runs, as a sweep leaves it, stands for all of them."""
    to: str | None = None
    """The page; null: report.html in the run directory, or beside the directories where there are several."""


def report(arguments: ReportArguments) -> None:
    """Write one page about one or several runs."""
    from spin.report.page import write_report

    write_report(arguments.run_dir, arguments.to)


COMMANDS: dict[str, tuple[type, Callable[[Any], None], str]] = {
    "status": (StatusArguments, status, "what is done, what is running, what is next, the last error, time left"),
    "bench": (BenchArguments, bench, "benchmark its policies again, or for the first time"),
    "export": (ExportArguments, export, "its best policy, or iteration=N, as a folder (to=…) or on the Hub"),
    "table": (TableArguments, table, "the figures of run_dir=[a,b,c]: mean and deviation over seeds"),
    "report": (
        ReportArguments,
        report,
        "one HTML page of figures, curves, times and answers; run_dir=[a,b] lays runs side by side",
    ),
}
"""By name: the arguments, the function, one line for the help."""


def run_command(name: str, words: list[str]) -> None:
    """Run one of COMMANDS. Raises ConfigError for arguments that do not fit."""
    kind, function, text = COMMANDS[name]
    if {"-h", "--help"} & set(words):
        keys = [_describe(argument) for argument in dataclasses.fields(kind)]
        print(f"spin {name} {' '.join(keys)}\n  {text}")
        return
    function(parse(name, kind, words))


def parse(name: str, kind: type, words: list[str]) -> Any:
    """Return the arguments of a command as its dataclass. Raises ConfigError when they do not fit."""
    types = get_type_hints(kind)
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in types:
            expected = ", ".join(f"{known}=…" for known in types)
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"; did you mean {near[0]}=…?" if near else ""
            raise ConfigError(f"spin {name}: {word!r} is no argument; expected {expected}{hint}")
        values[key] = _convert(name, key, text, types[key])
    missing = [argument.name for argument in dataclasses.fields(kind) if _is_needed(argument, values)]
    if missing:
        given = " ".join(f"{key}=…" for key in missing)
        raise ConfigError(f"spin {name}: nothing given for {', '.join(missing)}; add {given}")
    return kind(**values)


def _convert(name: str, key: str, text: str, kind: Any) -> Any:
    """Return the value of one argument. Raises ConfigError when it is not of its type."""
    if kind == list[str]:
        return split_list(text)
    if text == "null" and kind is not str:
        return None
    if kind == int | None:
        if not text.isdecimal():
            raise ConfigError(f"spin {name}: {key}={text}: expected a whole number")
        return int(text)
    return text


def split_list(text: str) -> list[str]:
    """Return the parts of ``[a,b]``; any other text, or the name of a folder, is the only part.

    A part that holds a comma stands in double quotes: ``[a,"b,c"]``.
    """
    if not (text.startswith("[") and text.endswith("]")) or Path(text).exists():
        return [text]
    [parts] = csv.reader([text[1:-1]], skipinitialspace=True)
    return [part.strip() for part in parts]


def _is_needed(argument: dataclasses.Field[Any], values: dict[str, Any]) -> bool:
    """Return True when an argument without a default is not given, or is an empty list."""
    has_default = argument.default is not dataclasses.MISSING or argument.default_factory is not dataclasses.MISSING
    return not has_default and not values.get(argument.name)


def _describe(argument: dataclasses.Field[Any]) -> str:
    """Return an argument as the help of its command shows it, with its default."""
    if argument.default is None:
        return f"{argument.name}=null"
    if argument.default_factory is not dataclasses.MISSING:
        return f"{argument.name}=[]"
    if argument.default is dataclasses.MISSING:
        return f"{argument.name}=…"
    return f"{argument.name}={argument.default}"
