"""The commands beside `spin run`: key=value arguments, each set checked against a dataclass, and what each command calls."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spin.cluster.environment import prepare_ray
from spin.config.run import load_config
from spin.errors import ConfigError, require
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import open_store


@dataclass
class StatusArguments:
    """What `spin status` takes."""

    run_dir: str = MISSING


def status(arguments: StatusArguments) -> None:
    """Show what is done, running and next."""
    from spin.report.status import show  # each command imports what it needs: the first word is answered at once

    show(arguments.run_dir)


@dataclass
class TableArguments:
    """What `spin table` takes."""

    run_dir: Any = MISSING
    """One run, or several as ``[a,b,c]``."""


def table(arguments: TableArguments) -> None:
    """Print the figures of a run, or of several with mean and deviation over their seeds."""
    from rich.console import Console

    from spin.report.tables import aggregate

    aggregate([str(run_dir) for run_dir in _listed(arguments.run_dir)], Console(highlight=False, soft_wrap=True))


@dataclass
class BenchArguments:
    """What `spin bench` takes; null: as the run had it."""

    run_dir: Any = MISSING
    """One run, or several as ``[a,b,c]``."""
    to: str | None = None
    """Where the outcome goes; null: ``bench`` inside the run directory."""
    samples: int | None = None
    eval_path: str | None = None
    eval_split: str | None = None
    eval_limit: int | None = None
    tasks: Any = None
    """Of lm-evaluation-harness: one, or several as ``[a,b]``; then `include_path` and `limit` as in `benchmark.lm_eval`."""
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
    run_dirs = [str(run_dir) for run_dir in _listed(arguments.run_dir)]
    address = arguments.address
    if address is None and (written := RunLayout(open_store(run_dirs[0]).root).config).is_file():
        address = load_config(written).cluster.address
    address = None if address == "local" else address
    prepare_ray(address)
    from spin.orchestration.bench import bench as start
    from spin.orchestration.bench_inputs import BenchOptions

    values = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(BenchOptions)
        if field.name != "address"
    }
    start(run_dirs, BenchOptions(**values, address=address))


@dataclass
class ExportArguments:
    """What `spin export` takes."""

    run_dir: str = MISSING
    to: str = MISSING
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

    run_dir: Any = MISSING
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


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def run_command(name: str, words: list[str]) -> None:
    """Run one of COMMANDS. Raises ConfigError for arguments that do not fit."""
    kind, function, text = COMMANDS[name]
    if {"-h", "--help"} & set(words):
        keys = " ".join(
            f"{field.name}={'…' if field.default is MISSING else field.default}" for field in dataclasses.fields(kind)
        )
        print(f"spin {name} {keys}\n  {text}")
        return
    function(parse(name, kind, words))


def parse(name: str, kind: type, words: list[str]) -> Any:
    """The arguments of a command as its dataclass."""
    known = [field.name for field in dataclasses.fields(kind)]
    for word in words:
        key = word.split("=", 1)[0]
        if "=" not in word or key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"spin {name}: {word!r} is no argument; expected {', '.join(f'{k}=…' for k in known)}"
                + (f"; did you mean {near[0]}=…?" if near else "")
            )
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(words))
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise ConfigError(
                f"spin {name}: nothing given for {', '.join(missing)}; add {' '.join(f'{key}=…' for key in missing)}"
            )
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(f"spin {name}: {str(error).splitlines()[0]}") from error
