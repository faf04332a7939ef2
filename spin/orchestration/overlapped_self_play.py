"""Make the shards of one iteration while the trainers train on those that are finished.

engines ──samples──► scorer ──rewards────► scorer ──pairs──► queue ──► trainers
                 └─► judge ──judgements──┘

The queue limits by how many shards the engines may be ahead of the trainers.
"""

from __future__ import annotations

from typing import Any

import ray

from spin.cluster.run_ahead_queue import open_queue
from spin.orchestration.engine_check import verify_engines
from spin.orchestration.self_play import WORDS, SelfPlay
from spin.orchestration.shard_totals import ShardTotals
from spin.run_dir.unit import Unit


class OverlappedSelfPlay:
    """Generate and score while the trainers train."""

    def __init__(self, play: SelfPlay, extra_rows: int) -> None:
        """Find the missing shards, and start the first of them.

        Args:
            play: The shards of the iteration, and the calls that make them.
            extra_rows: Number of labelled rows that are trained on as well.
        """
        self._play = play
        self._extra_rows = extra_rows
        worker_groups = play.run.worker_groups
        self._engines = worker_groups.make_generator_pool(play.run_on_engine)
        # Without an engine of its own, the opponent judges between its samples.
        self._judges = self._engines
        if worker_groups.judges is not None:
            self._judges = worker_groups.make_judge_pool(play.run_on_engine)
        self._scorers = worker_groups.make_scorer_pool(play.score, play.reference)
        self._reward_scorers = self._scorers
        if worker_groups.reward_scorers is not None:
            self._reward_scorers = worker_groups.make_reward_pool(play.score)
        self.queue = open_queue(max(8, 4 * play.config.generation.replicas))

        # Find what is missing. If a file of a shard is missing, its files of the following kinds
        # are made again too, because they were made from it.
        self._unfinished: dict[str, set[Unit]] = {}
        missing_shards: set[int | None] = set()
        for kind in WORDS:
            todo = [unit for unit in play.units[kind] if unit.shard in missing_shards or not play.run.finished(unit)]
            missing_shards |= {unit.shard for unit in todo}
            self._unfinished[kind] = set(todo)
        play.check_replayed([unit for unit in play.pairs if unit in self._unfinished["pairs"]])
        self._totals = {kind: ShardTotals() for kind in WORDS}

        # Start to generate the missing samples. Before that the engines must hold the opponent.
        missing_samples = [unit for unit in play.units["samples"] if unit in self._unfinished["samples"]]
        if missing_samples:
            verify_engines(play.run, play.opponent)
        self._ahead = iter(missing_samples)
        self._room: dict[Any, Unit] = {}
        """Samples to generate next, by the call that returns when the queue has room for them."""
        self._next()

        # Start to score the shards whose samples an earlier session has finished.
        for samples, pairs in zip(play.units["samples"], play.pairs, strict=True):
            if pairs in self._unfinished["pairs"] and samples not in self._unfinished["samples"]:
                self._score_shard(samples)

        # Give finished shards to the trainers. If all are finished, check the rows here, because no
        # result will come that triggers the check.
        if not self._unfinished["pairs"]:
            play.check_rows(extra_rows)
        finished = [unit for unit in play.pairs if unit not in self._unfinished["pairs"]]
        ray.get([self.queue.put.remote(unit.shard) for unit in finished])

    def pending(self) -> list[Any]:
        """Return the Ray references to wait for; none when all shards are with the trainers."""
        calls = {*self._room, *self._engines.pending, *self._judges.pending, *self._scorers.pending}
        calls |= set(self._reward_scorers.pending)
        return list(calls)

    def collect(self, ready: Any) -> None:
        """Take one finished result, record its shard, and start what comes next."""
        if ready in self._room:
            # The queue has room. `get` raises the error if the queue itself has died.
            ray.get(ready)
            self._engines.add(self._room.pop(ready))
            self._next()
            return
        pools = [self._engines, self._judges, self._scorers, self._reward_scorers]
        [pool, *_] = [pool for pool in pools if ready in pool.pending]
        # None means that an actor died; the pool repeats its task.
        done = pool.collect(ready)
        if done is not None:
            self._on_done(*done)

    def _next(self) -> None:
        """Ask the queue for room for the next samples."""
        # One at a time, so that the shards are generated in order, as the trainers take them.
        unit = next(self._ahead, None)
        if unit is not None:
            self._room[self.queue.room.remote(unit.shard)] = unit

    def _on_done(self, unit: Unit, result: dict[str, Any]) -> None:
        """Record a finished unit, and start the next kind of its shard."""
        # The ledger line comes first: the next kind records the digest in it.
        unfinished = self._unfinished[unit.kind]
        totals = self._totals[unit.kind]
        totals.add(unit, self._play.announce(unit, result))
        unfinished.discard(unit)
        if not unfinished:
            self._play.close(unit.kind, totals, background=True)

        # Pairs need the rewards of all sources, or the judgements.
        if unit.kind == "samples":
            self._score_shard(unit)
        elif unit.kind in ("rewards", "judgements"):
            if not self._find_ratings(unit):
                self._score_pairs(unit)
        else:
            # Check before the trainers get the last shard, so that the user reads the error of this
            # check and not that of a trainer without rows.
            if not unfinished:
                self._play.check_rows(self._extra_rows)
            self.queue.put.remote(unit.shard)

    def _score_shard(self, samples: Unit) -> None:
        """Give the missing rewards or judgements of a shard to workers; without any, its pairs."""
        ratings = self._find_ratings(samples)
        for unit in ratings:
            if unit.kind == "judgements":
                self._judges.add(unit)
            elif self._play.is_scored_by_engine(unit):
                self._reward_scorers.add(unit)
            else:
                self._scorers.add(unit)
        if not ratings:
            self._score_pairs(samples)

    def _find_ratings(self, shard_unit: Unit) -> list[Unit]:
        """Return the rewards and judgements of the same shard that are not finished."""
        found = []
        for kind in ("rewards", "judgements"):
            for unit in self._play.units[kind]:
                if unit.shard == shard_unit.shard and unit in self._unfinished[kind]:
                    found.append(unit)
        return found

    def _score_pairs(self, shard_unit: Unit) -> None:
        """Give the pairs of the same shard to the scorer."""
        [pairs] = [unit for unit in self._play.pairs if unit.shard == shard_unit.shard]
        self._scorers.add(pairs)
