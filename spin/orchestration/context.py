"""What every stage of a run shares: which units are finished, and that the engines hold what they should."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin.cluster.worker_groups import WorkerGroups
from spin.config.run import RunConfig
from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.errors import CheckpointError
from spin.models.packing import Group
from spin.models.policy import Policy, check_policy
from spin.report.console import Reporter
from spin.run_dir.files import file_sha256
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore
from spin.training.reference import ENGINE_GAP_PER_TOKEN

PROBES = 4
"""Prompts, the longest held-out ones, that each engine answers before its answers are kept: long enough for what a prefix cache may hold."""


@dataclass
class RunContext:
    """What every stage needs."""

    config: RunConfig
    iteration_configs: list[RunConfig]
    """The config of each iteration, its schedule applied."""
    layout: RunLayout
    ledger: Ledger
    reporter: Reporter
    worker_groups: WorkerGroups
    store: RunStore
    note: str | None = None
    """The layout that training fell back to, once it was said."""
    _seated: str | None = None
    """Digest of the policy that all engines were seen to hold."""

    def finished(self, unit: str, path: Path, source: str | None = None) -> dict[str, Any] | None:
        """The facts of a finished unit, its file checked; None when it is to be made, for the first time or again.

        A unit can be made again from what it came from, so a file that was lost or altered, or that came from another `source`, is named and made again.
        """
        facts = self.ledger.get(unit)
        if facts is None:
            return None
        problem = verify_file(path, facts["sha256"], self.store)
        if problem is None and source is not None and facts.get("source", source) != source:
            problem = "came from files that are no longer there"
        if problem is None:
            return facts
        self.reporter.print(f"warning: {path} {problem}; it is made again")
        return None

    def promoted(self, unit: str, path: Path, opponent: Policy, later: bool) -> Policy | None:
        """The policy of a finished stage; None when it is to be trained, for the first time or again.

        `later`: what came after was made with it, so that the launch has checked it (`spin.preflight.checks.check_promoted`).
        Raises CheckpointError when it was trained against another opponent.
        """
        facts = self.ledger.get(unit)
        if facts is None:
            return None
        policy = Policy(str(path), facts["digest"])
        try:
            if not later:
                self.store.fetch(path)
                check_policy(policy)
        except CheckpointError as error:
            self.reporter.print(f"warning: {str(error).split(';')[0]}; it is trained again")
            return None
        if facts["opponent"] != opponent.digest:
            raise CheckpointError(
                f"{path} was trained against another opponent than the one promoted before it; start again with another run_dir"
            )
        return policy

    def verify_engines(self, policy: Policy) -> None:
        """Let every engine take `policy`, and see that it answers as the trainer says it would, before one answer is kept.

        This catches what an engine does not notice itself: a head or a prefix cache of the weights before, a tensor that was not in the files.
        Raises CheckpointError.
        """
        if self._seated == policy.digest:
            return
        prompts = sorted((p.prompt_ids for p in read_rows(self.layout.prompts("heldout"), Prompt)), key=len)[-PROBES:]
        for engine, answers in self.worker_groups.probe(policy, prompts).items():
            logps = self.worker_groups.logps(
                policy, [Group(ids, [tokens]) for ids, (tokens, _) in zip(prompts, answers, strict=True)]
            )
            gap = sum(abs(own[0] - logp) for own, (_, logp) in zip(logps, answers, strict=True)) / sum(
                len(tokens) for tokens, _ in answers
            )
            allowed = ENGINE_GAP_PER_TOKEN[self.config.model.dtype.name]
            if not gap <= allowed:  # NaN too
                raise CheckpointError(
                    f"engine {engine} does not hold {policy.path}: it differs from the trainer by {gap:.3g} nats a token (allowed {allowed:g})"
                )
        self._seated = policy.digest


def verify_file(path: Path, sha256: str, store: RunStore) -> str | None:
    """What is wrong with a finished file; None when it is as it was finished."""
    store.fetch(path)
    if not path.exists():
        return "is gone"
    return None if file_sha256(path) == sha256 else "was altered since it was finished"
