"""Self-play of one iteration: the opponent answers every training prompt, shard by shard, and each shard is labelled and scored.

    sequential   all shards are generated, then all scored, then the trainers get them
    split        a shard is scored as soon as it is generated, by a worker of its own, and goes to the trainers, who train meanwhile (`Overlap`)

A shard's file is the same in both. What is finished has its ledger line and is not done again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from spin.cluster.shard_queue import open_queue
from spin.errors import CheckpointError
from spin.feedback.pairs import PairsJob
from spin.generation.engine import Sampling
from spin.models.policy import Policy
from spin.orchestration.context import RunContext, verify_file
from spin.run_dir.paths import Stage


@dataclass
class ShardTotals:
    """What the shards of one kind add up to in this session."""

    rows: int = 0
    tokens: int = 0
    cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.perf_counter)

    def add(self, facts: dict[str, Any]) -> None:
        self.rows, self.tokens, self.cut = (
            self.rows + facts["rows"],
            self.tokens + facts.get("tokens", 0),
            self.cut + facts.get("cut", 0),
        )
        self.dropped.update(facts.get("dropped", {}))


@dataclass
class SelfPlay:
    """The shards of one iteration; `reference`: under whose weights the pairs are scored."""

    run: RunContext
    index: int
    stage: Stage
    opponent: Policy
    reference: Policy

    def __post_init__(self) -> None:
        self.config = self.run.iteration_configs[self.index]
        generation, total = self.config.generation, self.run.ledger.get("data")["train"]  # type: ignore[index]
        self._bounds = [
            (first, min(total, first + generation.shard_size)) for first in range(0, total, generation.shard_size)
        ]
        self._prompts = str(self.run.layout.prompts("train"))
        self._sampling = Sampling(
            "train", self.index, generation.temperature, generation.top_p, generation.samples_per_prompt
        )
        layout, ledger = self.run.layout, self.run.ledger
        self._earlier = [
            i
            for i in range(max(0, self.index - self.config.replay), self.index)
            if f"{layout.iteration(i).name}/samples/0" in ledger
        ]

    @property
    def shards(self) -> range:
        """Their numbers."""
        return range(len(self._bounds))

    @property
    def paths(self) -> list[str]:
        """Where the shards of pairs are or will be."""
        return [str(self.stage.pairs(shard)) for shard in self.shards]

    def facts(self, kind: str, shard: int, index: int | None = None) -> dict[str, Any]:
        """The ledger's line on a finished shard, of this iteration or of another."""
        stage = self.stage if index is None else self.run.layout.iteration(index)
        return self.run.ledger.get(f"{stage.name}/{kind}/{shard}") or {}

    @property
    def sizes(self) -> list[int]:
        """Rows of each shard of pairs, if none of its own were dropped."""
        samples, replayed = (
            self._sampling.samples,
            [[self.facts("pairs", shard, i) for i in self._earlier] for shard in self.shards],
        )
        return [
            (last - first) * samples + sum(facts["rows"] - facts["replayed"] for facts in earlier)
            for (first, last), earlier in zip(self._bounds, replayed, strict=True)
        ]

    def samples_done(self, shard: int) -> bool:
        """Whether the shard of samples is finished and whole."""
        return self.run.finished(f"{self.stage.name}/samples/{shard}", self.stage.samples(shard)) is not None

    def pairs_done(self, shard: int) -> bool:
        """Whether the shard of pairs is finished, whole and made from the samples that are there."""
        return (
            self.run.finished(
                f"{self.stage.name}/pairs/{shard}", self.stage.pairs(shard), self.facts("samples", shard)["sha256"]
            )
            is not None
        )

    def generate(self, actor: Any, shard: int) -> Any:
        """Let an engine answer the prompts of a shard."""
        first, last = self._bounds[shard]
        return actor.generate.remote(
            self.opponent, self._prompts, first, last, str(self.stage.samples(shard)), self._sampling
        )

    def score(self, actor: Any, shard: int) -> Any:
        """Let a training worker label and score a shard, with the pairs of earlier iterations that are replayed."""
        replayed = [(i, str(self.run.layout.iteration(i).pairs(shard))) for i in self._earlier]
        samples, out = str(self.stage.samples(shard)), str(self.stage.pairs(shard))
        return actor.score_pairs.remote(
            PairsJob(self.config, self.index, self.opponent, self.reference, self._prompts, samples, replayed, out)
        )

    def check_replayed(self, shards: Sequence[int]) -> None:
        """Raise CheckpointError when pairs to be replayed were lost or altered: to make them again would take their opponent, reference and own replay."""
        for i in self._earlier:
            for shard in shards:
                path = self.run.layout.iteration(i).pairs(shard)
                problem = verify_file(path, self.facts("pairs", shard, i)["sha256"], self.run.store)
                if problem:
                    raise CheckpointError(
                        f"{path}, which is replayed, {problem}; restore it, or start again with another run_dir"
                    )

    def announce(self, kind: str, shard: int, facts: dict[str, Any]) -> None:
        """The ledger line of a shard; pairs with the digest of the samples that they came from."""
        source = {"source": self.facts("samples", shard)["sha256"]} if kind == "pairs" else {}
        self.run.ledger.append(
            f"{self.stage.name}/{kind}/{shard}",
            **{key: value for key, value in facts.items() if key != "out"},
            **source,
        )

    def close(self, kind: str, label: str, totals: ShardTotals, beside: bool = False) -> None:
        """The line of a kind once all its shards are finished; `beside`: while the trainers trained, so that its seconds lie within theirs."""
        seconds, unit = time.perf_counter() - totals.started, f"{self.stage.name}/{kind}"
        self.run.ledger.append(unit, tokens=totals.tokens, seconds=round(seconds, 3), beside=beside)
        self.run.reporter.log(
            unit,
            kind=kind,
            rows=totals.rows,
            tokens=totals.tokens,
            cut=totals.cut,
            dropped=dict(totals.dropped),
            seconds=round(seconds, 3),
        )
        detail = f", {totals.tokens / seconds:,.0f} tokens/s, {totals.cut} cut at the limit" if totals.tokens else ""
        detail += (
            "; dropped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(totals.dropped.items()))
            if totals.dropped
            else ""
        )
        self.run.reporter.print(
            f"{f'iteration {self.index} {label}':<26} {totals.rows:>7,} {kind} in {seconds:6.1f} s{detail}"
        )

    def check_rows(self, others: int) -> None:
        """Once all shards are scored: raise RuntimeError when neither they nor the `others` rows leave anything to learn from, and warn of memorised prompts."""
        found = [self.facts("pairs", shard) for shard in self.shards]
        own, dropped = (
            sum(facts["rows"] - facts["replayed"] for facts in found),
            sum((Counter(facts["dropped"]) for facts in found), Counter[str]()),
        )
        if dropped["identical"] > own:
            self.run.reporter.print(
                f"warning: {dropped['identical']} of {dropped.total() + own} pairs had identical halves and were dropped; the opponent has nearly memorised the prompts"
            )
        if sum(facts["rows"] for facts in found) + others == 0:
            raise RuntimeError(
                f"{self.stage.name}: no pair is left to learn from (see the counts above): the run has converged, or the pairs.drop_* settings drop everything"
            )

    def in_turn(self) -> None:
        """Generate all shards, then score all."""
        worker_groups, reporter = self.run.worker_groups, self.run.reporter
        for kind, label, done, drive, call in (
            ("samples", "generate", self.samples_done, worker_groups.on_generators, self.generate),
            ("pairs", "score", self.pairs_done, worker_groups.on_trainers, self.score),
        ):
            todo = [shard for shard in self.shards if not done(shard)]
            if not todo:
                continue
            if kind == "samples":
                self.run.verify_engines(self.opponent)
            else:
                self.check_replayed(todo)
            totals = ShardTotals()
            with reporter.stage(f"iteration {self.index} {label}", len(todo), "shards") as progress:
                for shard, facts in drive(call, todo):
                    self.announce(kind, shard, facts)
                    totals.add(facts)
                    progress.advance(1, f"{totals.rows:,} {kind}")
            self.close(kind, label, totals)


class OverlappedSelfPlay:
    """Generation and scoring beside training: `pending` and `collect` are called by who waits for the trainers."""

    def __init__(self, play: SelfPlay, others: int) -> None:
        """Starts the first shards at once; `others`: rows that are trained on besides."""
        self._play, self._others, self._run = play, others, play.run
        self._engines = play.run.worker_groups.generator_pool(play.generate)
        self._scorers = play.run.worker_groups.scorer_pool(play.score, play.reference)
        self.queue = open_queue(max(8, 4 * play.config.generation.replicas))
        missing = [shard for shard in play.shards if not play.samples_done(shard)]
        unscored = [shard for shard in play.shards if shard in missing or not play.pairs_done(shard)]
        play.check_replayed(unscored)
        self._missing, self._unscored = set(missing), set(unscored)
        self._samples, self._pairs = ShardTotals(), ShardTotals()
        if missing:
            self._run.verify_engines(play.opponent)
        self._ahead = iter(missing)
        self._room: dict[Any, int] = {}
        """The next shard to begin, once the queue has room for it."""
        self._next()
        for shard in unscored:
            if shard not in self._missing:
                self._scorers.add(shard)
        if not unscored:
            play.check_rows(others)
        ray.get([self.queue.put.remote(shard) for shard in play.shards if shard not in self._unscored])

    def pending(self) -> list[Any]:
        """What to wait for; nothing, when all shards are with the trainers."""
        return [*self._room, *self._engines.pending, *self._scorers.pending]

    def collect(self, ready: Any) -> None:
        """Take what is ready: announce the shard, and send it on."""
        if ready in self._room:
            ray.get(ready)
            self._engines.add(self._room.pop(ready))
            self._next()
        elif ready in self._engines.pending:
            if done := self._engines.collect(ready):
                self._generated(*done)
        elif done := self._scorers.collect(ready):
            self._scored(*done)

    def _next(self) -> None:
        shard = next(self._ahead, None)
        if shard is not None:
            self._room[self.queue.room.remote(shard)] = shard

    def _generated(self, shard: int, facts: dict[str, Any]) -> None:
        self._play.announce("samples", shard, facts)
        self._samples.add(facts)
        self._missing.discard(shard)
        self._scorers.add(shard)
        if not self._missing:
            self._play.close("samples", "generate", self._samples, beside=True)

    def _scored(self, shard: int, facts: dict[str, Any]) -> None:
        self._play.announce("pairs", shard, facts)
        self._pairs.add(facts)
        self._unscored.discard(shard)
        if not self._unscored:
            self._play.close("pairs", "score", self._pairs, beside=True)
            self._play.check_rows(self._others)
        self.queue.put.remote(shard)
