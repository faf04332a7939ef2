"""Arguments of `spin reward-bench`, and the code that it calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spin.config.reward_model import check_subset_counts
from spin.errors import require


@dataclass
class RewardBenchArguments:
    """Arguments of `spin reward-bench`."""

    model: str
    """Folder or Hub id of a reward model."""
    data: str
    """Ranked answers, see `reward_model.data_path`."""
    split: str = "test"
    """Split of a Hub or builtin data set."""
    limit: int | None = None
    """Rows to use; null uses all."""
    max_tokens: int | None = None
    """Longest prompt, and longest answer, in tokens; null: 1024."""
    dtype: str = "float32"
    """Precision, see `model.dtype`."""
    to: str | None = None
    """JSON file of the figures; null writes none."""
    subset_column: str | None = "subset"
    """Column with the part of the set that a row belongs to; null reads none."""
    subset_counts: list[str] = field(default_factory=list)
    """Weight of each subset in the mean over subsets, [easy:1,hard:3]; empty: all weigh alike."""

    def __post_init__(self) -> None:
        for name in ("limit", "max_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: expected at least 1")
        require(self.dtype in ("float32", "bfloat16"), f"dtype={self.dtype}: expected float32 or bfloat16")

    def parse_subset_counts(self) -> dict[str, float]:
        """Return the weight of each subset. Raises ConfigError when one is no number above 0."""
        counts = {}
        for entry in self.subset_counts:
            # A name may hold a colon too.
            name, _, number = entry.rpartition(":")
            try:
                counts[name] = float(number)
            except ValueError:
                counts[name] = math.nan
        check_subset_counts("subset_counts", counts)
        return counts


def bench_reward_model(arguments: RewardBenchArguments) -> None:
    """Measure a reward model on ranked answers."""
    from spin.config.training import Dtype
    from spin.orchestration.reward_bench import RewardBenchOptions, bench_reward_model

    bench_reward_model(
        RewardBenchOptions(
            arguments.model,
            arguments.data,
            arguments.split,
            arguments.limit,
            arguments.max_tokens or 1024,
            Dtype[arguments.dtype],
            arguments.to,
            arguments.subset_column,
            arguments.parse_subset_counts(),
        )
    )
