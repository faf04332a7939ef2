"""Make the shards of one iteration by self-play: samples, rewards or judgements, scored pairs.

    sequential   all shards of one kind, then all of the next kind; training begins after the last
    split        each shard passes all kinds, then goes to the trainers: `overlapped_self_play.py`

The files of a shard are the same in both cases. A finished file is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from spin.cluster.task_pool import run_tasks
from spin.config.groups import REWARD_MODEL
from spin.config.reward_model import Backend
from spin.data.records import Rating
from spin.data.rollouts import Rollout
from spin.errors import CheckpointError
from spin.feedback.dropped_rows import describe_dropped
from spin.feedback.judgement_files import JudgementsJob
from spin.feedback.reward_files import RewardsJob
from spin.feedback.row_builders import make_row_builder
from spin.feedback.rows import RowsJob
from spin.generation.requests import Sampling
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.engine_check import verify_engines
from spin.orchestration.memorisation_warning import describe_memorisation
from spin.orchestration.shard_totals import ShardFacts, ShardTotals, read_shard_facts
from spin.run_dir.facts import FileFacts, KindTotals, PairsFacts, SamplesFacts
from spin.run_dir.paths import Stage
from spin.run_dir.unit import Unit, kind_name
from spin.run_dir.verification import digest_sources

WORDS = {"samples": "generate", "rewards": "reward", "judgements": "judge", "pairs": "score"}
"""The kinds of shards in the order in which they are made, with the word for the user."""


@dataclass
class SelfPlay:
    """Make the shards of one iteration; the pairs are scored under the weights of `reference`."""

    run: RunContext
    stage: Stage
    opponent: Policy
    reference: Policy
    base: Policy | None = None
    """The policy that iteration 0 started from, if the rows are scored by it too."""
    critic: Policy | None = None
    """The critic that gives the values of PPO; None with other objectives."""
    reward_model: Policy | None = None
    """The reward model that scores the samples; None without one."""

    def __post_init__(self) -> None:
        self.config = self.run.iteration_configs[self.stage.index]
        self.units = {kind: self.run.state.units(self.stage, kind) for kind in WORDS}
        self.pairs = self.units["pairs"]
        self._prompts = str(self.run.layout.prompts("train"))
        generation = self.config.generation
        self._sampling = Sampling(
            "train", self.stage.index, generation.temperature, generation.top_p, generation.samples_per_prompt
        )
        builder = make_row_builder(self.config.feedback)
        self.row_type = builder.row_type
        self._rows_per_prompt = builder.count_rows(generation.samples_per_prompt)

    @property
    def paths(self) -> list[str]:
        """Paths of all shards of pairs, whether finished or not."""
        return [str(unit.path) for unit in self.pairs]

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each shard of pairs, as if none of this iteration's pairs was dropped.

        The trainer plans its steps with it before the shards are finished.
        """
        sizes = []
        for unit in self.pairs:
            size = len(unit.prompts) * self._rows_per_prompt
            # Pairs that an earlier iteration had itself replayed are not replayed again.
            for earlier in self._replayed(unit):
                facts = self.run.state.facts(earlier, PairsFacts)
                size += facts.rows - facts.replayed
            sizes.append(size)
        return sizes

    def _replayed(self, unit: Unit) -> list[Unit]:
        """Return the shards of earlier iterations whose pairs are added to a shard of pairs."""
        return self.run.state.sources(unit, "pairs")

    def find_unfinished(self, kind: str) -> list[Unit]:
        """Return the units of one kind that are not finished, or whose files are damaged."""
        return [unit for unit in self.units[kind] if not self.run.finished(unit)]

    def generate(self, actor: Any, unit: Unit) -> Any:
        """Start the call by which an engine answers the prompts of a shard."""
        first, last = unit.prompts.start, unit.prompts.stop
        return actor.generate.remote(self.opponent, self._prompts, first, last, str(unit.path), self._sampling)

    def judge(self, actor: Any, unit: Unit) -> Any:
        """Start the call by which an engine compares the samples of a shard."""
        [samples] = self.run.state.sources(unit, "samples")
        judge = self.run.judge
        assert judge is not None
        job = JudgementsJob(
            self.config,
            self.stage.index,
            judge.policy or self.opponent,
            judge.template,
            self._prompts,
            str(samples.path),
            str(unit.path),
        )
        return actor.judge.remote(job)

    def run_on_engine(self, actor: Any, unit: Unit) -> Any:
        """Start the call by which an engine makes a shard of samples or of judgements."""
        if unit.kind == "samples":
            return self.generate(actor, unit)
        return self.judge(actor, unit)

    def is_scored_by_engine(self, unit: Unit) -> bool:
        """Return whether the engine of the reward model makes a shard, and no training worker."""
        return unit.reward_source == REWARD_MODEL and self.config.reward_model.backend is Backend.vllm

    def score(self, actor: Any, unit: Unit) -> Any:
        """Start the call by which a worker makes one shard of rewards or of pairs."""
        samples, *start = self.run.state.sources(unit, "samples")
        paths = (self._prompts, str(samples.path))
        if unit.kind == "rewards":
            return actor.score_rewards.remote(self._describe_rewards(unit, paths))

        # Pairs: from the samples, their rewards, and the pairs of earlier iterations.
        rewards = [str(source.path) for source in self.run.state.sources(unit, "rewards")]
        replayed = [(earlier.stage.index, str(earlier.path)) for earlier in self._replayed(unit)]
        policies = (self.opponent, self.reference)
        job = RowsJob(self.config, self.stage.index, *policies, *paths, rewards, replayed, str(unit.path), self.base)
        if self.critic is not None:
            job = replace(job, critic=self.critic)
        for judgements in self.run.state.sources(unit, "judgements"):
            job = replace(job, judgements=str(judgements.path))
        for start_unit in start:
            job = replace(job, start_samples=str(start_unit.path))
        return actor.score_rows.remote(job)

    def _describe_rewards(self, unit: Unit, paths: tuple[str, str]) -> RewardsJob:
        """Return the job of a shard of rewards; `paths` are those of the prompts and samples."""
        # It names files only: the worker may be on another machine and fetches them.
        [reward] = [reward for reward in self.config.feedback.rewards if reward.name == unit.reward_source]
        with_truths = self.row_type is Rollout
        job = RewardsJob(self.config, self.stage.index, reward, *paths, str(unit.path), with_truths)
        if reward.name == REWARD_MODEL:
            job = replace(job, model=self.reward_model)
        return job

    def check_replayed(self, pairs: Sequence[Unit]) -> None:
        """Raise CheckpointError when rows of earlier iterations were lost or altered.

        They cannot be made again: their opponent, reference and own replayed pairs would be needed.
        """
        for unit in pairs:
            # The samples of iteration 0 that an objective needs come after the shard's own.
            _, *start = self.run.state.sources(unit, "samples")
            for earlier in [*self._replayed(unit), *start]:
                digest = self.run.state.facts(earlier, FileFacts).sha256
                problem = self.run.check_file(earlier.path, digest)
                if problem:
                    raise CheckpointError(
                        f"{earlier.path}, which is used again, {problem}; "
                        "restore it, or start again with another run_dir"
                    )

    def announce(self, unit: Unit, result: dict[str, Any]) -> ShardFacts:
        """Write the ledger line of a finished shard, and return the facts in it.

        Args:
            unit: The shard.
            result: What the worker returned: the digest of the file, its rows and other counts.
        """
        # Rewards and pairs record the digest of their sources, so that they are made again if a
        # source is. Samples need none: their opponent cannot be trained again once they exist.
        facts = read_shard_facts(unit.kind, result)
        if not isinstance(facts, SamplesFacts):
            facts = replace(facts, source=digest_sources(self.run.state, unit))
        self.run.state.record(unit, facts)
        return facts

    def close(self, kind: str, totals: ShardTotals, background: bool = False) -> None:
        """Record, log and print the totals of a kind after all its shards are finished.

        Args:
            kind: ``samples``, ``rewards``, ``judgements`` or ``pairs``.
            totals: Totals of the shards that were made in this session.
            background: True when the trainers were training at the same time.
        """
        seconds = time.perf_counter() - totals.started
        self.run.state.record_totals(self.stage, kind, KindTotals(totals.tokens, round(seconds, 3), background))
        values = totals.to_metrics(kind, seconds)
        self.run.reporter.metrics_log.append(kind_name(self.stage, kind), **values)
        label = f"{self.stage.label} {WORDS[kind]}"
        self.run.reporter.print_stage(label, totals.describe(self._name_rows(kind), seconds))

    def _name_rows(self, kind: str) -> str:
        """Return the word for the rows of a kind of shards."""
        if kind == "pairs" and self.row_type is Rating:
            return "ratings"
        if kind == "pairs" and self.row_type is Rollout:
            return "rollouts"
        return kind

    def check_rows(self, extra_rows: int) -> None:
        """Check that rows are left to train on, after all shards are scored.

        Prints a warning when the opponent has nearly memorised the targets.

        Args:
            extra_rows: Number of labelled rows that are trained on as well.

        Raises:
            RuntimeError: No row is left.
        """
        facts = [self.run.state.facts(unit, PairsFacts) for unit in self.pairs]
        warning = describe_memorisation(facts)
        if warning is not None:
            self.run.reporter.print(warning)
        if sum(shard.rows for shard in facts) + extra_rows > 0:
            return
        # Of a few prompts, all may happen to have equal rewards: the next ones will not.
        if self.row_type is Rollout:
            self.run.reporter.print(
                f"note: {self.stage.label}: the answers to each prompt have equal rewards: nothing to learn from, "
                "the policy stays as it is"
            )
        else:
            raise RuntimeError(
                f"{self.stage.name}: no row is left to learn from ({describe_dropped(facts)}): the run has converged, "
                "all samples of each prompt are right, all are wrong, or the pairs.drop_* settings drop everything"
            )

    def run_in_turn(self, until_judged: bool = False) -> None:
        """Make all shards of one kind, then all of the next kind.

        The training workers may be at other work until the samples are finished.

        Args:
            until_judged: Whether to stop before the reward model scores the samples.
        """
        for kind in WORDS:
            if kind != "samples":
                self.run.trainer_work.wait()
            todo = self.find_unfinished(kind)
            if until_judged:
                todo = [unit for unit in todo if kind != "pairs" and unit.reward_source != REWARD_MODEL]
            if not todo:
                continue
            # Check the inputs before the work: the weights in the engines, the replayed pairs.
            judged_by_engines = kind == "judgements" and self.run.worker_groups.judges is None
            if kind == "samples" or judged_by_engines:
                verify_engines(self.run, self.opponent)
            elif kind == "pairs":
                self.check_replayed(todo)
            self._make(kind, todo)

    def _run_on_reward_engine(self, todo: list[Unit]) -> Iterator[tuple[Unit, Any]]:
        """Score shards by the engine of the reward model, once the workers before are done."""
        yield from run_tasks(self.run.worker_groups.make_reward_pool(self.score), todo)

    def _make(self, kind: str, todo: list[Unit]) -> None:
        """Make the missing shards of one kind, and record each as soon as it is finished."""
        if kind == "samples":
            results = self.run.worker_groups.run_on_generators(self.generate, todo)
        elif kind == "judgements":
            results = self.run.worker_groups.run_on_judges(self.judge, todo)
        else:
            by_engine = [unit for unit in todo if self.is_scored_by_engine(unit)]
            others = [unit for unit in todo if unit not in by_engine]
            results = self.run.worker_groups.run_on_trainers(self.score, others)
            if by_engine:
                results = chain(results, self._run_on_reward_engine(by_engine))
        totals = ShardTotals()
        with self.run.reporter.stage(f"{self.stage.label} {WORDS[kind]}", len(todo), "shards") as progress:
            for unit, result in results:
                totals.add(unit, self.announce(unit, result))
                progress.advance(1, f"{totals.rows:,} {self._name_rows(kind)}")
        self.close(kind, totals)
