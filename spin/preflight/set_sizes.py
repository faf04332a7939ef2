"""Rows and tokens of the prepared sets, from the lengths of their lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spin.data.parquet import list_totals
from spin.preflight.prepare_data import RANKING_SETS
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import RunState
from spin.run_dir.unit import Unit

COMPLETION_COLUMNS = dict.fromkeys(("train", "heldout", "warmup", "ratings"), ["completion_ids"])
COMPLETION_COLUMNS["labelled-pairs"] = ["chosen_ids", "rejected_ids"]
"""Columns with the completions of each prepared set."""


def measure_sets(layout: RunLayout) -> tuple[dict[str, int], dict[str, int]]:
    """Return rows and tokens of each prepared set; a prompt counts once for each completion."""
    rows, tokens = {}, {}
    for name, columns in COMPLETION_COLUMNS.items():
        if layout.prompts(name).exists():
            rows[name], (prompts, *completions) = list_totals(layout.prompts(name), ["prompt_ids", *columns])
            tokens[name] = len(columns) * prompts + sum(completions)
    # A ranking has as many completions as ranks.
    for name in RANKING_SETS:
        if layout.prompts(name).exists():
            columns = ["prompt_ids", "completions", "ranks"]
            rows[name], (prompts, completion_tokens, num_completions) = list_totals(layout.prompts(name), columns)
            tokens[name] = prompts * num_completions // max(1, rows[name]) + completion_tokens
    return rows, tokens


def measure_ranked(
    state: RunState,
    unit: Unit,
    set_rows: Mapping[str, int],
    set_tokens: Mapping[str, int],
    count_tokens: Callable[[Unit], float],
) -> tuple[int, float]:
    """Return the rows and tokens that the reward model `unit` learns from, held-out ones included.

    Args:
        state: The plan of the run.
        unit: The reward model.
        set_rows: Rows of each prepared set.
        set_tokens: Tokens of each prepared set.
        count_tokens: Function that returns the tokens of a shard of samples.
    """
    num_rows, num_tokens = set_rows.get("rankings", 0), float(set_tokens.get("rankings", 0))
    # The judged samples of the iteration and of those before it.
    for source in state.sources(unit, "rankings"):
        for samples in state.units(RunLayout(unit.stage.root).iteration(source.stage.index), "samples"):
            num_rows += len(samples.prompts)
            num_tokens += count_tokens(samples)
    return num_rows, num_tokens
