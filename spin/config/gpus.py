"""The GPUs that `cluster.assume` and the estimates know: memory, speed and bandwidth of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spin.errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, from the vendor's data sheet."""

    memory: int
    """Bytes in all, as the driver reports them; a process can use some hundred MiB less."""
    flops: float
    """Dense half-precision FLOP/s."""
    bandwidth: float
    """Bytes per second of its memory."""


GPUS = {
    "H200": Gpu(143_771 * MIB, 989e12, 4.8e12),
    "H100": Gpu(81_559 * MIB, 989e12, 3.35e12),
    "A100": Gpu(81_920 * MIB, 312e12, 2.04e12),
    "A100-40": Gpu(40_960 * MIB, 312e12, 1.56e12),
    "L40S": Gpu(46_068 * MIB, 362e12, 0.864e12),
    "A10": Gpu(23_028 * MIB, 125e12, 0.6e12),
    "V100": Gpu(32_768 * MIB, 125e12, 0.9e12),
}
"""By name. H100 and H200 are the SXM versions, A100 that of 80 GB, V100 that of 32 GB."""


@dataclass(frozen=True)
class AssumedGpus:
    """The GPUs of `cluster.assume`."""

    name: str
    count: int

    @property
    def gpu(self) -> Gpu:
        """Return the kind of GPU."""
        return GPUS[self.name]


def parse_gpus(text: str) -> AssumedGpus:
    """Return the GPUs that a value of `cluster.assume` names.

    Raises:
        ConfigError: It is no number of GPUs with a name of `GPUS`.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})x(.+)", text)
    if found is None or found[2] not in GPUS:
        raise ConfigError(
            f"cluster.assume={text}: expected a number of GPUs and a name, such as 8xH100; "
            f"the names are {', '.join(GPUS)}"
        )
    return AssumedGpus(found[2], int(found[1]))
