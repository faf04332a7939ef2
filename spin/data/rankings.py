"""Read sets of ranked answers to token ids, for reward models.

prompt, chosen, rejected [, preference or margin]     →  two answers, the first is better
prompt, responses with ranks or scores                →  K answers
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spin.config.groups import RankedPairs
from spin.data.chat_renderer import Renderer
from spin.data.examples import compare_ranked
from spin.data.formats import MARGIN_COLUMN, SUBSET_COLUMN, Kind
from spin.data.heldout_split import choose_heldout
from spin.data.records import Ranking
from spin.data.rendered_rows import RenderedRow, open_rows, render_rows
from spin.data.row_report import HELD_OUT, RowReport, describe_empty
from spin.errors import ConfigError


@dataclass(frozen=True)
class RankingSource:
    """A set of ranked answers, and which of its rows and answers are used."""

    key: str
    """Config key of the path, for messages."""
    path: str
    split: str
    """Split of a Hub data set."""
    limit: int | None
    """Rows to use; None uses all."""
    max_prompt: int
    """Longest prompt in tokens; rows over it are dropped."""
    max_completion: int
    """Longest answer in tokens; the rest is cut off."""
    max_responses: int
    """Most answers of a row."""
    margin_column: str | None = MARGIN_COLUMN
    """Column with the margin of a pair; None reads none."""
    subset_column: str | None = SUBSET_COLUMN
    """Column with the part of the set that a row belongs to; None reads none."""


def load_rankings(
    source: RankingSource, renderer: Renderer, held: Container[tuple[int, ...]] = ()
) -> tuple[list[Ranking], RowReport]:
    """Return the usable rankings of a set.

    Args:
        source: The set.
        renderer: Of the run.
        held: Prompt ids of held-out rows, which are dropped.

    Raises:
        ConfigError: No row is usable, or the rows are no ranked answers.
    """
    report = RowReport(f"{source.path} (rankings)")
    columns = {MARGIN_COLUMN: source.margin_column, SUBSET_COLUMN: source.subset_column}
    row_format, rows = open_rows(source.path, source.split, labelled=True, columns=columns)
    if row_format is None:
        raise ConfigError(f"{source.key}={source.path}: {describe_empty(report)}")
    if row_format.kind not in (Kind.pair, Kind.ranking):
        raise ConfigError(
            f"{source.key}={source.path}: rows are {row_format.name}, which rank no answers; expected one of "
            "prompt+chosen+rejected; chosen+rejected; prompt+responses+ranks; prompt+completions with scores"
        )
    # Rows that cannot be compared are counted by their reason.
    rankings: list[Ranking] = []
    for row in render_rows(report, row_format, rows, renderer, source.max_prompt, pairs=RankedPairs.all):
        if tuple(row.exchanges[0].prompt_ids) in held:
            report.drop(HELD_OUT, row.place)
            continue
        ranking, reason = _make_ranking(len(rankings), row, source)
        if ranking is None:
            report.drop(str(reason), row.place)
            continue
        rankings.append(ranking)
        # Count what the user should know of the kept row.
        report.left_out += len(row.exchanges) - len(ranking.completions)
        report.cut += any(len(exchange.completion_ids) > source.max_completion for exchange in row.exchanges)
        report.split += any(exchange.boundary_split for exchange in row.exchanges)
        report.kept += 1
        if report.kept == source.limit:
            break
    # Other readers leave this column out, so it was counted as not used.
    report.ignored.discard(SUBSET_COLUMN)
    if not rankings:
        raise ConfigError(f"{source.key}={source.path}: {describe_empty(report)}")
    return rankings, report


def _make_ranking(ranking_id: int, row: RenderedRow, source: RankingSource) -> tuple[Ranking | None, str | None]:
    """Return the ranking of a row, or why there is none."""
    if len(row.exchanges) < 2:
        return None, "with a single answer"
    # The two answers of a pair have no ranks: the first is the better one.
    conversation = row.conversation
    ranks = conversation.ranks or [0.0, 1.0]
    # A margin is also read as a preference, which would count it twice.
    preference = conversation.preference
    if conversation.margin:
        preference = 1.0
    # Answers stand in the order of their ranks, the best first.
    places = spread_places(len(ranks), source.max_responses)
    ranking = Ranking(
        ranking_id=ranking_id,
        prompt_ids=row.exchanges[0].prompt_ids,
        completions=[row.exchanges[place].completion_ids[: source.max_completion] for place in places],
        ranks=[ranks[place] for place in places],
        preference=preference,
        margin=conversation.margin,
        subset=conversation.subset,
    )
    # Without a pair of which one answer is better, nothing can be learned.
    pairs = compare_ranked(ranking)
    if not pairs:
        return None, "with equal completions"
    if all(pair.preference == 0.5 for pair in pairs):
        return None, "with answers that are all ranked alike"
    return ranking, None


def spread_places(count: int, most: int) -> list[int]:
    """Return at most so many places of a ranking, spread evenly from the best to the worst."""
    if count <= most:
        return list(range(count))
    return [round(float(place)) for place in np.linspace(0, count - 1, most)]


def check_subsets(key: str, counts: Mapping[str, float], rankings: Sequence[Ranking]) -> None:
    """Check that the weights of subsets are those of the subsets of held-out rankings.

    Args:
        key: Config key of the weights, for the message.
        counts: Weight of each subset; empty if all weigh alike.
        rankings: The held-out rankings.

    Raises:
        ConfigError: A subset has no weight, or a weight no subset.
    """
    found = {row.subset for row in rankings if row.subset is not None}
    if counts and set(counts) != found:
        names = ", ".join(sorted(found)) or "none"
        raise ConfigError(
            f"{key} names {', '.join(sorted(counts))}; the held-out rows have the subsets {names}: expected one number "
            "for each"
        )


def hold_out_rankings(
    rankings: list[Ranking], limit: int, seed: int, source: RankingSource, report: RowReport
) -> tuple[list[Ranking], list[Ranking]]:
    """Split the rankings of one set at random: at most a tenth of them is held out.

    Returns:
        The rankings to train on and the held-out ones; no prompt is in both.

    Raises:
        ConfigError: One of the two would be empty.
    """
    # Other rows with a held-out prompt are dropped too.
    chosen = choose_heldout(len(rankings), limit, seed)
    heldout = [rankings[index] for index in chosen]
    held = {tuple(row.prompt_ids) for row in heldout}
    kept = [row for row in rankings if tuple(row.prompt_ids) not in held]
    if not heldout or not kept:
        raise ConfigError(
            f"{source.key}={source.path}: {len(rankings)} usable rows are too few to hold some out; "
            f"give reward_model.eval_path, or at least 10 rows{report.describe_dropped()}"
        )
    report.dropped[HELD_OUT] += len(rankings) - len(kept)
    report.kept = len(kept)
    return kept, heldout
