"""Which policy is the best so far, and whether more iterations are worth it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin.config.benchmark import HIGHER_IS_BETTER
from spin.config.run import RunConfig
from spin.run_dir.files import fsync_path
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage


def metric(config: RunConfig) -> str:
    """The figure that decides."""
    return config.stop.metric or ("exact_match_greedy" if config.data.answer_pattern else "nll")


def best(values: Sequence[float | None], name: str) -> int:
    """Position of the best value; the earliest of equals. Values that are null are passed over; all null: 0."""
    sign = 1 if HIGHER_IS_BETTER[name] else -1
    known = [at for at, value in enumerate(values) if value is not None]
    return max(known, key=lambda at: (sign * (values[at] or 0.0), -at), default=0)


def waited(values: Sequence[float | None], name: str, min_delta: float) -> int:
    """How many of the last values brought nothing better, by more than `min_delta`, than the best before them."""
    sign, top, count = 1 if HIGHER_IS_BETTER[name] else -1, None, 0
    for value in values:
        if value is None:
            continue
        better = top is None or sign * (value - top) > min_delta
        top, count = (value, 0) if better else (top, count + 1)
    return count


def stopped(config: RunConfig, measured: Sequence[dict[str, Any]]) -> bool:
    """Whether the rule ends the run after these figures: the start's first, then each iteration's."""
    if config.stop.patience is None:
        return False
    return (
        waited([values[metric(config)] for values in measured], metric(config), config.stop.min_delta)
        >= config.stop.patience
    )


def record_best(
    config: RunConfig, layout: RunLayout, ledger: Ledger, measured: Sequence[tuple[Stage, dict[str, Any]]], start: Path
) -> None:
    """Write the best of the start and the iterations into the ledger and link it as `policy_best`; `start`: where the starting policy lies."""
    name = metric(config)
    at = best([values[name] for _, values in measured], name)
    stage, values = measured[at]
    facts = {"policy": stage.name, "metric": name, "value": values[name]}
    folder, root = (stage.policy if at else start).resolve(), layout.root.resolve()
    target = os.path.relpath(folder, root) if folder.is_relative_to(root) else str(folder)
    if not layout.best.is_symlink() or os.readlink(layout.best) != target:
        temporary = layout.best.with_name(layout.best.name + ".tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        if layout.best.is_dir() and not layout.best.is_symlink():  # a copy of the run that followed the link
            shutil.rmtree(layout.best)
        os.replace(temporary, layout.best)
        fsync_path(layout.root)
    known = ledger.get("best") or {}
    if any(known.get(key) != value for key, value in facts.items()):
        ledger.append("best", **facts)
