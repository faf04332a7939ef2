"""Make the shards of one iteration by self-play: the opponent answers, pairs are scored.

    sequential   all shards are generated, then all are scored, then the trainers get them
    split        a shard is scored as soon as it is generated, by a worker of its own, and goes
                 to the trainers, which train meanwhile (`OverlappedSelfPlay`)

The file of a shard is the same in both cases. A finished shard is not made again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from spin.cluster.shard_queue import open_queue
from spin.errors import CheckpointError
from spin.feedback.pairs import PairsJob
from spin.generation.engine import Sampling
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.run_dir.facts import KindTotals, PairsFacts, SamplesFacts, read_facts
from spin.run_dir.paths import Stage
from spin.run_dir.plan import Unit, kind_name

WORDS = {"samples": "generate", "pairs": "score"}
"""The word that is shown for the work of each kind of shard."""


@dataclass
class ShardTotals:
    """Totals of the shards of one kind that were made in this session."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.perf_counter)

    def add(self, facts: SamplesFacts | PairsFacts) -> None:
        """Add one finished shard."""
        self.rows += facts.rows
        if isinstance(facts, SamplesFacts):
            self.tokens += facts.tokens
            self.truncated += facts.truncated
        else:
            self.dropped.update(facts.dropped)


@dataclass
class SelfPlay:
    """Make the shards of one iteration; the pairs are scored under the weights of `reference`."""

    run: RunContext
    stage: Stage
    opponent: Policy
    reference: Policy

    def __post_init__(self) -> None:
        self.config = self.run.iteration_configs[self.stage.index]
        self.samples = self.run.state.units(self.stage, "samples")
        self.pairs = self.run.state.units(self.stage, "pairs")
        self._prompts = str(self.run.layout.prompts("train"))
        generation = self.config.generation
        self._sampling = Sampling(
            "train", self.stage.index, generation.temperature, generation.top_p, generation.samples_per_prompt
        )

    @property
    def shards(self) -> range:
        """Numbers of the shards."""
        return range(len(self.pairs))

    @property
    def paths(self) -> list[str]:
        """Files of the shards of pairs, finished or not."""
        return [str(unit.path) for unit in self.pairs]

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each shard of pairs if none of its own pairs is dropped."""
        sizes = []
        for unit in self.pairs:
            size = len(unit.prompts) * self._sampling.samples
            for earlier in self._replayed(unit):
                facts = self.run.state.facts(earlier, PairsFacts)
                size += facts.rows - facts.replayed
            sizes.append(size)
        return sizes

    def _replayed(self, unit: Unit) -> list[Unit]:
        """Return the shards of earlier iterations whose pairs are added to a shard of pairs."""
        return self.run.state.sources(unit, "pairs")

    def generate(self, actor: Any, shard: int) -> Any:
        """Let an engine answer the prompts of a shard."""
        unit = self.samples[shard]
        first, last = unit.prompts.start, unit.prompts.stop
        return actor.generate.remote(self.opponent, self._prompts, first, last, str(unit.path), self._sampling)

    def score(self, actor: Any, shard: int) -> Any:
        """Let a training worker label and score a shard, with the pairs that are replayed."""
        unit = self.pairs[shard]
        replayed = [(earlier.stage.index, str(earlier.path)) for earlier in self._replayed(unit)]
        policies = (self.opponent, self.reference)
        paths = (self._prompts, str(self.samples[shard].path))
        job = PairsJob(self.config, self.stage.index, *policies, *paths, replayed, str(unit.path))
        return actor.score_pairs.remote(job)

    def check_replayed(self, shards: Sequence[int]) -> None:
        """Raise CheckpointError when pairs to be replayed were lost or altered.

        They cannot be made again: their opponent, reference and own replayed pairs would be needed.
        """
        for shard in shards:
            for earlier in self._replayed(self.pairs[shard]):
                digest = self.run.state.facts(earlier, PairsFacts).sha256
                problem = self.run.check_file(earlier.path, digest)
                if problem:
                    raise CheckpointError(
                        f"{earlier.path}, which is replayed, {problem}; restore it, or start again with another run_dir"
                    )

    def announce(self, kind: str, shard: int, result: dict[str, Any]) -> SamplesFacts | PairsFacts:
        """Write the ledger line of a shard; pairs name the digest of their samples."""
        facts: SamplesFacts | PairsFacts
        if kind == "samples":
            unit = self.samples[shard]
            facts = read_facts(result, SamplesFacts)
        else:
            unit = self.pairs[shard]
            facts = replace(read_facts(result, PairsFacts), source=self.run.state.digest(unit.sources[0]))
        self.run.state.record(unit, facts)
        return facts

    def close(self, kind: str, totals: ShardTotals, background: bool = False) -> None:
        """Record and print the totals of a kind once all its shards are finished.

        Args:
            kind: ``samples`` or ``pairs``.
            totals: The shards that were made in this session.
            background: True when the trainers trained meanwhile: the seconds lie within theirs.
        """
        seconds = time.perf_counter() - totals.started
        self.run.state.record_totals(self.stage, kind, KindTotals(totals.tokens, round(seconds, 3), background))
        self.run.reporter.log(
            kind_name(self.stage, kind),
            kind=kind,
            rows=totals.rows,
            tokens=totals.tokens,
            cut=totals.truncated,
            dropped=dict(totals.dropped),
            seconds=round(seconds, 3),
        )

        # One line for the user.
        label = f"{self.stage.label} {WORDS[kind]}"
        text = f"{label:<26} {totals.rows:>7,} {kind} in {seconds:6.1f} s"
        if totals.tokens:
            text += f", {totals.tokens / seconds:,.0f} tokens/s, {totals.truncated} cut at the limit"
        if totals.dropped:
            counts = [f"{count} {reason}" for reason, count in sorted(totals.dropped.items())]
            text += f"; dropped: {', '.join(counts)}"
        self.run.reporter.print(text)

    def check_rows(self, extra_rows: int) -> None:
        """Check that there is something to learn from, once all shards are scored.

        Args:
            extra_rows: Number of labelled rows that are trained on besides.

        Raises:
            RuntimeError: No row is left. When most pairs are identical, only a warning is printed.
        """
        total, own = 0, 0
        dropped: Counter[str] = Counter()
        for unit in self.pairs:
            facts = self.run.state.facts(unit, PairsFacts)
            total += facts.rows
            own += facts.rows - facts.replayed
            dropped.update(facts.dropped)
        if dropped["identical"] > own:
            self.run.reporter.print(
                f"warning: {dropped['identical']} of {dropped.total() + own} pairs had identical halves and were "
                "dropped; the opponent has nearly memorised the prompts"
            )
        if total + extra_rows == 0:
            raise RuntimeError(
                f"{self.stage.name}: no pair is left to learn from (see the counts above): the run has converged, "
                "or the pairs.drop_* settings drop everything"
            )

    def run_in_turn(self) -> None:
        """Generate all shards, then score all shards."""
        todo = [unit.shard or 0 for unit in self.samples if not self.run.finished(unit)]
        if todo:
            self.run.verify_engines(self.opponent)
            self._make("samples", todo)
        todo = [unit.shard or 0 for unit in self.pairs if not self.run.finished(unit)]
        if todo:
            self.check_replayed(todo)
            self._make("pairs", todo)

    def _make(self, kind: str, todo: list[int]) -> None:
        """Make the missing shards of one kind, and announce each when it is finished."""
        if kind == "samples":
            results = self.run.worker_groups.run_on_generators(self.generate, todo)
        else:
            results = self.run.worker_groups.run_on_trainers(self.score, todo)
        totals = ShardTotals()
        with self.run.reporter.stage(f"{self.stage.label} {WORDS[kind]}", len(todo), "shards") as progress:
            for shard, result in results:
                totals.add(self.announce(kind, shard, result))
                progress.advance(1, f"{totals.rows:,} {kind}")
        self.close(kind, totals)


class OverlappedSelfPlay:
    """Generate and score while the trainers train."""

    def __init__(self, play: SelfPlay, extra_rows: int) -> None:
        """Start the first shards at once; `extra_rows` labelled rows are trained on besides."""
        self._play = play
        self._extra_rows = extra_rows
        worker_groups = play.run.worker_groups
        self._engines = worker_groups.make_generator_pool(play.generate)
        self._scorers = worker_groups.make_scorer_pool(play.score, play.reference)
        self.queue = open_queue(max(8, 4 * play.config.generation.replicas))

        # What is missing. Pairs whose samples are missing are made again.
        missing = [unit.shard or 0 for unit in play.samples if not play.run.finished(unit)]
        unscored = []
        for shard in play.shards:
            if shard in missing or not play.run.finished(play.pairs[shard]):
                unscored.append(shard)
        play.check_replayed(unscored)
        self._missing = set(missing)
        self._unscored = set(unscored)
        self._samples_totals = ShardTotals()
        self._pairs_totals = ShardTotals()

        # Begin to generate and to score.
        if missing:
            play.run.verify_engines(play.opponent)
        self._ahead = iter(missing)
        self._room: dict[Any, int] = {}
        """The next shard to generate, once the queue has room for it."""
        self._next()
        for shard in unscored:
            if shard not in self._missing:
                self._scorers.add(shard)

        # Finished shards go to the trainers at once.
        if not unscored:
            play.check_rows(extra_rows)
        ray.get([self.queue.put.remote(shard) for shard in play.shards if shard not in self._unscored])

    def pending(self) -> list[Any]:
        """Return the Ray references to wait for; none when the trainers have all shards."""
        return [*self._room, *self._engines.pending, *self._scorers.pending]

    def collect(self, ready: Any) -> None:
        """Take a finished result: announce its shard, and send the shard on."""
        if ready in self._room:
            ray.get(ready)
            self._engines.add(self._room.pop(ready))
            self._next()
        elif ready in self._engines.pending:
            generated = self._engines.collect(ready)
            if generated:
                self._on_generated(*generated)
        else:
            scored = self._scorers.collect(ready)
            if scored:
                self._on_scored(*scored)

    def _next(self) -> None:
        shard = next(self._ahead, None)
        if shard is not None:
            self._room[self.queue.room.remote(shard)] = shard

    def _on_generated(self, shard: int, result: dict[str, Any]) -> None:
        self._samples_totals.add(self._play.announce("samples", shard, result))
        self._missing.discard(shard)
        self._scorers.add(shard)
        if not self._missing:
            self._play.close("samples", self._samples_totals, background=True)

    def _on_scored(self, shard: int, result: dict[str, Any]) -> None:
        self._pairs_totals.add(self._play.announce("pairs", shard, result))
        self._unscored.discard(shard)
        if not self._unscored:
            self._play.close("pairs", self._pairs_totals, background=True)
            self._play.check_rows(self._extra_rows)
        self.queue.put.remote(shard)
