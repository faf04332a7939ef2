"""Cut the training set into the shards of each iteration."""

from __future__ import annotations

from spin.config.run import RunConfig


def list_shards(config: RunConfig, index: int, total: int) -> list[range]:
    """Return the positions in the training set of the prompts of each shard of an iteration.

    Args:
        config: Config of the iteration.
        index: Number of the iteration.
        total: Prompts of the training set, which are in an order that the seed fixes.
    """
    # The stretches of the training set that the iteration takes: two if it begins anew.
    wanted = config.generation.prompts_per_iteration
    stretches = [range(total)]
    if wanted is not None and wanted < total:
        first = index * wanted % total
        stretches = [range(first, min(total, first + wanted))]
        rest = wanted - len(stretches[0])
        if rest:
            stretches.append(range(rest))

    # Shards of `size` prompts. The last one of a stretch takes the rest.
    size = config.generation.shard_size
    shards = []
    for stretch in stretches:
        for first in range(stretch.start, stretch.stop, size):
            shards.append(range(first, min(stretch.stop, first + size)))
    return shards
