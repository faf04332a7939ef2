"""Read some samples that each iteration was trained on, with their rewards and judgements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.run_state import RunState
from spin.run_dir.store import RunStore
from spin.run_dir.unit import Unit
from spin.run_dir.verification import verify_unit

MAX_ITERATIONS = 6
"""Iterations whose samples are shown: the first, the last, and others at equal distances."""

MAX_PROMPTS = 12
"""Prompts that are shown of an iteration, the first of its first shard."""

GROUND_TRUTH = -1
"""Sample index of the ground truth in files of rewards and judgements."""


@dataclass
class SampledText:
    """The ground truth or one sample, with the figures that were given to it."""

    label: str
    """``ground truth``, ``sample 0`` and so on."""
    text: str
    figures: dict[str, float] = field(default_factory=dict)
    """By source, its reward; ``judge``: mean probability of being better, or the judge's score."""


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt of the training set with its ground truth and the samples of an iteration."""

    prompt_id: int
    text: str
    answers: list[SampledText]


def list_training_samples(
    store: RunStore, layout: RunLayout, state: RunState, stages: Iterable[Stage]
) -> dict[str, list[SampledPrompt]]:
    """Return some samples by the label of their iteration.

    Files that are unfinished, lost or altered are left out.

    Args:
        store: The run directory; files at a URL are fetched.
        layout: Paths of the run.
        state: State of the run.
        stages: Stages that have begun.
    """
    with_samples = []
    for stage in stages:
        units = [unit for unit in state.units(stage, "samples") if state.done(unit)]
        if units:
            with_samples.append((stage, units[0]))
    found = {}
    for stage, unit in choose_evenly(with_samples, MAX_ITERATIONS):
        prompts = read_samples(store, layout, state, stage, unit)
        if prompts:
            found[stage.label] = prompts
    return found


def choose_evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return up to `count` items at equal distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / (count - 1)
    return [items[round(position * step)] for position in range(count)]


def read_samples(store: RunStore, layout: RunLayout, state: RunState, stage: Stage, unit: Unit) -> list[SampledPrompt]:
    """Return the first prompts of a shard with their samples, rewards and judgements."""
    # The samples, by prompt.
    samples = read_columns(store, state, unit, ["prompt_id", "sample_index", "text"])
    answers: dict[int, dict[int, SampledText]] = {}
    for prompt_id, index, text in samples:
        if prompt_id in answers or len(answers) < MAX_PROMPTS:
            answers.setdefault(prompt_id, {})[index] = SampledText(f"sample {index}", text)

    # The prompts and ground truths, from the prepared training set.
    path = layout.prompts("train")
    if not answers or not path.is_file():
        return []
    chosen = pc.field("prompt_id").isin(list(answers))
    table = pq.read_table(path, columns=["prompt_id", "prompt_text", "completion_text"], filters=chosen)
    prompts = []
    for row in table.to_pylist():
        own = answers[row["prompt_id"]]
        own[GROUND_TRUTH] = SampledText("ground truth", row["completion_text"])
        ordered = [own[index] for index in sorted(own)]
        prompts.append(SampledPrompt(row["prompt_id"], row["prompt_text"], ordered))

    # The figures of the same shard.
    for other in find_units(state, stage, "rewards", unit.shard):
        for prompt_id, index, reward in read_columns(store, state, other, ["prompt_id", "sample_index", "reward"]):
            add_figure(answers, prompt_id, index, other.reward_source, reward)
    for other in find_units(state, stage, "judgements", unit.shard):
        add_judgements(answers, store, state, other)
    return prompts


def find_units(state: RunState, stage: Stage, kind: str, shard: int | None) -> list[Unit]:
    """Return the finished units of a kind that belong to one shard."""
    return [unit for unit in state.units(stage, kind) if unit.shard == shard and state.done(unit)]


def read_columns(store: RunStore, state: RunState, unit: Unit, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return columns of a finished file as rows; none when the file is lost or altered."""
    store.fetch(unit.path)
    if verify_unit(state, unit) is not None:
        return []
    table = pq.read_table(unit.path, columns=list(columns))
    values = [table.column(name).to_pylist() for name in columns]
    return list(zip(*values, strict=True))


def add_judgements(answers: dict[int, dict[int, SampledText]], store: RunStore, state: RunState, unit: Unit) -> None:
    """Add what a judge said: of each answer its score, or its mean probability of being better."""
    if is_scored(unit.path):
        for prompt_id, index, score in read_columns(store, state, unit, ["prompt_id", "sample_index", "score"]):
            add_figure(answers, prompt_id, index, "judge", score)
        return
    wins: dict[tuple[int, int], list[float]] = {}
    for prompt_id, first, second, preference in read_columns(
        store, state, unit, ["prompt_id", "first", "second", "preference"]
    ):
        # NaN: the judge gave no usable label.
        if not math.isnan(preference):
            wins.setdefault((prompt_id, first), []).append(preference)
            wins.setdefault((prompt_id, second), []).append(1 - preference)
    for (prompt_id, index), values in wins.items():
        add_figure(answers, prompt_id, index, "judge", sum(values) / len(values))


def is_scored(path: Path) -> bool:
    """Return True when a file of judgements holds scores, not comparisons."""
    return path.is_file() and "score" in pq.read_schema(path).names


def add_figure(
    answers: dict[int, dict[int, SampledText]], prompt_id: int, index: int, source: str, value: float
) -> None:
    """Add the figure of one source to an answer, if it is shown."""
    answer = answers.get(prompt_id, {}).get(index)
    if answer is not None:
        answer.figures[source] = value
