"""Split the rows of one set at random into training and held-out prompts."""

from __future__ import annotations

import numpy as np

from spin.config.groups import DataConfig
from spin.data.records import Prompt
from spin.data.row_report import HELD_OUT, RowReport
from spin.errors import ConfigError


def choose_heldout(num_rows: int, limit: int, seed: int) -> list[int]:
    """Return the positions of the rows that are held out: a tenth of them, at most `limit`."""
    # The generators of the run's seed: 1 takes held-out rows, 2 shuffles.
    order = np.random.default_rng([seed, 1]).permutation(num_rows)
    return sorted(int(index) for index in order[: min(limit, num_rows // 10)])


def take_heldout(
    rows: list[Prompt], data: DataConfig, report: RowReport, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """Split the rows of one set at random: at most a tenth of them is held out.

    Returns:
        The training prompts and the held-out ones.

    Raises:
        ConfigError: one of the two would be empty.
    """
    heldout = [rows[index] for index in choose_heldout(len(rows), data.eval_limit, seed)]
    if not heldout:
        raise ConfigError(
            f"{data.path}: {len(rows)} usable rows are too few to hold some out; "
            f"give data.eval_path, or at least 10 rows{report.describe_dropped()}"
        )
    # Other rows with the same prompt are dropped too.
    held = {tuple(row.prompt_ids) for row in heldout}
    kept = [row for row in rows if tuple(row.prompt_ids) not in held]
    report.dropped[HELD_OUT] += len(rows) - len(kept)
    train = kept[: data.limit]
    report.kept = len(train)
    if not train:
        raise ConfigError(f"{data.path}: every usable row is also held out; give data.eval_path")
    return train, heldout
