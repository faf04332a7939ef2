"""Read the files of finished benchmarks. A file that was lost or altered is named, never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin.run_dir.facts import BenchmarkFacts, FileFacts, LmEvalFacts
from spin.run_dir.files import read_json
from spin.run_dir.paths import Stage
from spin.run_dir.run_state import RunState
from spin.run_dir.unit import kind_name
from spin.run_dir.verification import verify_file


def read_benchmarks(state: RunState) -> list[tuple[Stage, dict[str, Any]]]:
    """Return the metrics of all finished benchmarks: the start, the iterations, then the baseline.

    A benchmark whose file was lost or altered is left out until it is made again; the commands that
    show the others name it with `describe_damage`.
    """
    found = []
    for stage in state.stages("benchmark"):
        metrics = read_benchmark(state, stage)
        if metrics is not None:
            found.append((stage, metrics))
    return found


def read_benchmark(state: RunState, stage: Stage) -> dict[str, Any] | None:
    """Return the metrics of a policy; None if its benchmark is not finished, lost or altered."""
    for unit in state.units(stage, "benchmark"):
        if state.done(unit) and verify_file(unit.path, state.facts(unit, BenchmarkFacts).sha256) is None:
            return read_json(unit.path)
    return None


def read_lm_eval(state: RunState, stage: Stage) -> dict[str, Any]:
    """Return the results of the harness for a policy, by task; empty if there are none.

    A file that was lost or altered is left out until it is made again.
    """
    # By its ledger line: a resume without tasks still has the results of before.
    record = state.ledger.get(kind_name(stage, "lm_eval"))
    if record is None or verify_file(stage.lm_eval, record["sha256"]) is not None:
        return {}
    return read_json(stage.lm_eval)


def read_reward_figures(state: RunState) -> dict[str, dict[str, Any]]:
    """Return the figures of the reward models that a run trained, by the label of their stage.

    A file that was lost or altered is left out until it is made again.
    """
    found = {}
    for stage in state.stages("evaluation"):
        digest = state.facts(state.unit(stage, "evaluation"), FileFacts).sha256
        if verify_file(stage.evaluation, digest) is None:
            found[stage.label] = read_json(stage.evaluation)
    return found


def find_damage(state: RunState) -> dict[Path, str]:
    """Return what is wrong with each file of a finished benchmark that was lost or altered."""
    # The files with their recorded digests: metrics, scored answers, figures of the reward model,
    # results of the harness.
    digests: dict[Path, str] = {}
    for stage in state.stages("benchmark"):
        facts = state.facts(state.unit(stage, "benchmark"), BenchmarkFacts)
        digests[stage.benchmark] = facts.sha256
        digests[stage.answers("judged")] = facts.judged
    for stage in state.stages("evaluation"):
        digests[stage.evaluation] = state.facts(state.unit(stage, "evaluation"), FileFacts).sha256
    for stage in state.stages("lm_eval"):
        digests[stage.lm_eval] = state.facts(state.unit(stage, "lm_eval"), LmEvalFacts).sha256

    found = {}
    for path, digest in digests.items():
        problem = verify_file(path, digest)
        if problem is not None:
            found[path] = problem
    return found


def describe_damage(state: RunState) -> list[str]:
    """Return one line for each file of a finished benchmark that was lost or altered."""
    # The folder of a bench has no line of a run in its ledger.
    command = "spin run"
    if "run" not in state.ledger:
        command = "spin bench"
    lines = []
    for path, problem in find_damage(state).items():
        lines.append(f"warning: {path} {problem}; it is left out, and the same {command} command makes it again")
    return lines
