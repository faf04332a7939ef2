"""Typed records of the ledger: one dataclass for each kind of unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class FileFacts:
    """What the ledger records about a finished file."""

    sha256: str = ""
    source: str | None = None
    """Digest of the sources when the file was made; None if it is not recorded."""
    rows: int = 0
    """Rows of a parquet file, held-out answers of a benchmark, or tasks of lm_eval."""
    seconds: float = 0.0


@dataclass(frozen=True)
class SamplesFacts(FileFacts):
    """What the ledger records about one shard of samples."""

    tokens: int = 0
    # `metadata["key"]` is the key in the ledger, where it differs from the name of the field.
    truncated: int = field(default=0, metadata={"key": "cut"})
    """Samples that reached `generation.max_tokens`."""


@dataclass(frozen=True)
class RewardsFacts(FileFacts):
    """What the ledger records about the rewards of one source for one shard of samples."""

    mean: float = 0.0


@dataclass(frozen=True)
class JudgementsFacts(FileFacts):
    """What the ledger records about a judge's comparisons of one shard of samples."""

    judge: dict[str, Any] | None = None
    """Fields of `JudgeStatistics` over the shard."""


@dataclass(frozen=True)
class PairsFacts(FileFacts):
    """What the ledger records about one shard of pairs or ratings."""

    replayed: int = 0
    """Rows that come from earlier iterations."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of dropped rows by reason."""
    rewards: dict[str, Any] | None = None
    """Fields of `RewardStatistics` over the shard; None without reward sources."""
    rollouts: dict[str, Any] | None = None
    """Fields of `RolloutStatistics` over the shard; None without answers with rewards."""
    engine_gap: float | None = None
    """Mean difference between engine and trainer, in nats per token.

    None when the reference is not the opponent.
    """


@dataclass(frozen=True)
class PolicyFacts:
    """What the ledger records about a promoted policy."""

    digest: str = ""
    opponent: str = ""
    """Digest of the policy whose weights the training started from."""
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    critic: str = ""
    """Digest of the critic that was trained with the policy; empty without one."""
    dropped: bool = False
    """Whether its files were deleted (`keep.policies`)."""
    adapter: str = ""
    """Digest of the adapter; that of the policy if its folder holds the adapter alone."""
    base: str = ""
    """Digest of the model with the frozen weights that the adapter belongs to."""


@dataclass(frozen=True)
class BenchmarkFacts(FileFacts):
    """What the ledger records about the benchmark of one policy."""

    judged: str = ""
    """SHA-256 of the file with the scored held-out answers."""


@dataclass(frozen=True)
class LmEvalFacts(FileFacts):
    """What the ledger records about the results of lm-evaluation-harness for one policy."""

    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KindTotals:
    """Totals of all shards of one kind, recorded after the last shard."""

    tokens: int = 0
    seconds: float = 0.0
    background: bool = field(default=False, metadata={"key": "beside"})
    """True when the trainers were training at the same time.

    The seconds are then a part of the seconds of training.
    """


@dataclass(frozen=True)
class SavedState:
    """What the ledger records about one saved state of a trainer."""

    digest: str
    source: str | None
    """Digest of the opponent and of the files of rows that the trainer had read by then."""
    chunks: int
    """Number of shards of pairs that the trainer had read by then."""


Facts = TypeVar(
    "Facts",
    FileFacts,
    SamplesFacts,
    RewardsFacts,
    JudgementsFacts,
    PairsFacts,
    PolicyFacts,
    BenchmarkFacts,
    LmEvalFacts,
    KindTotals,
)


def read_facts(record: Mapping[str, Any], facts_type: type[Facts]) -> Facts:
    """Return a ledger record, or the result of a worker, as a dataclass; ignore other keys."""
    values = {}
    for entry in dataclasses.fields(facts_type):
        key = entry.metadata.get("key", entry.name)
        # A missing key leaves the field at its default: not every version of spin recorded all.
        if key in record:
            values[entry.name] = record[key]
    return facts_type(**values)


def to_record(facts: Any) -> dict[str, Any]:
    """Return facts with the keys of the ledger; an unknown source is left out."""
    record = {}
    for entry in dataclasses.fields(facts):
        value = getattr(facts, entry.name)
        # A missing source is read back as None, so nothing is lost.
        if entry.name != "source" or value is not None:
            record[entry.metadata.get("key", entry.name)] = value
    return record
