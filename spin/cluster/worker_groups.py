"""The actors of a run by role: started once, kept for all iterations, and restarted when one dies.

generator dies   Ray restarts it; its task goes to another engine. Each call names the policy, so
                 that a restarted engine cannot answer with an older one
trainer dies     all trainers start again (they share a process group); shards in flight are scored
                 again, and a training stage continues from its last saved state
scorer dies      it alone starts again; its task is repeated
out of memory    as a death, once, with half the token budget if that budget was found automatically
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError

from spin.cluster.engine_probe import ABSENT_SECONDS, ProbeAnswers, probe_engines
from spin.cluster.generator_actor import Generator
from spin.cluster.judge_actor import Judge, JudgeClient
from spin.cluster.placement import WAIT_NOTICE_SECONDS, PlacementGroups, Role
from spin.cluster.recovery import TokenBudget, TrainingRecovery, WorkersLost, to_workers_lost
from spin.cluster.reward_actor import RewardScorer
from spin.cluster.task_pool import MakeCall, TaskPool, run_tasks, surviving_results
from spin.cluster.training_actor import TrainingWorker
from spin.cluster.training_watch import BackgroundWork, follow_training
from spin.cluster.worker_group import WorkerGroup
from spin.config.cluster import Placement
from spin.config.reward_model import Backend
from spin.config.run import RunConfig
from spin.data.chat_renderer import Renderer
from spin.feedback.endpoint import read_key
from spin.generation.requests import count_calls
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.run_dir.store import RunStore
from spin.training.job import TrainingJob


class WorkerGroups:
    """All worker groups of a run, and who has the devices' memory."""

    def __init__(
        self,
        config: RunConfig,
        placement: PlacementGroups,
        renderer: Renderer,
        print_line: Callable[[str], None],
        record_halved: Callable[[int], None],
        store: RunStore,
    ) -> None:
        """Start all actors; returns at once, so that they import while the driver continues.

        Args:
            config: the run's config.
            placement: the reserved placement groups.
            renderer: of the run; its tokenizer stays in this process.
            print_line: receives warnings for the user.
            record_halved: receives a halved token budget, so that a resumed run keeps to it.
            store: the run directory, which all actors read and write.
        """
        # What the groups share.
        sent_renderer = renderer.with_tokenizer(None)
        self._config = config
        self._placement = placement
        self._print_line = print_line
        self._recovery = TrainingRecovery(config, print_line, record_halved)
        self._loading: list[Any] = []
        """Calls that load the first policy into the engines."""
        self._awake = Role.generator
        """The role that has the devices' memory, when placement is colocated."""

        # One group for each role. Ray restarts engines; the trainers share a process group, so they
        # start again together.
        self.generators = WorkerGroup(
            Role.generator,
            Generator,
            config.generation.replicas,
            placement,
            None,
            lambda number: (config, sent_renderer, store),
        )
        self.judges: WorkerGroup | None = None
        if config.judge.is_own_model:
            self.judges = WorkerGroup(
                Role.judge, Judge, config.judge.replicas, placement, None, lambda number: (config, store)
            )
        elif config.judge.is_endpoint:
            key = read_key(config.judge)
            self.judges = WorkerGroup(Role.judge, JudgeClient, 1, placement, None, lambda number: (config, key, store))
        self.reward_scorers: WorkerGroup | None = None
        if config.reward_model.backend is Backend.vllm:
            self.reward_scorers = WorkerGroup(
                Role.reward_scorer, RewardScorer, 1, placement, None, lambda number: (config, store)
            )
        world = config.training.workers
        self.trainers = WorkerGroup(
            Role.trainer,
            TrainingWorker,
            world,
            placement,
            self.restart_trainers,
            lambda rank: (config, rank, world, renderer.stop_ids, store),
        )
        self._trainers_up = self._join(self.trainers)
        self._scorer: WorkerGroup | None = None
        if config.cluster.placement is Placement.split:
            self._scorer = WorkerGroup(
                Role.scorer,
                TrainingWorker,
                1,
                placement,
                self._restart_scorer,
                lambda rank: (config, 0, 1, renderer.stop_ids, store),
            )
            self._join(self._scorer)

    def _join(self, group: WorkerGroup) -> list[Any]:
        """Let training workers form a process group; return calls that end once they are up."""
        return group.call("start", group.workers[0].address.remote())

    # ------------------------------------------------------------------ start and recovery

    def preload(self, policy: Policy) -> None:
        """Begin to load a policy into the engines."""
        self._loading = self.generators.call("load", policy)

    def prepare_trainers(self, policy: Policy, known: TokenBudget | None, own_critic: bool = False) -> TokenBudget:
        """Wait until the trainers are up and hold a policy that is whole.

        Returns the token budget of all trainers: `known`, or what rank 0 finds, which leaves room
        for a critic of its own with `own_critic`. Raises the error that keeps a trainer from
        loading the policy.
        """
        self._recovery.budget = known
        while True:
            try:
                self._wait_for_trainers()
                self._wake(Role.trainer)
                if self._recovery.budget is None:
                    tokens = ray.get(self.trainers.workers[0].find_budget.remote(policy, own_critic))
                    self._recovery.budget = TokenBudget(tokens, automatic=True)
                self._send_budget()
                ray.get(self.trainers.call("check", policy))
                return self._recovery.budget
            except RayActorError as error:
                self._replace_trainers(to_workers_lost(error))

    def restart_trainers(self, lost: WorkersLost) -> None:
        """Start all training workers again, and wait until they are up.

        Raises OutOfMemory or RuntimeError when they may not start again: see `TrainingRecovery`.
        """
        self._replace_trainers(lost)
        while True:
            try:
                self._wait_for_trainers()
                self._send_budget()
                return
            except RayActorError as error:
                self._replace_trainers(to_workers_lost(error))

    def _replace_trainers(self, lost: WorkersLost) -> None:
        self._recovery.handle_loss(lost)
        self.trainers.replace()
        self._trainers_up = self._join(self.trainers)

    def _restart_scorer(self, lost: WorkersLost) -> None:
        """Start the scorer again under the trainers' rules."""
        assert self._scorer is not None
        self._recovery.handle_loss(lost)
        self._scorer.replace()
        self._join(self._scorer)
        # The trainers keep their budget: they are busy and may wait for shards of the scorer.
        self._send_scorer_budget()

    def _wait_for_trainers(self) -> None:
        """Wait until all trainers are up; print a line if it takes long."""
        timeout = WAIT_NOTICE_SECONDS if self._recovery.deaths else ABSENT_SECONDS
        total = len(self._trainers_up)
        _, waiting = ray.wait(self._trainers_up, num_returns=total, timeout=timeout)
        if waiting:
            self._print_line(
                f"warning: {len(waiting)} of {total} training workers are not up: "
                "waiting for room for them on the cluster"
            )
        ray.get(self._trainers_up)

    def _send_budget(self) -> None:
        assert self._recovery.budget is not None
        ray.get(self.trainers.call("set_budget", self._recovery.budget.tokens))
        self._send_scorer_budget()

    def _send_scorer_budget(self) -> None:
        if self._scorer is not None and self._recovery.budget is not None:
            self._scorer.call("set_budget", self._recovery.budget.tokens)

    def _wake(self, role: Role) -> None:
        """Give the memory of shared devices to the engines, to the judge or to the trainers."""
        if self._config.cluster.placement is not Placement.colocated or self._awake is role:
            return
        # The engines may still be loading their first policy.
        ray.get(self._loading)
        groups = {Role.generator: self.generators, Role.judge: self.judges, Role.reward_scorer: self.reward_scorers}
        awake = groups.get(self._awake, self.trainers)
        assert awake is not None
        surviving_results([worker.release.remote() for worker in awake.active])
        self._awake = role

    # ------------------------------------------------------------------ work

    def run_on_generators(self, call: MakeCall, tasks: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Run each task on an idle engine; yield task and result as they finish."""
        yield from run_tasks(self.make_generator_pool(call), tasks)

    def run_on_judges(self, call: MakeCall, tasks: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Run each task on an idle engine that judges; yield task and result as they finish."""
        yield from run_tasks(self.make_judge_pool(call), tasks)

    def run_on_trainers(self, call: MakeCall, tasks: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Run each task on one training worker; the tasks use no collective operation."""
        self._wake(Role.trainer)
        for result in run_tasks(self.trainers.make_task_pool(call), tasks):
            self._recovery.record_progress()
            yield result

    def make_reward_pool(self, call: MakeCall) -> TaskPool:
        """Return a pool of the engine that holds the reward model."""
        assert self.reward_scorers is not None
        self._wake(Role.reward_scorer)
        return self.reward_scorers.make_task_pool(call)

    def make_generator_pool(self, call: MakeCall) -> TaskPool:
        """Return a pool of the engines, once they are up."""
        ray.get(self._loading)
        self._wake(Role.generator)
        shard = self._config.generation
        places = count_calls(shard.shard_size * shard.samples_per_prompt, self.engines_use_gpus)
        return self.generators.make_task_pool(call, places)

    def make_judge_pool(self, call: MakeCall) -> TaskPool:
        """Return a pool of the engines that judge: the judge's own, or else the opponent's."""
        if self.judges is None:
            return self.make_generator_pool(call)
        if self._config.judge.is_own_model:
            self._wake(Role.judge)
        return self.judges.make_task_pool(call)

    def make_scorer_pool(self, call: MakeCall, policy: Policy) -> TaskPool:
        """Return a pool of the worker that scores beside training; it begins to load `policy`."""
        assert self._scorer is not None
        self._scorer.call("check", policy)
        return self._scorer.make_task_pool(call)

    def score_completions(self, policy: Policy, groups: list[Group]) -> list[list[float]]:
        """Return the log-probability (nats) of each completion under a policy, group by group."""
        [(_, logps)] = self.run_on_trainers(lambda actor, _: actor.logps.remote(policy, groups), [None])
        return logps

    @property
    def engines_use_gpus(self) -> bool:
        """Return True if the engines of the policy run on GPUs."""
        return self._placement.uses_gpus(Role.generator)

    def probe_engines(self, policy: Policy, prompts: list[list[int]]) -> dict[int, ProbeAnswers]:
        """Return a short answer of each engine that is there to each prompt: see `engine_probe`."""
        ray.get(self._loading)
        self._wake(Role.generator)
        engines = self.generators.workers
        answers = probe_engines(
            engines, policy, prompts, lambda: self._placement.lacks_room(Role.generator), self._print_line
        )
        self.generators.active = [engines[number] for number in sorted(answers)]
        return answers

    def run_training(
        self, job: TrainingJob, background: BackgroundWork | None, save_wanted: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """Run one training stage on all trainers: see `follow_training`. Raises WorkersLost."""
        self._wake(Role.trainer)
        for event in follow_training(self.trainers.workers, job, background, save_wanted):
            yield event
            self._recovery.record_progress()

    def measure_memory(self) -> dict[str, float]:
        """Return the peak memory so far, in GiB, of the largest engine and of the largest trainer.

        The keys are ``peak_memory_gib_engine``, ``peak_device_memory_gib_trainer`` and so on.
        """
        # An actor that died is left out.
        peaks: dict[str, float] = {}
        for name, group in (("engine", self.generators), ("trainer", self.trainers)):
            for measured in surviving_results([worker.memory.remote() for worker in group.active]):
                for kind, gib in measured.items():
                    key = f"peak_{kind}_gib_{name}"
                    peaks[key] = max(gib, peaks.get(key, 0.0))
        return peaks
