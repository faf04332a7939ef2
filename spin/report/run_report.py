"""Read what `spin report` shows of a run: metrics, curves, times, settings and answers.

Only config.yaml and the ledger must exist. A run that is not finished, or has no benchmark or
baseline, gives the parts it has. The page is written by `page.py`, the plots by `figures.py`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from spin.config.run import flatten
from spin.report.benchmark_files import describe_damage, find_damage, read_reward_figures
from spin.report.metrics_log import MetricsLog
from spin.report.row_counts import sum_judgements, sum_rewards, sum_rollouts
from spin.report.status import KINDS, describe_state, find_run
from spin.report.training_samples import SampledPrompt, list_training_samples
from spin.run_dir.files import read_json
from spin.run_dir.judge_statistics import JudgeStatistics
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import Stage
from spin.run_dir.run_state import RunState, read_state
from spin.run_dir.store import RunStore
from spin.run_dir.unit import kind_name

NOT_METRICS = ("unit", "time", "kind", "step", "steps")
"""Keys of a training row that are no metrics."""

TEXTS = ("prompt_id", "prompt_text", "target_text", "greedy_text", "greedy_right", "sampled_text", "sampled_right")
"""Columns of the scored held-out answers that the page shows."""


@dataclass(frozen=True)
class Curve:
    """The logged steps of one training stage."""

    steps: list[int]
    values: dict[str, list[float]]
    """By key, one value a step; NaN where a step has none."""


@dataclass(frozen=True)
class Span:
    """One stage on the wall clock, in seconds since the epoch."""

    policy: str
    kind: str
    """``generate``, ``reward``, ``score``, ``train`` or ``benchmark``."""
    start: float
    end: float
    finished: bool
    beside: bool = False
    """True when the same iteration was trained meanwhile."""


@dataclass(frozen=True)
class PolicyReport:
    """The start, one iteration, or one iteration of the baseline."""

    label: str
    iteration: int
    """-1: the start."""
    baseline: bool
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """Lower and upper bound, 95 %, of the metrics that have an interval."""
    speed: dict[str, float]
    """Seconds, tokens per second and peak memory in GiB at the time of the benchmark."""
    seconds: dict[str, float]
    """Wall-clock seconds by kind of finished work."""
    curve: Curve | None
    changes: dict[str, tuple[Any, Any]]
    """Settings that differ from the run's, by key: (the run's, its own)."""
    answers: dict[str, list[Any]] | None
    """Held-out answers, columns as in TEXTS."""
    judge: JudgeStatistics | None
    """What is known of the judge of the samples that it was trained on; None without a judge."""


@dataclass(frozen=True)
class RunReport:
    """Everything the page says of one run."""

    name: str
    state: dict[str, str]
    """Lines of `spin status` by heading."""
    config: dict[str, Any]
    policies: list[PolicyReport]
    """The start, the iterations, then the baseline's."""
    spans: list[Span]
    total_seconds: float | None
    """Wall clock of all sessions; None before the run is complete."""
    best: dict[str, Any] | None
    """``label``, ``metric`` and ``value`` of the best policy so far; None before there is one."""
    warnings: list[str]
    """One line for each file that is left out, because it was lost or altered."""
    reward_models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Figures of the reward models that the run trained, by the label of their stage."""
    samples: dict[str, list[SampledPrompt]] = field(default_factory=dict)
    """Some prompts with the samples that were trained on, by the label of their iteration."""


def collect(store: RunStore, name: str) -> RunReport:
    """Read one run, which the page calls `name`. Raises ConfigError when there is none."""
    layout = find_run(store)
    ledger = Ledger(layout.ledger, read_only=True)
    # It checks config.yaml, so it comes before that file is read as plain settings.
    state = read_state(layout, ledger)
    config = read_settings(layout.config.read_text())
    rows = MetricsLog(layout.metrics).rows()

    # The start, and all other stages that have begun: a stage has a folder from then on.
    lines = describe_state(store, state)
    stages = [layout.start]
    for stage in state.stages():
        if stage != layout.start and not stage.is_reward_model and stage.folder.is_dir():
            stages.append(stage)
    damaged = find_damage(state)
    policies = [policy_report(stage, config, state, rows, damaged) for stage in stages]

    # The best policy so far, and the wall clock of all sessions.
    best = ledger.get("best")
    if best is not None:
        best = {**best, "label": Stage(store.root, best["policy"]).label}
    total = (ledger.get("seconds") or {}).get("total")
    report = RunReport(name, lines, config, policies, spans(stages, state, rows), total, best, describe_damage(state))
    samples = list_training_samples(store, layout, state, stages)
    return replace(report, reward_models=read_reward_figures(state), samples=samples)


def policy_report(
    stage: Stage, config: dict[str, Any], state: RunState, rows: list[dict[str, Any]], damaged: Container[Path]
) -> PolicyReport:
    """Return what the files of one stage hold; `damaged` are files that are left out."""
    # The benchmark, if it is finished.
    values = {}
    if stage.benchmark.is_file() and stage.benchmark not in damaged:
        values = read_json(stage.benchmark)
    speed = values.pop("speed", {})
    intervals = {}
    for key, (low, high) in values.pop("intervals", {}).items():
        intervals[key] = (float(low), float(high))

    # The rewards of the samples that the policy was trained on.
    rewards = sum_rewards(state, stage)
    if rewards is not None:
        low, high = rewards.interval
        intervals["reward"] = (low, high)
        values |= {key: value for key, value in rewards.to_figures().items() if not key.startswith("reward_")}
    rollouts = sum_rollouts(state, stage)
    if rollouts is not None:
        values |= rollouts.to_figures()

    # The answers, without their token ids, which the page does not show.
    answers = None
    judged = stage.answers("judged")
    if judged.is_file() and judged not in damaged:
        answers = pq.read_table(judged, columns=list(TEXTS)).to_pydict()

    # The steps of training.
    unit = kind_name(stage, "policy")
    steps = [row for row in rows if row["unit"] == unit and row["kind"] == "train"]
    return PolicyReport(
        label=stage.label,
        iteration=stage.index,
        baseline=stage.is_baseline,
        metrics=numbers(values),
        intervals=intervals,
        speed=numbers(speed),
        seconds=seconds_by_kind(stage, state),
        curve=curve(steps, find_objective(stage, config)),
        changes=find_changes(stage, config),
        answers=answers,
        judge=sum_judgements(state, stage),
    )


def find_changes(stage: Stage, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of an iteration that differ from the run's, by key: (the run's, its own).

    Schedule, run directory and number of iterations are no settings of an iteration.
    """
    if not stage.config.is_file():
        return {}
    own = read_settings(stage.config.read_text())
    changes = {}
    # A key may be missing on one side: another objective has other keys.
    for key in sorted(own.keys() | config.keys()):
        if key.startswith(("schedule", "run_dir", "iterations")):
            continue
        if config.get(key) != own.get(key):
            changes[key] = (config.get(key), own.get(key))
    return changes


@cache
def read_settings(text: str) -> dict[str, Any]:
    """Return the settings of a config file; most iterations of a run have equal ones."""
    return flatten(yaml.safe_load(text))


def seconds_by_kind(stage: Stage, state: RunState) -> dict[str, float]:
    """Return the seconds of the finished work of a stage, by the word for its kind."""
    found = {}
    for kind, word in KINDS.items():
        seconds = state.seconds(stage, kind)
        if seconds is not None:
            found[word] = seconds
    return found


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the values that can be drawn; nested values get dotted keys."""
    found = {}
    for key, value in flatten(values).items():
        if is_number(value):
            found[key] = float(value)
    return found


def is_number(value: Any) -> bool:
    """Return True for an int or a float; a bool is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def find_objective(stage: Stage, config: dict[str, Any]) -> str:
    """Return the name of the objective that a stage is trained with."""
    # The warm start and the baseline are supervised finetuning.
    if stage.index < 0 or stage.is_baseline:
        return "sft"
    if stage.config.is_file():
        config = read_settings(stage.config.read_text())
    return str(config["objective.name"])


def curve(rows: Sequence[dict[str, Any]], objective: str) -> Curve | None:
    """Return training rows as columns; None if there are none.

    The loss is named after the objective: losses of two objectives cannot be compared.
    """
    if not rows:
        return None
    # A metric may be missing in some rows: their values stay NaN, and are not drawn.
    values: dict[str, list[float]] = {}
    steps = []
    for position, row in enumerate(rows):
        steps.append(row["step"])
        for key, value in row.items():
            if key not in NOT_METRICS and is_number(value):
                name = key
                if key == "loss":
                    name = f"loss of {objective}"
                column = values.setdefault(name, [math.nan] * len(rows))
                column[position] = float(value)
    return Curve(steps, values)


def spans(stages: list[Stage], state: RunState, rows: list[dict[str, Any]]) -> list[Span]:
    """Return when each kind of work of each stage ran, in the order of their ends.

    metrics.jsonl has the time of the last row of each kind, the ledger has how long it took.
    """
    # The times of the logged rows of each kind of work.
    times_of: dict[str, list[float]] = {}
    for row in rows:
        times_of.setdefault(row["unit"], []).append(row["time"])

    # The work that has logged a row, by the time of its last one.
    works = []
    for stage in stages:
        for kind in KINDS:
            if kind_name(stage, kind) in times_of:
                works.append((stage, kind))
    works.sort(key=lambda work: times_of[kind_name(*work)][-1])

    # Its start is its end less the seconds that it took.
    found: list[Span] = []
    for stage, kind in works:
        times = times_of[kind_name(stage, kind)]
        seconds = state.seconds(stage, kind)
        # Work without seconds goes on, or was cut off.
        if seconds is None:
            found.append(Span(stage.label, KINDS[kind], times[0], times[-1], False))
            continue
        start = times[-1] - seconds
        totals = state.totals(stage, kind)
        background = totals is not None and totals.background
        # The last row of training comes before the export, so its start is taken from the end of
        # scoring.
        if kind == "policy" and found and not found[-1].beside:
            start += min(max(0.0, found[-1].end - start), seconds / 4)
        found.append(Span(stage.label, KINDS[kind], start, start + seconds, True, background))
    return found
