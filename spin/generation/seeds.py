"""Give each request a seed of its own, so that an answer depends on no other request."""

from __future__ import annotations

import hashlib


def request_seed(seed: int, purpose: str, iteration: int, prompt_id: int, sample_index: int) -> int:
    """Return a seed of 31 bits, derived from a hash of the arguments."""
    # Python's hash() of a string differs from process to process.
    key = f"{seed}/{purpose}/{iteration}/{prompt_id}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1
