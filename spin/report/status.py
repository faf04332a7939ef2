"""Show the state of a running or finished run (`spin status`); nothing is changed."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from spin.errors import ConfigError
from spin.report.benchmark_files import find_damage
from spin.report.formatting import format_duration
from spin.report.row_counts import describe_dropped, describe_judge, describe_rewards
from spin.report.terminal import open_console, print_line
from spin.run_dir.files import read_json
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.recorded_config import read_config
from spin.run_dir.run_state import RunState, read_state
from spin.run_dir.store import RunStore, open_store
from spin.run_dir.unit import EXPECTED
from spin.wording import count_of

KINDS = {
    "samples": "generate",
    "rewards": "reward",
    "judgements": "judge",
    "pairs": "score",
    "policy": "train",
    "reward_model": "train",
    "benchmark": "benchmark",
    "evaluation": "measure",
}
"""Kinds of units that take time, in order, with the word that is shown."""

MAX_TEXTS = 5
"""Iterations whose rewards, judge and dropped rows are shown."""

Work = tuple[Stage, str]
"""A stage, and the kind of its units."""


def show(run_dir: str, console: Console | None = None) -> None:
    """Print the state of a run. Raises ConfigError when `run_dir` holds none."""
    console = console or open_console()
    # Without markup: names of folders may contain square brackets.
    for name, text in describe(open_store(run_dir)).items():
        print_line(console, f"{name:<10} {text}", indent=11)


def describe(store: RunStore) -> dict[str, str]:
    """Return the state of a run as lines by their heading.

    Raises ConfigError when the run directory of `store` holds no run.
    """
    layout = find_run(store)
    ledger = Ledger(layout.ledger, read_only=True)
    return describe_state(store, read_state(layout, ledger))


def find_run(store: RunStore) -> RunLayout:
    """Return the layout of the run in a store. Raises ConfigError when it holds none."""
    layout = RunLayout(store.root)
    if not layout.ledger.is_file() or not layout.config.is_file():
        raise ConfigError(
            f"run_dir={layout.root} holds no run (no config.yaml and ledger.jsonl); "
            "expected the folder that spin run was given"
        )
    return layout


def describe_state(store: RunStore, state: RunState) -> dict[str, str]:
    """Return the state of a run as lines by their heading.

    Args:
        store: The run directory.
        state: What `read_state` found in it.
    """
    layout = RunLayout(store.root)
    config = read_config(layout, state.ledger)

    # What is finished, and what is left. A start without a warm-up is no unit of the plan.
    todo = list_todo(state)
    unfinished = {stage for stage, _ in todo}
    done = []
    for stage in dict.fromkeys([layout.start, *state.stages()]):
        if stage not in unfinished:
            done.append(stage.label)

    # What is going on now. Without a driver, the file of the progress is a leftover.
    pid = find_driver(layout.lock)
    now = None
    upcoming = todo
    if pid is not None:
        now = _read(layout.now)
    if now:
        upcoming = todo[1:]
    error = _read(layout.error)

    # Files of finished benchmarks that cannot be shown.
    damaged = find_damage(state)

    # The lines, from the run as a whole to the time left.
    place = str(layout.root)
    if store.remote is not None:
        place = store.remote.url
    after = ""
    if config.baseline is not None:
        after = f", then as many of the baseline ({config.baseline.name})"
    lines = {
        "run": f"{place}: {config.objective.name}, {count_of(config.iterations, 'iteration')}{after}",
        "state": "stopped; the same spin run command continues it",
        "done": join_labels(done) or "no stage yet",
    }
    if pid:
        lines["state"] = f"running (pid {pid})"
    elif not todo:
        lines["state"] = "complete"
        if damaged:
            lines["state"] = "not complete: files of a benchmark are damaged; the same spin run command repeats it"
        for unit in state.final_policies():
            if not store.has_weights(unit.path):
                lines["state"] = f"not complete: {unit.path} is gone; the same spin run command trains it again"
                break
    if damaged:
        lines["damaged"] = "; ".join(f"{path} {problem}" for path, problem in damaged.items())
    if now:
        lines["now"] = _progress(now)
    if upcoming:
        lines["next"] = _next(state, upcoming)
    rewards = describe_rewards(state, state.stages())
    if rewards:
        lines["rewards"] = join_latest(rewards)
    judged = describe_judge(state, state.stages())
    if judged:
        lines["judge"] = join_latest(judged)
    dropped = describe_dropped(state, state.stages())
    if dropped:
        lines["dropped"] = join_latest(dropped)
    if error:
        lines["last error"] = f"{error['time']}: {error['error']}"
    if todo:
        lines["time left"] = _time_left(state, todo, now)
    return lines


def join_labels(labels: Sequence[str]) -> str:
    """Return labels as one text, such as ``start, iteration 0 to 57``."""
    # The first and the last number of each stretch of labels of one kind.
    stretches: list[tuple[str, str, str]] = []
    for label in labels:
        kind, _, number = label.rpartition(" ")
        # A label without number may have several words.
        if not number.isdigit():
            kind, number = label, ""
        follows = False
        if stretches and number:
            before, _, last = stretches[-1]
            follows = before == kind and last != "" and int(number) == int(last) + 1
        if follows:
            stretches[-1] = (kind, stretches[-1][1], number)
        else:
            stretches.append((kind, number, number))
    texts = []
    for kind, first, last in stretches:
        text = f"{kind} {first}".rstrip()
        if first != last:
            text += f" to {last}"
        texts.append(text)
    return ", ".join(texts)


def join_latest(texts: Sequence[str]) -> str:
    """Return the last texts as one, after the number of those that are left out."""
    left_out = len(texts) - MAX_TEXTS
    latest = "; ".join(texts[-MAX_TEXTS:])
    if left_out <= 0:
        return latest
    return f"({left_out} earlier ones are in spin report) {latest}"


def find_driver(lock: Path) -> int | None:
    """Return the process id of the driver that holds the lock of a run directory, or None."""
    if not lock.exists():
        return None
    with lock.open() as handle:
        # A shared lock is refused for as long as the driver has its own. The file holds its id.
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(handle.read() or 0)
    return None


def list_todo(state: RunState) -> list[Work]:
    """Return the unfinished work in order; all shards of one kind are one entry."""
    found: dict[Work, None] = {}
    for unit in state.todo():
        if unit.kind in KINDS:
            found[unit.stage, unit.kind] = None
    return list(found)


def _next(state: RunState, todo: Sequence[Work]) -> str:
    """Return the rest of the current stage, then the range of the later stages."""
    first = todo[0][0]
    rest = []
    later: dict[str, None] = {}
    for stage, kind in todo:
        if stage == first:
            rest.append(KINDS[kind])
        else:
            later[stage.label] = None
    text = f"{first.label} {', '.join(rest)}"
    # Training resumes from its last saved state.
    saved = state.saved_states(first)
    if saved and "train" in rest:
        text += f" (training goes on after step {max(saved)})"
    labels = list(later)
    if labels:
        text += f"; then {labels[0]}"
    # As "iteration 1 to 4": of the last label only its number.
    if len(labels) > 1:
        text += f" to {labels[-1].split()[-1]}"
    return text


def _progress(now: dict[str, Any]) -> str:
    """Return one line about the work that is going on."""
    text = f"{now['label']}: {now['done']:,}"
    # The trainer tells the number of its steps with the first of them.
    if now["total"]:
        text += f" of {now['total']:,}"
    text += f" {now['unit']}, {now['rate']:,.1f} {now['unit']}/s"
    if now.get("left"):
        text += f", {format_duration(now['left'])} left"
    return f"{text}; last report {time.time() - now['time']:.0f} s ago"


def _time_left(state: RunState, todo: Sequence[Work], now: dict[str, Any] | None) -> str:
    """Estimate the time left from the finished work of each kind and the current rate."""
    # Seconds by kind; the warm-up is left out, since it trains on other data.
    known: dict[str, list[float]] = {}
    for stage in state.stages():
        for kind in KINDS:
            seconds = state.seconds(stage, kind)
            if seconds is not None and stage.name != "start":
                known.setdefault(kind, []).append(seconds)

    # The current work is as far as it says; the rest takes as long as the mean of its kind, or as
    # was estimated at the launch.
    expected = (state.ledger.get(EXPECTED) or {}).get("seconds", {})
    left = 0.0
    estimated = set()
    unknown = set()
    for position, (_, kind) in enumerate(todo):
        if position == 0 and now and now.get("left"):
            left += now["left"]
        elif kind in known:
            left += sum(known[kind]) / len(known[kind])
        elif KINDS[kind] in expected:
            left += expected[KINDS[kind]]
            estimated.add(KINDS[kind])
        else:
            unknown.add(KINDS[kind])
    basis = "at the pace of what is done"
    if estimated:
        basis = f"with the estimate of the launch for {', '.join(sorted(estimated))}"
    if not unknown:
        return f"about {format_duration(left)}, {basis}"
    text = f"not known before the first {', '.join(sorted(unknown))} is done"
    if left:
        text += f"; {format_duration(left)} without, {basis}"
    return text


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file; None if there is none."""
    if not path.is_file():
        return None
    return read_json(path)
