"""Read preference and rating sets, which are labelled already, to token ids."""

from __future__ import annotations

import math

from spin.config.groups import FeedbackConfig
from spin.data.chat import Renderer
from spin.data.formats import PAIRED, RATED, Unusable, detect_format, load_rows, to_conversations
from spin.data.records import Pair, Rating
from spin.data.row_report import HELD_OUT, RowReport, describe_empty, render_row
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
    for place, row in load_rows(source.path, source.split):
        report.read += 1
        report.format = report.format or detect_format(row, place)
        if report.format not in (*PAIRED, RATED):
            raise ConfigError(
                f"feedback.path={source.path}: rows are {report.format}, which nobody labelled; "
                f"expected one of {'; '.join((*PAIRED, RATED))}"
            )
        try:
            conversations = to_conversations(row, report.format)
            if report.format == RATED and not isinstance(row.get("label"), bool):
                raise Unusable("with a label that is neither true nor false")
            exchanges = [render_row(conversation, renderer, max_prompt) for conversation in conversations]
            if tuple(exchanges[0].prompt_ids) in held:
                raise Unusable(HELD_OUT)
            # Equal words may be spelled with other tokens.
            if len(exchanges) == 2 and exchanges[0].text == exchanges[1].text:
                raise Unusable("with two equal completions")
        except Unusable as error:
            report.drop(str(error), place)
            continue
        report.cut += any(len(exchange.completion_ids) > max_completion for exchange in exchanges)
        report.split += any(exchange.boundary_split for exchange in exchanges)
        prompt_ids = exchanges[0].prompt_ids
        completions = [exchange.completion_ids[:max_completion] for exchange in exchanges]
        if report.format == RATED:
            ratings.append(Rating(len(ratings), prompt_ids, completions[0], row["label"], math.nan))
        else:
            pairs.append(make_labelled_pair(len(pairs), prompt_ids, *completions))
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
