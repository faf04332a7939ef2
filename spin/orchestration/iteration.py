"""Run one iteration: generate, score, train, promote.

opponent ──► generators ──samples/──► trainers score ──pairs/──► trainers train ──policy/──► ledger
(frozen)     (vLLM)                   (the reference)            (main player)          └► benchmark

The file of each unit is finished first, then its line is added to the ledger. On a resume, a unit
with a line is checked against the digest in it, and is not made again if it is intact.
"""

from __future__ import annotations

from dataclasses import replace

from omegaconf import OmegaConf

from spin.config.cluster import Placement
from spin.config.objective import SftObjective
from spin.config.objective_base import PreferenceObjective, Reference
from spin.config.policy_gradient import CriticModel, PpoObjective, has_same_critic
from spin.config.run import fingerprint, to_plain
from spin.data.records import Prompt
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.labelled_stage import score_labelled
from spin.orchestration.overlapped_self_play import OverlappedSelfPlay
from spin.orchestration.reward_backends import compare_backends
from spin.orchestration.reward_stage import measure_again, refresh_reward_model
from spin.orchestration.self_play import SelfPlay
from spin.orchestration.train_stage import train
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.files import write_text
from spin.run_dir.stage_work import generates_samples, refreshes_reward_model
from spin.training.job import TrainingJob


def run_iteration(run: RunContext, index: int, opponent: Policy, base: Policy) -> Policy:
    """Run one iteration, unless its policy is promoted already.

    Args:
        run: The run.
        index: Number of the iteration.
        opponent: The policy of the iteration before.
        base: The policy that iteration 0 started from.

    Returns:
        The promoted policy.
    """
    stage = run.layout.iteration(index)
    config = run.iteration_configs[index]
    promoted = run.promoted(stage, opponent)
    if promoted is not None:
        run.trainer_work.wait()
        measure_again(run, index)
        return promoted

    # Record the config: from here on the settings of this iteration are fixed, and a resume with
    # others is refused.
    config_unit = run.state.unit(stage, "config")
    if not run.state.done(config_unit):
        write_text(stage.config, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
        run.store.publish(stage.config)
        run.ledger.append(config_unit.name, keys=fingerprint(config))

    # Describe the training stage. The reference is the opponent, as in SPIN; a preference objective
    # may take the policy that iteration 0 started from, or a mixture of both.
    objective = config.objective
    reference = opponent
    if isinstance(objective, PreferenceObjective) and objective.reference is Reference.base:
        reference = base
    mixed_base = None
    if objective.needs_base:
        mixed_base = base
    paths = (str(stage.policy), str(stage.adapter), str(stage.trainer))
    job = TrainingJob(opponent, reference, objective, config.training, config.seed, index, *paths)

    # Fine-tuning reads the prepared prompts; all other objectives read scored rows.
    if isinstance(objective, SftObjective):
        return train(run, stage, replace(job, others=[(Prompt, str(run.layout.prompts("train")))]))
    files, num_rows = score_labelled(run, stage, reference, mixed_base)
    job = replace(job, others=files)
    if not generates_samples(config):
        return train(run, stage, job)

    # Self-play: make all shards before training or, with the split placement, during it.
    critic = find_critic(run, index, opponent)
    play = SelfPlay(run, stage, opponent, reference, mixed_base, critic)
    if isinstance(objective, PpoObjective):
        job = replace(job, critic=critic, critic_out=str(stage.critic))
        if objective.ptx_weight > 0:
            name = "train"
            if config.data.ptx.has_own_rows:
                name = "ptx"
            job = replace(job, pretraining=str(run.layout.prompts(name)))
    if refreshes_reward_model(config):
        play.run_in_turn(until_judged=True)
    play.reward_model = refresh_reward_model(run, index, base)
    if play.reward_model is not None and config.feedback.uses_reward_model:
        compare_backends(run, play.reward_model)
    job = replace(job, shards=play.paths, shard_type=play.row_type, sizes=play.sizes)
    if config.cluster.placement is Placement.split:
        overlapped = OverlappedSelfPlay(play, num_rows)
        return train(run, stage, replace(job, queue=overlapped.queue), overlapped)
    play.run_in_turn()
    play.check_rows(num_rows)
    return train(run, stage, job)


def find_critic(run: RunContext, index: int, opponent: Policy) -> Policy | None:
    """Return the critic that an iteration starts from; None if its objective has none.

    It is the last one of its kind that an earlier iteration has trained, else the reward model of
    the run, else the opponent with a head of zeros, or its base if the opponent is an adapter. A
    head never starts from a reward model, whose head fits the hidden states of other weights.
    """
    objective = run.iteration_configs[index].objective
    if not isinstance(objective, PpoObjective):
        return None
    for earlier in range(index - 1, -1, -1):
        stage = run.layout.iteration(earlier)
        facts = run.state.facts(run.state.unit(stage, "policy"), PolicyFacts)
        if facts.critic and has_same_critic(objective, run.iteration_configs[earlier].objective):
            return Policy(str(stage.critic), facts.critic)
    if objective.critic is CriticModel.shared:
        return opponent
    whole = opponent
    if opponent.is_adapter:
        whole = opponent.base
    return run.reward_model or whole
