"""`spin status`: read a run directory, changing nothing, while the run goes on or after it ended."""

from __future__ import annotations

import fcntl
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from spin.errors import ConfigError
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.remote import run_root

KINDS = {"samples": "generate", "pairs": "score", "policy": "train", "benchmark": "benchmark"}
"""The stages of an iteration in their order: ledger unit, and what the person reads."""


def show(run_dir: str, console: Console | None = None) -> None:
    """Print the state of a run. Raises ConfigError when `run_dir` holds none."""
    say = (console or Console(highlight=False, soft_wrap=True)).print
    for name, text in describe(str(run_root(run_dir))).items():
        say(f"{name:<10} {text}", markup=False)


def describe(run_dir: str) -> dict[str, str]:
    """What `show` prints, by its heading."""
    layout = RunLayout(Path(run_dir))
    if not layout.ledger.is_file() or not layout.config.is_file():
        raise ConfigError(
            f"run_dir={run_dir} holds no run (no config.yaml and ledger.jsonl); expected the folder that spin run was given"
        )
    ledger, config = Ledger(layout.ledger, read_only=True), yaml.safe_load(layout.config.read_text())
    # The config in force: a resume may have raised the number of iterations.
    session = {
        "iterations": config["iterations"],
        "benchmark": config["benchmark"]["enabled"],
        "baseline": bool(config["baseline"]),
        **(ledger.get("session") or {}),
    }
    iterations = session["iterations"]
    pid = owner(layout.lock)
    chains = (layout.iteration, layout.baseline) if session["baseline"] else (layout.iteration,)
    stages = [layout.start, *(chain(index) for chain in chains for index in range(iterations))]
    todo = [
        (stage, kind)
        for stage in stages
        for kind in _kinds(ledger, stage, config, session["benchmark"])
        if f"{stage.name}/{kind}" not in ledger
    ]
    now = _read(layout.now) if pid else None
    return {
        "run": f"{layout.root}: {config['objective']['name']}, {iterations} iterations",
        "state": f"running (pid {pid})"
        if pid
        else "complete"
        if not todo
        else "stopped; the same spin run command continues it",
        "done": ", ".join(stage.label for stage in stages if not any(stage == other for other, _ in todo))
        or "no stage yet",
        **({"now": _progress(now)} if now else {}),
        **({"next": _next(ledger, todo[1:] if now else todo)} if todo[1 if now else 0 :] else {}),
        **({"last error": f"{error['time']}: {error['error']}"} if (error := _read(layout.error)) else {}),
        **({"time left": _left(ledger, stages, todo, now)} if todo else {}),
    }


def owner(lock: Path) -> int | None:
    """The process that holds a run directory, or None."""
    if not lock.exists():
        return None
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(handle.read() or 0)
    return None


def _kinds(ledger: Ledger, stage: Stage, config: dict[str, Any], benchmark: bool) -> list[str]:
    """The units that a stage will have; generation and scoring only where the iteration has them."""
    if stage.name == "start":
        kinds = ["policy"] if config["warmup"]["enabled"] else []
    elif stage.name.startswith("baseline/"):
        kinds = ["policy"]
    elif stage.config.is_file():
        own = yaml.safe_load(stage.config.read_text())
        kinds = [
            *(["samples", "pairs"] if own["objective"]["name"] != "sft" and own["feedback"]["_target_"] else []),
            "policy",
        ]
    else:
        kinds = [
            *(["samples", "pairs"] if config["objective"]["name"] != "sft" and config["feedback"]["_target_"] else []),
            "policy",
        ]
    if f"{stage.name}/policy" in ledger:
        kinds = ["policy"]
    return [*kinds, "benchmark"] if benchmark else kinds


def _next(ledger: Ledger, todo: list[tuple[Stage, str]]) -> str:
    """The rest of the current stage, then whole iterations."""
    first = todo[0][0]
    rest = [KINDS[kind] for stage, kind in todo if stage == first]
    later = list(dict.fromkeys(stage.label for stage, _ in todo if stage != first))
    state = ledger.get(f"{first.name}/trainer")
    after = (
        f" (training goes on after step {max(map(int, state['states']))})"
        if state and f"{first.name}/policy" not in ledger
        else ""
    )
    return f"{first.label} {', '.join(rest)}{after}" + (
        f"; then {later[0]}" + (f" to {later[-1].split()[-1]}" if len(later) > 1 else "") if later else ""
    )


def _progress(now: dict[str, Any]) -> str:
    age = time.time() - now["time"]
    total = f" of {now['total']:,}" if now["total"] else ""
    left = f", {_span(now['left'])} left" if now.get("left") else ""
    return f"{now['label']}: {now['done']:,}{total} {now['unit']}, {now['rate']:,.1f} {now['unit']}/s{left}; last heard of {age:.0f} s ago"


def _left(ledger: Ledger, stages: list[Stage], todo: list[tuple[Stage, str]], now: dict[str, Any] | None) -> str:
    """From what the finished stages of each kind took, and the rate of the one that runs."""
    known: dict[str, list[float]] = {}
    for stage in stages[1:]:  # the warm start is not like an iteration
        for kind in KINDS:
            if facts := ledger.get(f"{stage.name}/{kind}"):
                known.setdefault(kind, []).append(facts["seconds"])
    left, unknown = 0.0, set()
    for position, (_, kind) in enumerate(todo):
        if position == 0 and now and now.get("left"):
            left += now["left"]
        elif kind in known:
            left += sum(known[kind]) / len(known[kind])
        else:
            unknown.add(KINDS[kind])
    if unknown:
        return f"not known before the first {', '.join(sorted(unknown))} is done" + (
            f"; {_span(left)} without" if left else ""
        )
    return f"about {_span(left)}, at the pace of what is done"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
