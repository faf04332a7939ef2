"""Render the data sets to token ids and write them into the run directory once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from spin.config.run import RunConfig
from spin.data.chat import Renderer
from spin.data.datasets import prepare, stream_prompts
from spin.data.labelled import load_labelled
from spin.data.parquet import count_rows, stream_rows, write_rows
from spin.data.records import Pair, Prompt, Rating
from spin.data.row_report import RowReport
from spin.errors import CheckpointError, ConfigError
from spin.objectives.objective import Objective
from spin.report.console import Reporter
from spin.run_dir.files import file_sha256, unfinished
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore

LABELLED_SETS = {"labelled-pairs": Pair, "ratings": Rating}
"""The labelled sets of a run, and their records."""


def prepare_data(
    config: RunConfig,
    iteration_configs: list[RunConfig],
    store: RunStore,
    ledger: Ledger,
    reporter: Reporter,
    renderer: Renderer,
) -> dict[str, Any] | None:
    """Write the prepared sets once; on a resume, make again those that were lost or altered. Raises CheckpointError when they come out as others.

    Returns what the ledger is to say of them when the run begins, as ``data``; None on a resume: it is said already.
    """
    layout = RunLayout(store.root)
    facts = ledger.get("data")
    damaged = (
        {
            name: digest
            for name, digest in facts["sha256"].items()
            if not layout.prompts(name).exists() or file_sha256(layout.prompts(name)) != digest
        }
        if facts
        else {}
    )
    if facts and not damaged:
        return None
    limits = (config.max_prompt_length, config.generation.max_tokens)
    prepared = prepare(config.data, renderer, *limits, config.seed)
    sets: dict[str, Iterable[Any]] = {"train": prepared.train, "heldout": prepared.heldout}
    reports = prepared.reports
    held = {tuple(prompt.prompt_ids) for prompt in prepared.heldout}
    if config.warmup.enabled:
        if config.warmup.path is None:  # the first of those that were written just before
            sets["warmup"] = islice(stream_rows(layout.prompts("train"), Prompt), config.warmup.limit)
        else:
            reports.append(RowReport(config.warmup.path))
            warmup = stream_prompts(reports[-1], config.warmup.split, renderer, *limits, None, config.data.turn, held)
            sets["warmup"] = islice(warmup, config.warmup.limit)
    sources = {
        (f.path, f.split, f.limit): f
        for f in (iteration.feedback for iteration in iteration_configs)
        if f.path is not None
    }
    if len(sources) > 1:
        raise ConfigError(
            f"the schedule names {len(sources)} labelled sets ({', '.join(str(path) for path, _, _ in sources)}); expected one feedback.path, or null, in each iteration"
        )
    rated: list[Rating] = []
    for feedback in sources.values():
        labelled, rated, report = load_labelled(feedback, renderer, *limits, held)
        sets |= {"labelled-pairs": labelled} if labelled else {}
        sets |= {"ratings": rated} if rated else {}
        reports.append(report)
    for index, iteration in enumerate(iteration_configs):
        if rated and iteration.feedback.path is not None and Objective(iteration.objective).rows == "pairs":
            raise ConfigError(
                f"iteration {index}: feedback.path={iteration.feedback.path} holds ratings, which objective={iteration.objective.name} cannot use; take objective=kto"
            )
    for name, digest in damaged.items():
        reporter.print(f"warning: {layout.prompts(name)} is gone or was altered; it is made again from the data")
        again = unfinished(layout.prompts(name))
        found = write_rows(again, LABELLED_SETS.get(name, Prompt), sets.get(name, []))
        if found != digest:
            again.unlink()
            raise CheckpointError(
                f"{layout.prompts(name)} is gone or was altered, and the data it came from give other rows now; restore one of them, or choose another run_dir"
            )
        again.replace(layout.prompts(name))
        store.publish(layout.prompts(name))
    if damaged:
        return None
    digests = {
        name: write_rows(layout.prompts(name), LABELLED_SETS.get(name, Prompt), rows) for name, rows in sets.items()
    }
    for name in sets:
        store.publish(layout.prompts(name))
    for report in reports:
        reporter.print(f"data: {report.line()}")
    return {"sha256": digests, **{name: count_rows(layout.prompts(name)) for name in sets}}
