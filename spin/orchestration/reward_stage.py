"""Train the reward model of a run, and measure it on held-out rankings.

before iteration 0
    start/policy ──────► reward_model/model ──► reward_model/evaluation.json
    prompts/rankings ─┘                         └ prompts/rankings-heldout

in iteration N, with reward_model.refresh=every
    iterations/N/judgements ──► reward_model/N/rankings ──► reward_model/N/model
    (or rewards/SOURCE)                  start/policy, rankings before ─┘
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spin.config.reward_model import Center
from spin.data.records import Ranking
from spin.errors import CheckpointError, TrainingError
from spin.feedback.judged_rankings import RankingsJob
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.train_stage import train
from spin.report.reward_card import write_reward_card
from spin.report.reward_figures import describe_figures
from spin.run_dir.facts import FileFacts, PairsFacts, PolicyFacts, read_facts
from spin.run_dir.files import read_json
from spin.run_dir.paths import Stage
from spin.run_dir.stage_work import refreshes_reward_model
from spin.run_dir.unit import RANKING_KINDS, Unit
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
    if not run.state.units(stage, "reward_model"):
        return None
    return train_and_measure(run, stage, start)


def refresh_reward_model(run: RunContext, index: int, start: Policy) -> Policy | None:
    """Return the reward model that an iteration scores its samples with.

    Args:
        run: The run, with the judged samples of the iteration.
        index: Number of the iteration.
        start: The policy whose weights a new reward model begins with.

    Raises:
        TrainingError: No answers of a prompt could be told apart so far.
    """
    if not refreshes_reward_model(run.iteration_configs[index]):
        return run.reward_model
    stage = run.layout.refreshed_reward_model(index)
    rank_samples(run, stage)
    check_earlier_rankings(run, stage)

    # Nothing to learn from: neither the set of the run nor a judged sample.
    rankings = run.state.sources(run.state.unit(stage, "reward_model"), "rankings")
    num_rankings = sum(run.state.facts(unit, FileFacts).rows for unit in rankings)
    if not num_rankings and run.config.reward_model.data_path is None:
        raise TrainingError(
            f"{stage.label}: no answers of a prompt could be told apart (reward_model.refresh_by="
            f"{run.config.reward_model.refresh_by}), so there is nothing to train it on; raise "
            "generation.samples_per_prompt or temperature, or give reward_model.data_path"
        )
    return train_and_measure(run, stage, start)


def measure_again(run: RunContext, index: int) -> None:
    """Measure the reward model of a finished iteration again if its figures were lost."""
    stage = run.layout.refreshed_reward_model(index)
    for unit in run.state.units(stage, "reward_model"):
        facts = run.state.facts(unit, PolicyFacts)
        if not facts.dropped:
            evaluate(run, stage, run.make_policy(stage, facts))


def rank_samples(run: RunContext, stage: Stage) -> None:
    """Write the rankings of an iteration, to train on and held out, unless that is done."""
    todo = [run.state.unit(stage, kind) for kind in RANKING_KINDS]
    todo = [unit for unit in todo if not run.finished(unit)]

    def call(actor: Any, unit: Unit) -> Any:
        return actor.write_rankings.remote(describe_ranking(run, unit))

    # The files are small: one worker writes a whole one.
    for unit, result in run.worker_groups.run_on_trainers(call, todo):
        facts = replace(read_facts(result, PairsFacts), source=digest_sources(run.state, unit))
        run.state.record(unit, facts)
        label = f"{stage.label} {unit.kind}"
        text = f"{facts.rows:>7,} prompts"
        for reason, count in facts.dropped.items():
            text += f"; dropped: {count} {reason}"
        run.reporter.print_stage(label, text)


def describe_ranking(run: RunContext, unit: Unit) -> RankingsJob:
    """Return the job that writes the rankings of an iteration."""
    index = unit.stage.index
    judged = run.state.sources(unit, "judgements") or run.state.sources(unit, "rewards")
    samples = run.state.units(run.layout.iteration(index), "samples")
    return RankingsJob(
        run.iteration_configs[index],
        index,
        str(run.layout.prompts("train")),
        [str(source.path) for source in samples],
        [str(source.path) for source in judged],
        unit.kind == "rankings-heldout",
        str(unit.path),
    )


def check_earlier_rankings(run: RunContext, stage: Stage) -> None:
    """Raise CheckpointError when rankings of earlier iterations were lost or altered.

    The samples that they were made from may be gone, so they are not made again.
    """
    for unit in run.state.sources(run.state.unit(stage, "reward_model"), "rankings"):
        problem = run.check_file(unit.path, run.state.facts(unit, FileFacts).sha256)
        if problem:
            raise CheckpointError(
                f"{unit.path}, which is used again, {problem}; restore it, or start again with another run_dir"
            )


def train_and_measure(run: RunContext, stage: Stage, start: Policy) -> Policy:
    """Return the reward model of a stage, trained from the weights of `start` and measured."""
    # On a resume it may be finished, or half trained: `train` continues from its saved state.
    model = run.promoted(stage, start, "reward_model")
    if model is None:
        model = train(run, stage, describe_reward_training(run, stage, start))
    evaluate(run, stage, model)
    # No digest covers the card, so it can be written last.
    facts = run.state.facts(run.state.unit(stage, "reward_model"), PolicyFacts)
    write_reward_card(stage, run.config, facts, read_json(stage.evaluation), run.store)
    return model


def describe_reward_training(run: RunContext, stage: Stage, start: Policy) -> TrainingJob:
    """Return the training stage of a reward model."""
    settings = run.config.reward_model
    # The set of the run first, then the judged samples in the order of the iterations.
    paths = []
    if settings.data_path is not None:
        paths.append(run.layout.prompts("rankings"))
    for unit in run.state.sources(run.state.unit(stage, "reward_model"), "rankings"):
        paths.append(unit.path)
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
        others=[(Ranking, str(path)) for path in paths],
    )
    if settings.center is Center.truths:
        job = replace(job, truths=str(run.layout.prompts("train")))
    return job


def evaluate(run: RunContext, stage: Stage, model: Policy) -> None:
    """Measure a reward model on held-out rankings, unless that is done."""
    unit = run.state.unit(stage, "evaluation")
    if run.finished(unit):
        return
    settings = run.config.reward_model
    rankings = []
    if settings.data_path is not None:
        rankings.append(str(run.layout.prompts("rankings-heldout")))
    for source in run.state.sources(unit, "rankings-heldout"):
        rankings.append(str(source.path))

    def call(actor: Any, evaluation: Unit) -> Any:
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
    run.reporter.print_stage(label, describe_figures(figures))
