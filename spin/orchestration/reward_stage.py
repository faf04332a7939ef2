"""Train the reward model of a run from its starting policy, and measure it on held-out rankings.

start/policy ──► reward_model/model ──► reward_model/evaluation.json
prompts/rankings ┘                       └ prompts/rankings-heldout
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spin.config.reward_model import Center
from spin.data.records import Ranking
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.train_stage import train
from spin.report.reward_card import write_reward_card
from spin.report.reward_figures import describe_figures
from spin.run_dir.facts import FileFacts, PolicyFacts, read_facts
from spin.run_dir.files import read_json
from spin.run_dir.plan import Unit
from spin.run_dir.verification import digest_sources
from spin.training.job import TrainingJob
from spin.training.reward_scoring import EvaluationJob


def make_reward_model(run: RunContext, start: Policy) -> Policy | None:
    """Return the reward model of a run, trained and measured; None if the run trains none.

    Args:
        run: The run.
        start: The policy whose weights it begins with.
    """
    stage = run.layout.reward_model
    units = run.state.units(stage, "reward_model")
    if not units:
        return None
    # On a resume it may be finished, or half trained: `train` continues from its saved state.
    model = run.promoted(stage, start, "reward_model")
    if model is None:
        model = train(run, stage, describe_reward_training(run, start))
    evaluate(run, model)
    # No digest covers the card, so it can be written last.
    facts = run.state.facts(units[0], PolicyFacts)
    write_reward_card(stage, run.config, facts, read_json(stage.evaluation), run.store)
    return model


def describe_reward_training(run: RunContext, start: Policy) -> TrainingJob:
    """Return the training stage of the reward model."""
    stage = run.layout.reward_model
    settings = run.config.reward_model
    # The loss has no reference; the field takes the policy itself.
    job = TrainingJob(
        start,
        start,
        settings.objective,
        settings.training,
        run.config.seed,
        stage.index,
        out=str(stage.reward_model),
        states=str(stage.trainer),
        others=[(Ranking, str(run.layout.prompts("rankings")))],
    )
    if settings.center is Center.truths:
        job = replace(job, truths=str(run.layout.prompts("train")))
    return job


def evaluate(run: RunContext, model: Policy) -> None:
    """Measure the reward model on the held-out rankings, unless that is done."""
    stage = run.layout.reward_model
    unit = run.state.unit(stage, "evaluation")
    if run.finished(unit):
        return

    def call(actor: Any, evaluation: Unit) -> Any:
        rankings = str(run.layout.prompts("rankings-heldout"))
        settings = run.config.reward_model
        paths = (rankings, str(evaluation.path))
        job = EvaluationJob(model, settings.training, run.config.seed, *paths, settings.subset_counts)
        return actor.evaluate_reward_model.remote(job)

    # One worker scores them all: held-out rankings are few.
    for done, result in run.worker_groups.run_on_trainers(call, [unit]):
        facts = replace(read_facts(result, FileFacts), source=digest_sources(run.state, done))
        run.state.record(done, facts)
    figures = read_json(stage.evaluation)
    run.reporter.metrics_log.append(unit.name, kind="evaluation", **figures)
    label = f"{stage.label} measure"
    run.reporter.print(f"{label:<26} {describe_figures(figures)}")
