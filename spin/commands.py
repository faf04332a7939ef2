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
class TableArguments:
    """What `spin table` takes."""

    run_dir: Any = MISSING
    """One run, or several as ``[a,b,c]``."""


def table(arguments: TableArguments) -> None:
    """Print the figures of a run, or of several with mean and deviation over their seeds."""
    from rich.console import Console

    from spin.aggregate import aggregate

    run_dirs = arguments.run_dir if isinstance(arguments.run_dir, list) else [arguments.run_dir]
    aggregate([str(run_dir) for run_dir in run_dirs], Console(highlight=False, soft_wrap=True))


COMMANDS: dict[str, tuple[type, Callable[[Any], None], str]] = {
    "status": (StatusArguments, status, "what is done, what is running, what is next, the last error, time left"),
    "table": (TableArguments, table, "the figures of run_dir=[a,b,c]: mean and deviation over seeds"),
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
