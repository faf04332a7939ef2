"""Read preference and rating sets, which are labelled already, to token ids."""

from __future__ import annotations

import math
from itertools import combinations

from spin.config.groups import FeedbackConfig
from spin.data.chat_renderer import Renderer
from spin.data.formats import LABELLED, Kind
from spin.data.records import Pair, Rating
from spin.data.rendered_rows import RenderedRow, open_rows, render_rows
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
    row_format, rows = open_rows(source.path, source.split, labelled=True)
    if row_format is None:
        raise ConfigError(f"feedback.path={source.path}: {describe_empty(report)}")
    if row_format.kind not in LABELLED:
        raise ConfigError(
            f"feedback.path={source.path}: rows are {row_format.name}, which have no labels; expected one of "
            "prompt+chosen+rejected; chosen+rejected; prompt+completion+label; prompt+completion+score; "
            "prompt+responses+ranks; real+generated"
        )
    # Rows of prompts that are held out would leak into the benchmark.
    for row in render_rows(report, row_format, rows, renderer, max_prompt, pairs=source.pairs):
        if tuple(row.exchanges[0].prompt_ids) in held:
            report.drop(HELD_OUT, row.place)
            continue
        # A rating has one completion, a pair two that differ.
        if row_format.kind is Kind.rating:
            ratings.append(_make_rating(len(ratings), row, max_completion, source.threshold))
        else:
            places, reason = _choose_pairs(row)
            if reason is not None:
                report.drop(reason, row.place)
                continue
            for chosen, rejected in places:
                pairs.append(_make_pair(len(pairs), row, chosen, rejected, max_completion))
        # Count what the user should know of the kept row.
        report.cut += any(len(exchange.completion_ids) > max_completion for exchange in row.exchanges)
        report.split += any(exchange.boundary_split for exchange in row.exchanges)
        report.kept += 1
        if report.kept == source.limit:
            break
    if not report.kept:
        raise ConfigError(f"feedback.path={source.path}: {describe_empty(report)}")
    return pairs, ratings, report


def _choose_pairs(row: RenderedRow) -> tuple[list[tuple[int, int]], str | None]:
    """Return the places of (better, worse) answers, or none and the reason."""
    exchanges = row.exchanges
    ranks = row.conversation.ranks
    # The two answers of a pair have no ranks: the first is the better one.
    if not ranks:
        ranks = [0.0, 1.0]
    places = []
    for better, worse in combinations(range(len(exchanges)), 2):
        if ranks[better] < ranks[worse]:
            places.append((better, worse))
    if not places:
        return [], "with answers that are all ranked alike"
    # Two equal completions carry no signal.
    differing = [(better, worse) for better, worse in places if exchanges[better].text != exchanges[worse].text]
    if not differing:
        return [], "with two equal completions"
    return differing, None


def _make_pair(index: int, row: RenderedRow, chosen: int, rejected: int, max_completion: int) -> Pair:
    """Return a labelled pair, which the reference has not scored yet."""
    return Pair(
        prompt_id=index,
        sample_index=0,
        source="labelled",
        iteration=None,
        prompt_ids=row.exchanges[chosen].prompt_ids,
        chosen_ids=row.exchanges[chosen].completion_ids[:max_completion],
        rejected_ids=row.exchanges[rejected].completion_ids[:max_completion],
        reference_chosen_logp=math.nan,
        reference_rejected_logp=math.nan,
        sampler_rejected_logp=math.nan,
        preference=row.conversation.preference,
    )


def _make_rating(index: int, row: RenderedRow, max_completion: int, threshold: float) -> Rating:
    """Return a rating that the reference has not scored yet."""
    [exchange] = row.exchanges
    desirable = row.conversation.label
    if desirable is None:
        assert row.conversation.score is not None
        desirable = row.conversation.score > threshold
    completion_ids = exchange.completion_ids[:max_completion]
    return Rating(index, 0, None, exchange.prompt_ids, completion_ids, desirable, math.nan)
