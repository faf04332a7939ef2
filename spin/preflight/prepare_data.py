"""Render the data sets to token ids, and write them into the run directory once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from spin.config.groups import FeedbackConfig
from spin.config.objective_base import RowType
from spin.config.run import RunConfig
from spin.data.chat_renderer import Renderer
from spin.data.datasets import prepare, stream_prompts
from spin.data.labelled import load_labelled
from spin.data.parquet import count_rows, stream_rows, write_rows
from spin.data.pretraining_text import stream_pretraining
from spin.data.rankings import RankingSource, check_subsets, hold_out_rankings, load_rankings
from spin.data.records import Pair, Prompt, Ranking, Rating
from spin.data.row_report import RowReport
from spin.errors import CheckpointError, ConfigError
from spin.report.console import Reporter
from spin.run_dir.files import unfinished
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore
from spin.run_dir.verification import verify_file

LABELLED_SETS = {"labelled-pairs": Pair, "ratings": Rating}
"""Record types of the labelled sets."""

RANKING_SETS = {"rankings": Ranking, "rankings-heldout": Ranking}
"""Record types of the sets of a reward model."""

SET_TYPES: dict[str, type] = {**LABELLED_SETS, **RANKING_SETS}
"""Record types of the sets that do not hold `Prompt` records."""


@dataclass(frozen=True)
class PreparedSets:
    """The sets of a run before they are written."""

    rows: dict[str, Iterable[Any]]
    """Rows by name of the set, in the order of writing. Each can be gone through once."""
    reports: list[RowReport]
    """What was read from each source; complete once all rows were gone through."""


def prepare_data(
    config: RunConfig,
    iteration_configs: list[RunConfig],
    store: RunStore,
    ledger: Ledger,
    reporter: Reporter,
    renderer: Renderer,
) -> dict[str, Any] | None:
    """Write the prepared sets; on a resume, make those again that were lost or altered.

    Returns:
        The facts for the ledger line ``data``; None on a resume, when the line is there.

    Raises:
        ConfigError: A data set cannot be used.
        CheckpointError: A set that was lost or altered comes out with other rows.
    """
    # The first launch writes all sets.
    layout = RunLayout(store.root)
    recorded = ledger.get("data")
    if recorded is None:
        sets = load_sets(config, iteration_configs, layout, renderer)
        return write_sets(sets, store, reporter)
    # A resume needs the same rows, since finished units were made from them.
    damaged = {}
    for name, digest in recorded["sha256"].items():
        if verify_file(layout.prompts(name), digest) is not None:
            damaged[name] = digest
    if damaged:
        restore_sets(damaged, load_sets(config, iteration_configs, layout, renderer), store, reporter)
    return None


def load_sets(
    config: RunConfig, iteration_configs: list[RunConfig], layout: RunLayout, renderer: Renderer
) -> PreparedSets:
    """Return the sets that the config asks for. Raises ConfigError when one cannot be used."""
    limits = (config.max_prompt_length, config.generation.max_tokens)

    # The training set and the held-out rows.
    prepared = prepare(config.data, renderer, *limits, config.seed)
    rows: dict[str, Iterable[Any]] = {"train": prepared.train, "heldout": prepared.heldout}
    reports = prepared.reports
    held_out = {tuple(prompt.prompt_ids) for prompt in prepared.heldout}

    # The warm-up, on data of its own or on the training set, which is written before it.
    warmup = config.warmup
    if warmup.enabled:
        prompts: Iterable[Prompt]
        if warmup.path is None:
            prompts = stream_rows(layout.prompts("train"), Prompt)
        else:
            report = RowReport(warmup.path)
            reports.append(report)
            prompts = stream_prompts(report, warmup.split, renderer, *limits, None, config.data.turn, held_out)
        rows["warmup"] = islice(prompts, warmup.limit)

    # The rows of PPO-ptx.
    pretraining = config.data.ptx
    if pretraining.path is not None:
        report = RowReport(pretraining.path)
        reports.append(report)
        texts = stream_pretraining(report, pretraining.split, renderer, *limits, config.data.turn, held_out)
        rows["ptx"] = islice(texts, pretraining.limit)
    elif pretraining.has_own_rows:
        rows["ptx"] = islice(stream_rows(layout.prompts("train"), Prompt), pretraining.limit)

    # The labelled rows.
    feedback = find_labelled_source(iteration_configs)
    if feedback is not None:
        pairs, ratings, report = load_labelled(feedback, renderer, *limits, held_out)
        reports.append(report)
        if pairs:
            rows["labelled-pairs"] = pairs
        if ratings:
            check_ratings_usable(iteration_configs)
            rows["ratings"] = ratings

    # The ranked answers of a reward model.
    if config.reward_model.data_path is not None:
        train, heldout, ranking_reports = load_ranking_sets(config, renderer, held_out)
        check_subsets("reward_model.subset_counts", config.reward_model.subset_counts, heldout)
        rows |= {"rankings": train, "rankings-heldout": heldout}
        reports += ranking_reports
    return PreparedSets(rows, reports)


def load_ranking_sets(
    config: RunConfig, renderer: Renderer, held_out: set[tuple[int, ...]]
) -> tuple[list[Ranking], list[Ranking], list[RowReport]]:
    """Return the rankings to train on, the held-out ones, and what was read from each source.

    Args:
        config: Config of the run.
        renderer: Of the run.
        held_out: Prompt ids of the held-out rows of the run, which are not trained on.

    Raises:
        ConfigError: A set cannot be used.
    """
    settings = config.reward_model
    assert settings.data_path is not None
    limits = (config.max_prompt_length, config.max_ranked_length, settings.max_responses)
    columns = (settings.margin_column, settings.subset_column)
    source = RankingSource("reward_model.data_path", settings.data_path, settings.split, None, *limits, *columns)
    # Held-out rows come from a set of their own, or from the same set.
    if settings.eval_path is None:
        train, report = load_rankings(source, renderer, held_out)
        train, heldout = hold_out_rankings(train, settings.eval_limit, config.seed, source, report)
        train = train[: settings.limit]
        report.kept = len(train)
        return train, heldout, [report]
    eval_source = replace(
        source,
        key="reward_model.eval_path",
        path=settings.eval_path,
        split=settings.eval_split,
        limit=settings.eval_limit,
    )
    heldout, eval_report = load_rankings(eval_source, renderer)
    held = held_out | {tuple(row.prompt_ids) for row in heldout}
    train, report = load_rankings(replace(source, limit=settings.limit), renderer, held)
    return train, heldout, [report, eval_report]


def find_labelled_source(iteration_configs: list[RunConfig]) -> FeedbackConfig | None:
    """Return the labelled set of a run, or None. Raises ConfigError if the schedule has several."""
    # Equal sources of several iterations are one.
    sources = {}
    for config in iteration_configs:
        feedback = config.feedback
        if feedback.path is not None:
            key = (feedback.path, feedback.split, feedback.limit, feedback.pairs, feedback.threshold)
            sources[key] = feedback
    if len(sources) > 1:
        paths = ", ".join(str(key[0]) for key in sources)
        raise ConfigError(
            f"the schedule names {len(sources)} labelled sets ({paths}); expected one feedback.path, or null, "
            "in each iteration, with the same split, limit, pairs and threshold"
        )
    for feedback in sources.values():
        return feedback
    return None


def check_ratings_usable(iteration_configs: list[RunConfig]) -> None:
    """Raise ConfigError when an iteration with ratings has an objective for pairs."""
    # A rating has one completion; only losses of single completions can use it.
    for index, config in enumerate(iteration_configs):
        if config.feedback.path is not None and config.objective.row_type is RowType.pair:
            raise ConfigError(
                f"iteration {index}: feedback.path={config.feedback.path} holds ratings, "
                f"which objective={config.objective.name} cannot use; take objective=kto"
            )


def write_sets(sets: PreparedSets, store: RunStore, reporter: Reporter) -> dict[str, Any]:
    """Write and publish the sets, and print what was read. Return the facts for the ledger."""
    layout = RunLayout(store.root)
    digests = {}
    counts = {}
    for name, rows in sets.rows.items():
        path = layout.prompts(name)
        digests[name] = write_rows(path, SET_TYPES.get(name, Prompt), rows)
        counts[name] = count_rows(path)
        store.publish(path)
    # Not earlier: rows are read, and counted, while they are written.
    for report in sets.reports:
        reporter.print(f"data: {report.line()}")
    return {"sha256": digests, **counts}


def restore_sets(damaged: dict[str, str], sets: PreparedSets, store: RunStore, reporter: Reporter) -> None:
    """Write sets again that were lost or altered.

    Args:
        damaged: Recorded digests by name of the set.
        sets: The sets as they come out now.
        store: The run directory.
        reporter: Prints a warning for each set.

    Raises:
        CheckpointError: A set has another digest now. Its file is left as it was.
    """
    layout = RunLayout(store.root)
    for name, digest in damaged.items():
        path = layout.prompts(name)
        reporter.print(f"warning: {path} is gone or was altered; it is made again from the data")
        # Beside the old file, which stays if the rows differ.
        temporary = unfinished(path)
        if write_rows(temporary, SET_TYPES.get(name, Prompt), sets.rows.get(name, [])) != digest:
            temporary.unlink()
            raise CheckpointError(
                f"{path} is gone or was altered, and the data it came from give other rows now; "
                "restore one of them, or choose another run_dir"
            )
        temporary.replace(path)
        store.publish(path)
