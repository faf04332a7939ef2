"""The ordered, bounded queue of shards between generation and training.

The trainers take shards by number, in order, and wait for one that is not finished. Generation may
run a limited number of shards ahead of them. The queue holds numbers; a shard itself is a finished
file that the ledger names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray


class ShardQueue:
    """Finished shards by number; restarted trainers take them again from the first one."""

    def __init__(self, ahead: int) -> None:
        """Let generation begin `ahead` shards beyond the last one that the trainers asked for."""
        self._ahead = ahead
        self._finished: set[int] = set()
        self._last_asked = 0
        self._changed = asyncio.Condition()

    async def put(self, shard: int) -> None:
        """Record that a shard is finished."""
        async with self._changed:
            self._finished.add(shard)
            self._changed.notify_all()

    async def take(self, shard: int) -> None:
        """Wait until a shard is finished."""
        async with self._changed:
            self._last_asked = max(self._last_asked, shard)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: shard in self._finished)

    async def room(self, shard: int) -> None:
        """Wait until generation may begin a shard."""
        async with self._changed:
            await self._changed.wait_for(lambda: shard <= self._last_asked + self._ahead)


def open_queue(ahead: int) -> Any:
    """Start a queue as an actor on the driver's node, so that it lives as long as the driver."""
    node_id = ray.get_runtime_context().get_node_id()
    beside_driver = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=True)
    actor_class = ray.remote(ShardQueue)
    return actor_class.options(num_cpus=0, max_concurrency=1000, scheduling_strategy=beside_driver).remote(ahead)


def wait_for_shards(queue: Any, paths: list[Path]) -> Iterator[Path]:
    """Yield the path of each shard in order once it is finished; without a queue, all are."""
    for shard, path in enumerate(paths):
        if queue is not None:
            ray.get(queue.take.remote(shard))
        yield path
