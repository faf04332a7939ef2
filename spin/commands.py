"""The commands beside `spin run`: key=value arguments, each set checked against a dataclass, and what each command calls."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spin.errors import ConfigError


@dataclass
class StatusArguments:
    """What `spin status` takes."""

    run_dir: str = MISSING


def status(arguments: StatusArguments) -> None:
    """Show what is done, running and next."""
    from spin.status import show  # each command imports what it needs: the first word is answered at once

    show(arguments.run_dir)


@dataclass
class ReportArguments:
    """What `spin report` takes."""

    run_dir: Any = MISSING
    """A run directory, or several, ``[a,b]``; a folder of runs, as a sweep leaves it, stands for all of them."""
    to: str | None = None
    """The page; null: report.html in the run directory, or beside the directories where there are several."""


def report(arguments: ReportArguments) -> None:
    """Write one page about one or several runs."""
    from spin.page import write_report

    write_report(arguments.run_dir, arguments.to)


COMMANDS: dict[str, tuple[type, Callable[[Any], None], str]] = {
    "status": (StatusArguments, status, "what is done, what is running, what is next, the last error, time left"),
    "report": (ReportArguments, report, "one HTML page of figures, curves, times and answers; run_dir=[a,b] lays runs side by side"),
}
"""By name: the arguments, the function, one line for the help."""


def run_command(name: str, words: list[str]) -> None:
    """Run one of COMMANDS. Raises ConfigError for arguments that do not fit."""
    kind, function, text = COMMANDS[name]
    if {"-h", "--help"} & set(words):
        keys = " ".join(f"{field.name}={'…' if field.default is MISSING else field.default}" for field in dataclasses.fields(kind))
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
            raise ConfigError(f"spin {name}: {word!r} is no argument; expected {', '.join(f'{k}=…' for k in known)}" + (f"; did you mean {near[0]}=…?" if near else ""))
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(words))
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise ConfigError(f"spin {name}: nothing given for {', '.join(missing)}; add {' '.join(f'{key}=…' for key in missing)}")
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(f"spin {name}: {str(error).splitlines()[0]}") from error
