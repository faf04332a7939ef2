"""Find out whether a run is complete: all iterations are promoted, or the stop rule ended it."""

from __future__ import annotations

from typing import Any

from spin.benchmark.stop_rule import should_stop
from spin.config.run import RunConfig
from spin.errors import CheckpointError
from spin.models.policy import check_policy
from spin.models.stage_policy import make_stage_policy
from spin.report.benchmark_files import find_damage, read_benchmarks
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.run_state import RunState, plan_state
from spin.run_dir.store import RunStore
from spin.run_dir.unit import Unit


def count_complete(config: RunConfig, iteration_configs: list[RunConfig], store: RunStore, ledger: Ledger) -> int:
    """Return the number of iterations of a complete run; 0 when something is left to do."""
    # Count the promoted iterations.
    layout = RunLayout(store.root)
    state = plan_state(layout, config, iteration_configs, ledger)
    promoted = [stage for stage in state.stages("policy") if stage.index >= 0 and not stage.is_baseline]
    done = len(promoted)

    # Is anything missing in a plan of so many iterations? If the stop rule ended the run, they are
    # fewer than in the config.
    state = plan_state(layout, config, iteration_configs[:done], ledger)
    if state.todo() or not all(has_policy(state, unit, store) for unit in state.final_policies()):
        return 0
    # A benchmark that was lost or altered is made again.
    if find_damage(state):
        return 0
    # If iterations are missing, only the stop rule can have ended the run.
    if done == config.iterations or should_stop(config, [values for _, values in history(state)]):
        return done
    return 0


def has_policy(state: RunState, unit: Unit, store: RunStore) -> bool:
    """Return True when a promoted policy is there and, in a local run, intact."""
    # At a URL, a check of the digest would fetch all weights.
    if store.remote is not None:
        return store.has_weights(unit.path)
    try:
        check_policy(make_stage_policy(unit.stage, state.facts(unit, PolicyFacts)))
    except CheckpointError:
        return False
    return True


def history(state: RunState) -> list[tuple[Stage, dict[str, Any]]]:
    """Return the metrics of the start and of the iterations that have a benchmark."""
    return [(stage, values) for stage, values in read_benchmarks(state) if not stage.is_baseline]
