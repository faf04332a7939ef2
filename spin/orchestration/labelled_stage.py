"""Score the labelled sets of an iteration under its reference, before training."""

from __future__ import annotations

from typing import Any

from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.preflight.prepare_data import LABELLED_SETS
from spin.run_dir.facts import FileFacts, read_facts
from spin.run_dir.paths import Stage
from spin.run_dir.unit import LABELLED_KINDS, Unit
from spin.training.reference import LabelledJob

RowFiles = list[tuple[type, str]]
"""Record type and path of each file of rows that is complete before training begins."""


def score_labelled(run: RunContext, stage: Stage, reference: Policy, base: Policy | None) -> tuple[RowFiles, int]:
    """Score the labelled sets of an iteration under its reference and, if given, the base.

    Returns:
        The files with the scored rows, and the number of rows in all of them.
    """
    # Find what is left to score.
    config = run.iteration_configs[stage.index]
    units = []
    for kind in LABELLED_KINDS:
        units += run.state.units(stage, kind)
    todo = [unit for unit in units if not run.finished(unit)]

    def call(actor: Any, unit: Unit) -> Any:
        row_type = LABELLED_SETS[unit.kind]
        job = LabelledJob(config, reference, row_type, str(run.layout.prompts(unit.kind)), str(unit.path), base)
        return actor.score_labelled.remote(job)

    # Score, and record each set as soon as it is finished.
    for unit, result in run.worker_groups.run_on_trainers(call, todo):
        facts = read_facts(result, FileFacts)
        run.state.record(unit, facts)
        label = f"{stage.label} score"
        run.reporter.print_stage(label, f"{facts.rows:>7,} {unit.kind} in {facts.seconds:6.1f} s")

    # List all sets, also those that an earlier session scored.
    files: RowFiles = []
    num_rows = 0
    for unit in units:
        files.append((LABELLED_SETS[unit.kind], str(unit.path)))
        num_rows += run.state.facts(unit, FileFacts).rows
    return files, num_rows
