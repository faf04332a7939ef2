"""The commands besides `spin run` and `spin check`: their arguments, and the code that they call.

Arguments are ``key=value``. A value is taken as it stands, since folders may have names such as
``0123``, ``yes`` or ``ref #2``; only a list has a syntax of its own: ``[a,b]``.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from spin.cli.help_text import describe_arguments
from spin.cli.reward_bench import RewardBenchArguments, bench_reward_model
from spin.cluster.environment import prepare_ray
from spin.config.load import load_config
from spin.errors import ConfigError, require
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import open_store


@dataclass
class StatusArguments:
    """Arguments of `spin status`."""

    run_dir: str
    """Folder or URL of the run."""


def show_status(arguments: StatusArguments) -> None:
    """Show what is done, running and next."""
    # Each command imports what it needs, so that help and errors come at once.
    from spin.report.status import show

    show(arguments.run_dir)


@dataclass
class TableArguments:
    """Arguments of `spin table`."""

    run_dir: list[str]
    """One run, or several as ``[a,b,c]``; the folder of a sweep or comparison means its runs."""


def print_table(arguments: TableArguments) -> None:
    """Print the metrics of a run, or mean and deviation over the seeds of several."""
    from spin.report.compare_runs import aggregate
    from spin.report.terminal import open_console

    aggregate(arguments.run_dir, open_console())


@dataclass
class BenchArguments:
    """Arguments of `spin bench`; null leaves a setting as the run has it."""

    run_dir: list[str]
    """One run, or several as ``[a,b,c]``."""
    to: str | None = None
    """Folder of the results; null: ``bench`` inside the run directory."""
    samples: int | None = None
    """Sampled answers for each prompt, see `benchmark.samples`."""
    verifier: str | None = None
    """Function that tells whether an answer is right, see `benchmark.verifier`."""
    eval_path: str | None = None
    """Held-out rows, see `data.eval_path`."""
    eval_split: str | None = None
    """Split of the held-out rows, see `data.eval_split`."""
    eval_limit: int | None = None
    """Number of held-out rows, see `data.eval_limit`."""
    tasks: list[str] = field(default_factory=list)
    """One task of lm-evaluation-harness, or several as ``[a,b]``."""
    include_path: str | None = None
    """Folder with tasks of your own, see `benchmark.lm_eval.include_path`."""
    limit: int | None = None
    """Rows of each task, see `benchmark.lm_eval.limit`."""
    address: str | None = None
    """Ray cluster, see `cluster.address`; ``local`` uses this machine alone."""

    def __post_init__(self) -> None:
        for name in ("samples", "eval_limit", "limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: expected at least 1")


def benchmark_runs(arguments: BenchArguments) -> None:
    """Benchmark the policies of runs with other settings than at the time of training."""
    run_dirs = arguments.run_dir

    # The cluster: the one that is given, or that of the first run.
    address = arguments.address
    if address is None:
        config_path = RunLayout(open_store(run_dirs[0]).root).config
        if config_path.is_file():
            address = load_config(config_path).cluster.address
    if address == "local":
        address = None
    prepare_ray(address)

    # These modules import Ray, which reads the environment that was prepared above.
    from spin.orchestration.bench import bench
    from spin.orchestration.bench_inputs import BenchOptions

    options = {}
    for option in dataclasses.fields(BenchOptions):
        options[option.name] = getattr(arguments, option.name)
    options["address"] = address
    bench(run_dirs, BenchOptions(**options))


@dataclass
class ExportArguments:
    """Arguments of `spin export`."""

    run_dir: str
    """Folder or URL of the run."""
    to: str
    """Folder of the copy."""
    iteration: str = "best"
    """``best``, the number of an iteration, or ``reward_model``."""
    push_to_hub: str | None = None
    """``owner/name`` of a repository on the Hub; null pushes nothing."""
    weights: str = "merged"
    """``merged`` (a whole model), or ``adapter`` (the PEFT folder, with `adapter=lora`)."""
    dtype: str | None = None
    """``float32`` or ``bfloat16`` for the weights of a whole policy; null: `model.dtype`."""


def export_policy(arguments: ExportArguments) -> None:
    """Copy one policy into a folder of its own, with its model card."""
    from spin.report.export import export

    export(
        arguments.run_dir,
        arguments.iteration,
        arguments.to,
        arguments.push_to_hub,
        arguments.weights,
        arguments.dtype,
    )


@dataclass
class ReportArguments:
    """Arguments of `spin report`."""

    run_dir: list[str]
    """One run, or several as ``[a,b]``; the folder of a sweep or comparison means its runs."""
    to: str | None = None
    """The HTML file; null: report.html in the run directory, or beside several of them."""


def write_page(arguments: ReportArguments) -> None:
    """Write one page about one or several runs."""
    from spin.report.page import write_report

    write_report(arguments.run_dir, arguments.to)


@dataclass
class CompareArguments:
    """Arguments of `spin compare`."""

    settings: str
    """Name of a comparison of spin, or a .yaml file: methods, seeds, shared overrides."""
    to: str | None = None
    """Folder of the runs; null: that of the settings."""
    methods: list[str] = field(default_factory=list)
    """Methods that are compared with the first one of the settings, as ``[a,b]``; none: theirs."""


def compare_methods(arguments: CompareArguments) -> None:
    """Run several methods on several seeds, then print one table of them."""
    from spin.cli.compare import run_comparison

    run_comparison(arguments.settings, arguments.to, arguments.methods)


@dataclass(frozen=True)
class Command:
    """One command of the program."""

    arguments: type
    """Dataclass of its arguments."""
    function: Callable[[Any], None]
    help: str
    """One line."""

    @property
    def first_key(self) -> str:
        """The first argument of the command."""
        return dataclasses.fields(self.arguments)[0].name


COMMANDS = {
    "status": Command(StatusArguments, show_status, "what is done, running and next, the last error, time left"),
    "bench": Command(BenchArguments, benchmark_runs, "benchmark its policies again, or for the first time"),
    "reward-bench": Command(
        RewardBenchArguments, bench_reward_model, "the figures of a reward model on ranked answers (data=…)"
    ),
    "export": Command(
        ExportArguments, export_policy, "its best policy, or iteration=N, as a folder (to=…) or on the Hub"
    ),
    "table": Command(TableArguments, print_table, "the metrics of run_dir=[a,b,c]: mean and deviation over seeds"),
    "compare": Command(CompareArguments, compare_methods, "several methods on several seeds, and one table of them"),
    "report": Command(
        ReportArguments,
        write_page,
        "one HTML page of metrics, curves, times and answers; run_dir=[a,b] compares runs",
    ),
}
"""The commands by name."""


def run_command(name: str, words: list[str]) -> None:
    """Run one of COMMANDS. Raises ConfigError for arguments that do not fit."""
    command = COMMANDS[name]
    if "-h" in words or "--help" in words:
        print(describe_arguments(name, command.help, command.arguments))
        return
    command.function(parse_arguments(name, command.arguments, words))


def parse_arguments(name: str, arguments_type: type, words: list[str]) -> Any:
    """Return the arguments of a command as its dataclass. Raises ConfigError if they do not fit."""
    types = get_type_hints(arguments_type)
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in types:
            message = f"spin {name}: {word!r} is no argument; expected {_join_keys(types, ', ')}"
            near = difflib.get_close_matches(key, types, n=1)
            if near:
                message += f"; did you mean {near[0]}=…?"
            raise ConfigError(message)
        values[key] = _convert(name, key, text, types[key])

    # Arguments without a default.
    missing = [argument.name for argument in dataclasses.fields(arguments_type) if _is_needed(argument, values)]
    if missing:
        raise ConfigError(f"spin {name}: nothing given for {', '.join(missing)}; add {_join_keys(missing, ' ')}")
    return arguments_type(**values)


def _join_keys(keys: Iterable[str], separator: str) -> str:
    """Return keys as they are typed: ``a=…, b=…``."""
    return separator.join(f"{key}=…" for key in keys)


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
    # csv reads quoted parts; YAML would also turn 010 into 8.
    if not (text.startswith("[") and text.endswith("]")) or Path(text).exists():
        return [text]
    [parts] = csv.reader([text[1:-1]], skipinitialspace=True)
    return [part.strip() for part in parts]


def _is_needed(argument: dataclasses.Field[Any], values: dict[str, Any]) -> bool:
    """Return True when an argument without a default is not given, or is an empty list."""
    has_default = argument.default is not dataclasses.MISSING or argument.default_factory is not dataclasses.MISSING
    return not has_default and not values.get(argument.name)
