"""The objects that all stages of a run share, with the checks of finished units."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spin.cluster.worker_groups import WorkerGroups
from spin.config.policy_gradient import has_own_critic
from spin.config.run import RunConfig
from spin.errors import CheckpointError
from spin.feedback.judge_setup import JudgeSetup
from spin.models.policy import Policy, check_adapter, check_policy
from spin.models.stage_policy import find_adapter_folder, make_stage_policy
from spin.orchestration.trainer_work import TrainerWork
from spin.report.console import Reporter
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.run_state import RunState
from spin.run_dir.store import RunStore
from spin.run_dir.unit import Unit
from spin.run_dir.verification import verify_file, verify_unit


@dataclass
class RunContext:
    """The objects that all stages of a run share."""

    config: RunConfig
    iteration_configs: list[RunConfig]
    """The config of each iteration, its schedule applied."""
    layout: RunLayout
    state: RunState
    reporter: Reporter
    worker_groups: WorkerGroups
    store: RunStore
    judge: JudgeSetup | None = None
    """Who judges answers; None without a judge."""
    reward_model: Policy | None = None
    """The given reward model, or the one that the run has trained; None without one."""
    adapter_base: Policy | None = None
    """The model with the frozen weights of all policies; None if each policy is a whole model."""
    has_compared_backends: bool = False
    """True once this launch has compared the rewards of vLLM with those of the trainer."""
    note: str | None = None
    """The trainers' note on the layout of their batches, after it was printed once."""
    verified_policy: str | None = None
    """Digest of the policy that was found in all engines at the last check."""
    trainer_work: TrainerWork = field(default_factory=TrainerWork)
    """Work of the training workers beside generation."""

    @property
    def ledger(self) -> Ledger:
        return self.state.ledger

    @property
    def trains_own_critic(self) -> bool:
        """True when any iteration trains a critic that is a model of its own."""
        return any(has_own_critic(config.objective) for config in self.iteration_configs)

    def finished(self, unit: Unit) -> bool:
        """Return True when a unit is finished and its file is intact.

        If the file was lost or altered, or was made from other sources, a warning names it and the
        unit counts as unfinished: it can be made again from its sources.
        """
        if not self.state.done(unit):
            return False
        # Another machine may have written it.
        self.store.fetch(unit.path)
        problem = verify_unit(self.state, unit)
        if problem is not None:
            self.reporter.print(f"warning: {unit.path} {problem}; it is made again")
        return problem is None

    def check_file(self, path: Path, sha256: str) -> str | None:
        """Return what is wrong with a finished file; None if it is intact."""
        self.store.fetch(path)
        return verify_file(path, sha256)

    def make_policy(self, stage: Stage, facts: PolicyFacts) -> Policy:
        """Return the policy of a stage, as the next stage starts from it."""
        if self.adapter_base is None:
            return Policy(str(stage.promoted), facts.digest)
        return make_stage_policy(stage, facts, self.adapter_base)

    def fetch_policy(self, stage: Stage, facts: PolicyFacts) -> None:
        """Fetch what another machine may have written of a policy."""
        self.store.fetch(stage.promoted)
        if facts.adapter:
            self.store.fetch(find_adapter_folder(stage, facts))

    def promoted(self, stage: Stage, opponent: Policy, kind: str = "policy") -> Policy | None:
        """Return the promoted policy of a stage; None when it must be trained.

        Args:
            stage: The stage.
            opponent: The policy that its training must have started from.
            kind: ``policy`` or ``reward_model``.

        Raises:
            CheckpointError: The training started from another policy.
        """
        unit = self.state.unit(stage, kind)
        if not self.state.done(unit):
            return None
        facts = self.state.facts(unit, PolicyFacts)
        policy = self.make_policy(stage, facts)

        # If later stages were made from the policy, it was checked at launch (`check_promoted`),
        # because it cannot be trained again. Otherwise it can.
        if not self.state.used_later(unit):
            self.fetch_policy(stage, facts)
            try:
                check_policy(policy)
                check_adapter(policy)
            except CheckpointError as error:
                # Without the advice after the semicolon: it is for those who cannot train again.
                problem = str(error).split(";")[0]
                self.reporter.print(f"warning: {problem}; it is trained again")
                return None

        # Digests, not paths: the opponent may have been trained again in the meantime.
        if facts.opponent != opponent.digest:
            raise CheckpointError(
                f"{unit.path} was trained against another opponent than the one promoted before it; "
                "start again with another run_dir"
            )
        return policy
