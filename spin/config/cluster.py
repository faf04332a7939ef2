"""Config group `cluster`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from spin.config.gpus import AssumedGpus, parse_gpus
from spin.config.ranges import bounded, check_ranges
from spin.errors import require


class Placement(Enum):
    """Placement of the stages of an iteration; it changes no result."""

    sequential = "one after the other; engine and trainer stay in memory"
    """The stages run one after the other; engine and trainer stay in memory."""
    split = "training begins on the first shards while the next are generated; scoring has a worker of its own"
    """Training begins on the first shards while the next are generated; one more worker scores."""
    colocated = "one after the other on the same GPU; the engine sleeps while the trainer works"
    """The stages share one GPU; the engine sleeps while the trainer works."""


@dataclass
class ClusterConfig:
    """The Ray cluster of the run."""

    address: str | None = None
    """An existing cluster: ``auto`` (this machine is part of it), ``host:port`` or ``ray://host:port``.

    Null starts a cluster on this machine, for this run only."""
    placement: Placement = Placement.sequential
    """Where the stages of an iteration run: sequential, split or colocated."""
    cpus: int | None = bounded(None, at_least=1, at_most=100_000)
    """CPU cores to use, at least 1; null uses all of this machine."""
    gpus: int | None = bounded(None, at_least=0, at_most=100_000)
    """GPUs to use, at least 0; null uses all of this machine."""
    trainer_threads: int = bounded(1, at_least=1, at_most=1024)
    """torch threads of one training worker on a CPU, at least 1."""
    assume: str | None = None
    """GPUs that `spin check` plans for although they are not here, such as 1xH100 or 8xA100.

    Names: H200, H100, A100, A100-40, L40S, A10, V100. Null plans for this machine."""

    def __post_init__(self) -> None:
        check_ranges(self, "cluster.")
        assumed = self.assumed
        if assumed is not None and self.gpus is not None:
            require(
                1 <= self.gpus <= assumed.count,
                f"cluster.gpus={self.gpus} with cluster.assume={self.assume}: expected 1 to {assumed.count}; set the "
                "first to null, or assume more GPUs",
            )

    @property
    def assumed(self) -> AssumedGpus | None:
        """Return the GPUs of `assume`; None without it."""
        if self.assume is None:
            return None
        return parse_gpus(self.assume)
