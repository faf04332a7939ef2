"""Make the shards of one iteration while the trainers train on those that are finished.

engines ──samples──► scorer ──rewards──► scorer ──pairs──► queue ──► trainers
(as far ahead of the trainers as the queue allows)
"""

from __future__ import annotations

from typing import Any

import ray

from spin.cluster.shard_queue import open_queue
from spin.orchestration.self_play import WORDS, SelfPlay
from spin.orchestration.shard_totals import ShardTotals
from spin.run_dir.plan import Unit


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

        # Find what is missing. A shard is made again from the first kind on that is missing.
        self._unfinished: dict[str, set[Unit]] = {}
        missing_shards: set[int | None] = set()
        for kind in WORDS:
            todo = [unit for unit in play.units[kind] if unit.shard in missing_shards or not play.run.finished(unit)]
            missing_shards |= {unit.shard for unit in todo}
            self._unfinished[kind] = set(todo)
        play.check_replayed([unit for unit in play.pairs if unit in self._unfinished["pairs"]])
        self._totals = {kind: ShardTotals() for kind in WORDS}

        # Begin to generate and to score.
        missing_samples = [unit for unit in play.units["samples"] if unit in self._unfinished["samples"]]
        if missing_samples:
            play.run.verify_engines(play.opponent)
        self._ahead = iter(missing_samples)
        self._room: dict[Any, Unit] = {}
        """The next samples to generate, once the queue has room for them."""
        self._next()
        for samples, pairs in zip(play.units["samples"], play.pairs, strict=True):
            if pairs in self._unfinished["pairs"] and samples not in self._unfinished["samples"]:
                self._score_shard(samples)

        # Finished shards go to the trainers at once.
        if not self._unfinished["pairs"]:
            play.check_rows(extra_rows)
        finished = [unit for unit in play.pairs if unit not in self._unfinished["pairs"]]
        ray.get([self.queue.put.remote(unit.shard) for unit in finished])

    def pending(self) -> list[Any]:
        """Return the Ray references to wait for; none when the trainers have all shards."""
        return [*self._room, *self._engines.pending, *self._scorers.pending]

    def collect(self, ready: Any) -> None:
        """Take a finished result: announce its shard, and send the shard on."""
        if ready in self._room:
            ray.get(ready)
            self._engines.add(self._room.pop(ready))
            self._next()
            return
        pool = self._engines if ready in self._engines.pending else self._scorers
        done = pool.collect(ready)
        if done is not None:
            self._on_done(*done)

    def _next(self) -> None:
        unit = next(self._ahead, None)
        if unit is not None:
            self._room[self.queue.room.remote(unit.shard)] = unit

    def _on_done(self, unit: Unit, result: dict[str, Any]) -> None:
        """Announce a unit, and begin what its shard needs next."""
        unfinished = self._unfinished[unit.kind]
        totals = self._totals[unit.kind]
        totals.add(unit, self._play.announce(unit, result))
        unfinished.discard(unit)
        if not unfinished:
            self._play.close(unit.kind, totals, background=True)
        if unit.kind == "samples":
            self._score_shard(unit)
        elif unit.kind == "rewards":
            if not self._find_rewards(unit):
                self._score_pairs(unit)
        else:
            if not unfinished:
                self._play.check_rows(self._extra_rows)
            self.queue.put.remote(unit.shard)

    def _score_shard(self, samples: Unit) -> None:
        """Give the scorer a shard whose samples are finished: its rewards first, then its pairs."""
        rewards = self._find_rewards(samples)
        for unit in rewards:
            self._scorers.add(unit)
        if not rewards:
            self._score_pairs(samples)

    def _find_rewards(self, shard_unit: Unit) -> list[Unit]:
        """Return the rewards of the same shard that are not finished."""
        unfinished = self._unfinished["rewards"]
        return [unit for unit in self._play.units["rewards"] if unit.shard == shard_unit.shard and unit in unfinished]

    def _score_pairs(self, shard_unit: Unit) -> None:
        """Give the scorer the pairs of the same shard."""
        [pairs] = [unit for unit in self._play.pairs if unit.shard == shard_unit.shard]
        self._scorers.add(pairs)
