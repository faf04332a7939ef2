"""Rows and tokens of the prepared sets, from the lengths of their lists."""

from __future__ import annotations

from spin.data.parquet import list_totals
from spin.preflight.prepare_data import RANKING_SETS
from spin.run_dir.paths import RunLayout

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
