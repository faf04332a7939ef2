"""Read preference and rating sets, which are labelled already, to token ids."""

from __future__ import annotations

import math

from spin.config.groups import FeedbackConfig
from spin.data.chat_renderer import Renderer
from spin.data.formats import LABELLED, Kind
from spin.data.records import Pair, Rating
from spin.data.rendered_rows import open_rows, render_rows
from spin.data.row_report import HELD_OUT, RowReport, describe_empty
from spin.errors import ConfigError


def load_labelled(
    source: FeedbackConfig, renderer: Renderer, max_prompt: int, max_completion: int, held: set[tuple[int, ...]]
) -> tuple[list[Pair], list[Rating], RowReport]:
    """Return the usable pairs or ratings of a labelled set.

    Args:
        source: where the set is, and how many rows to use.
        renderer: of the run.
        max_prompt: longest prompt, in tokens; rows over it are dropped.
        max_completion: longest completion, in tokens; the rest is cut off.
        held: prompt ids of the held-out rows, which are dropped.

    Raises:
        ConfigError: no row is usable, or the rows carry no labels.
    """
    assert source.path is not None
    report = RowReport(f"{source.path} (labelled)")
    pairs: list[Pair] = []
    ratings: list[Rating] = []
    row_format, rows = open_rows(source.path, source.split)
    if row_format is None:
        raise ConfigError(f"feedback.path={source.path}: {describe_empty(report)}")
    if row_format.kind not in LABELLED:
        raise ConfigError(
            f"feedback.path={source.path}: rows are {row_format.name}, which nobody labelled; expected one of "
            "prompt+chosen+rejected; chosen+rejected; prompt+completion+label; real+generated"
        )
    # Rows of prompts that are held out would leak into the benchmark.
    for row in render_rows(report, row_format, rows, renderer, max_prompt):
        prompt_ids = row.exchanges[0].prompt_ids
        completions = [exchange.completion_ids[:max_completion] for exchange in row.exchanges]
        texts = [exchange.text for exchange in row.exchanges]
        if tuple(prompt_ids) in held:
            report.drop(HELD_OUT, row.place)
            continue
        # A rating has one completion, a pair two that differ.
        if row_format.kind is Kind.rating:
            assert row.conversation.label is not None
            ratings.append(Rating(len(ratings), 0, None, prompt_ids, completions[0], row.conversation.label, math.nan))
        elif len(texts) < 2:
            report.drop("with answers that are all ranked alike", row.place)
            continue
        elif texts[0] == texts[1]:
            report.drop("with two equal completions", row.place)
            continue
        else:
            pairs.append(make_labelled_pair(len(pairs), prompt_ids, *completions))
        # Count what the user should know of the kept row.
        report.cut += any(len(exchange.completion_ids) > max_completion for exchange in row.exchanges)
        report.split += any(exchange.boundary_split for exchange in row.exchanges)
        report.kept += 1
        if report.kept == source.limit:
            break
    if not report.kept:
        raise ConfigError(f"feedback.path={source.path}: {describe_empty(report)}")
    return pairs, ratings, report


def make_labelled_pair(index: int, prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int]) -> Pair:
    """Return a pair that nobody sampled and that the reference has not scored yet."""
    return Pair(
        prompt_id=index,
        sample_index=0,
        source="labelled",
        iteration=None,
        prompt_ids=prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        reference_chosen_logp=math.nan,
        reference_rejected_logp=math.nan,
        sampler_rejected_logp=math.nan,
    )
