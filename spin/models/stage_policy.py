"""The policy of a stage, as the run directory and the ledger describe it."""

from __future__ import annotations

from pathlib import Path

from spin.models.policy import Adapter, Policy
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.paths import Stage


def find_adapter_folder(stage: Stage, facts: PolicyFacts) -> Path:
    """Return the PEFT folder of a stage: the policy itself, or the folder beside a merged one."""
    if facts.adapter == facts.digest:
        return stage.policy
    return stage.adapter


def make_stage_policy(stage: Stage, facts: PolicyFacts, base: Policy | None = None) -> Policy:
    """Return the policy of a stage.

    Args:
        stage: The stage.
        facts: Its line in the ledger.
        base: The model with the frozen weights, if a trainer will load it. None: only the files of
            the policy are of interest.
    """
    if not facts.adapter:
        return Policy(str(stage.promoted), facts.digest)
    if base is None:
        base = Policy("", facts.base)
    adapter = Adapter(str(find_adapter_folder(stage, facts)), facts.adapter, base)
    return Policy(str(stage.policy), facts.digest, adapter)
