"""Find the best policy so far, record it, and link it as `policy_best`."""

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
from spin.run_dir.store import RunStore


def deciding_metric(config: RunConfig) -> str:
    """Return the metric that ranks the policies.

    It is `stop.metric` if set, else exact match if the user says how to compare, else NLL.
    """
    if config.stop.metric:
        return config.stop.metric
    if config.data.answer_pattern or config.benchmark.verifier:
        return "exact_match_greedy"
    return "nll"


def find_best(values: Sequence[float | None], name: str) -> int:
    """Return the position of the best value of a metric, the earliest of equal values.

    Null values are skipped. If all values are null, the position is 0.
    """
    best = 0
    top = -float("inf")
    for position, value in enumerate(values):
        if value is not None and orient_metric(value, name) > top:
            best = position
            top = orient_metric(value, name)
    return best


def orient_metric(value: float, name: str) -> float:
    """Return the value with the sign for which higher is better."""
    if HIGHER_IS_BETTER[name]:
        return value
    return -value


def record_best(
    config: RunConfig, layout: RunLayout, ledger: Ledger, measured: Sequence[tuple[Stage, dict[str, Any]]], start: Path
) -> None:
    """Write the best policy into the ledger, and link it as `policy_best`.

    Args:
        config: Names the deciding metric.
        layout: Paths of the run.
        ledger: Ledger of the run.
        measured: Metrics of the start, then of each iteration.
        start: Folder of the starting policy.
    """
    name = deciding_metric(config)
    position = find_best([metrics[name] for _, metrics in measured], name)
    stage, metrics = measured[position]
    # Without a warm start the starting policy is the given model, outside of the stage's folder.
    folder = stage.policy
    if position == 0:
        folder = start
    _link(layout, folder)
    facts = {"policy": stage.name, "metric": name, "value": metrics[name]}
    # The ledger is append-only: a resumed run must not repeat the line.
    known = ledger.get("best") or {}
    if facts != {key: known.get(key) for key in facts}:
        ledger.append("best", **facts)


def publish_best(layout: RunLayout, ledger: Ledger, store: RunStore) -> None:
    """Copy the best policy of a complete run to `policy_best` at its URL, which knows no links.

    The ledger's line `best_copy` says that the copy is complete. Nothing is copied without a URL,
    or when the best policy is the model that the run was given.
    """
    best = ledger.get("best")
    if store.remote is None or best is None:
        return
    policy = Stage(layout.root, best["policy"]).policy
    facts = {key: best[key] for key in ("policy", "metric", "value")}
    known = ledger.get("best_copy") or {}
    if facts != {key: known.get(key) for key in facts} and store.has_weights(policy):
        store.copy_folder(policy, layout.best)
        ledger.append("best_copy", **facts)


def _link(layout: RunLayout, folder: Path) -> None:
    """Replace the link `policy_best`."""
    # A relative target stays valid when the run directory is moved.
    root = layout.root.resolve()
    folder = folder.resolve()
    target = str(folder)
    if folder.is_relative_to(root):
        target = os.path.relpath(folder, root)
    if layout.best.is_symlink() and os.readlink(layout.best) == target:
        return
    temporary = layout.best.with_name(layout.best.name + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    # A tool that copied the run directory may have replaced the link by a folder.
    if layout.best.is_dir() and not layout.best.is_symlink():
        shutil.rmtree(layout.best)
    # Rename, so that the link exists at every moment.
    os.replace(temporary, layout.best)
    fsync_path(layout.root)
