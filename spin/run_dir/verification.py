"""Verify finished files: each has the recorded digest, and so have the files it was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spin.run_dir.facts import FileFacts
from spin.run_dir.files import file_sha256
from spin.run_dir.run_state import RunState
from spin.run_dir.unit import Unit


def verify_file(path: Path, sha256: str) -> str | None:
    """Return what is wrong with a finished file; None if its content has this digest."""
    if not path.exists():
        return "is gone"
    return None if file_sha256(path) == sha256 else "was altered since it was finished"


def verify_unit(state: RunState, unit: Unit) -> str | None:
    """Return what is wrong with the file of a finished unit; None if it is intact.

    The file must have the recorded digest. Its sources must still have the digest that they had
    when the file was made. A policy is a folder: `spin.models.policy.check_policy` checks it.
    """
    facts = state.facts(unit, FileFacts)
    problem = verify_file(unit.path, facts.sha256)
    if problem is None and facts.source is not None and facts.source != digest_sources(state, unit):
        problem = "came from files that are no longer there"
    return problem


def digest_sources(state: RunState, unit: Unit) -> str | None:
    """Return the digest of the files that a unit is made from; None before they are finished.

    It covers the first source, for pairs and rankings the rewards and judgements of their samples,
    for rewards the reward model that the run trained, and for the figures of that model the
    held-out rankings. It does not cover replayed pairs: they are checked on their own, because they
    cannot be made again.
    """
    first = state.digest(unit.sources[0])
    others = []
    for kind in ("rewards", "judgements", "reward_model", "rankings-heldout"):
        others += state.sources(unit, kind)
    if not others:
        return first
    # One digest over all of them, so that the record has the same form for every kind.
    digests = [first, *(state.digest(other.name) for other in others)]
    if None in digests:
        return None
    return hashlib.sha256(" ".join(map(str, digests)).encode()).hexdigest()
