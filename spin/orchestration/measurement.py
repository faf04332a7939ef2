"""Measure a policy: its benchmark, the record of the best policy, and its model card.

Where the next iteration begins with generation, the training workers score the held-out answers
meanwhile: see `scores_beside`.
"""

from __future__ import annotations

from pathlib import Path

from spin.benchmark.best_policy import record_best
from spin.config.cluster import Placement
from spin.interrupts import raise_if_interrupted
from spin.models.policy import Policy
from spin.orchestration.benchmark_stage import generate_answers, is_measured, score_answers
from spin.orchestration.context import RunContext
from spin.orchestration.dropped_policies import drop_policies
from spin.orchestration.finished_run import history
from spin.orchestration.lm_eval_stage import lm_eval
from spin.report.benchmark_files import read_benchmark
from spin.report.model_card import write_card
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.paths import Stage
from spin.run_dir.stage_work import generates_samples
from spin.run_dir.unit import LABELLED_KINDS


def measure(run: RunContext, stage: Stage, policy: Policy, base: Policy) -> None:
    """Benchmark a policy, update the record of the best one, and write the model card.

    Args:
        run: The run.
        stage: The stage of the policy.
        policy: The policy.
        base: The policy that iteration 0 started from.
    """
    raise_if_interrupted()
    # The benchmark of the policy before comes first: this one is compared with it.
    run.trainer_work.wait()
    if run.state.units(stage, "benchmark") and not is_measured(run, stage):
        answers = generate_answers(run, stage, policy, base)

        def finish() -> None:
            score_answers(run, answers)
            finish_stage(run, stage, policy, base)

        if scores_beside(run, stage):
            run.trainer_work.start(finish)
        else:
            finish()
        return
    finish_stage(run, stage, policy, base)


def scores_beside(run: RunContext, stage: Stage) -> bool:
    """Return True if the answers of a policy are scored while the next iteration generates.

    The next iteration must begin with generation, on devices of its own, and must not depend on
    the metrics. With `split` the training workers begin at once; when `colocated`, the engines have
    the devices.
    """
    config = run.config
    following = stage.index + 1
    if stage.is_baseline or following >= config.iterations:
        return False
    if config.cluster.placement is not Placement.sequential or config.stop.patience is not None:
        return False
    if run.state.units(stage, "lm_eval"):
        return False
    next_config = run.iteration_configs[following]
    next_stage = run.layout.iteration(following)
    # These use the training workers first.
    has_labelled_rows = any(run.state.units(next_stage, kind) for kind in LABELLED_KINDS)
    if has_labelled_rows or next_config.feedback.uses_reward_model:
        return False
    return generates_samples(next_config)


def finish_stage(run: RunContext, stage: Stage, policy: Policy, base: Policy) -> None:
    """Do what comes after the benchmark of a stage, whether it has one or not."""
    # The baseline is a comparison: it cannot become the best policy of the run.
    if run.state.units(stage, "benchmark"):
        lm_eval(run, stage, policy)
        if not stage.is_baseline:
            record_best(run.config, run.layout, run.ledger, history(run.state), Path(base.path))
    write_policy_card(run, stage)
    # The card of the iteration shows the figures of the baseline too.
    if stage.is_baseline:
        write_policy_card(run, run.layout.iteration(stage.index))
    drop_policies(run, stage)


def write_policy_card(run: RunContext, stage: Stage) -> None:
    """Write the model card of a stage's policy, with the config of the iteration.

    A start without a warm-up is the model of the user: it is no unit of the run, and its folder is
    left alone.
    """
    config = run.config
    baseline = None
    if stage.index >= 0:
        config = run.iteration_configs[stage.index]
    if stage.index >= 0 and not stage.is_baseline:
        baseline = read_benchmark(run.state, run.layout.baseline(stage.index))
    for unit in run.state.units(stage, "policy"):
        facts = run.state.facts(unit, PolicyFacts)
        if not facts.dropped:
            figures = read_benchmark(run.state, stage)
            write_card(stage, config, facts.digest, facts.opponent, figures, run.store, baseline)
