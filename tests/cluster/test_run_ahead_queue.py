"""The queue of shards between generation and training."""

import asyncio

from spin.cluster.run_ahead_queue import ShardQueue


def test_shards_are_taken_in_order_whatever_order_they_are_finished_in() -> None:
    async def play() -> list[int]:
        queue, taken = ShardQueue(8), list[int]()

        async def trainer() -> None:
            for shard in range(3):
                await queue.take(shard)
                taken.append(shard)

        task = asyncio.create_task(trainer())
        for shard in (2, 1):
            await queue.put(shard)
            await asyncio.sleep(0.01)
            assert taken == []
        await queue.put(0)
        await task
        await queue.take(0)  # a trainer that was started again begins at the first
        return taken

    assert asyncio.run(play()) == [0, 1, 2]


def test_generation_may_run_only_so_far_ahead_of_the_trainers() -> None:
    async def play() -> None:
        queue = ShardQueue(2)
        for shard in (0, 1, 2):
            await asyncio.wait_for(queue.room(shard), 0.05)
        third = asyncio.create_task(queue.room(3))
        await queue.put(0)
        await queue.take(0)
        await asyncio.sleep(0.01)
        assert not third.done()  # the trainers hold shard 0 and have not asked for more
        asked = asyncio.create_task(queue.take(1))
        await asyncio.wait_for(third, 0.05)
        asked.cancel()

    asyncio.run(play())
