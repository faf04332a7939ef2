"""The paid replies of an endpoint, appended one by one, so that a kill never pays twice."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from spin.errors import CheckpointError


@dataclass(frozen=True)
class EndpointReply:
    """What is kept of a reply."""

    label_logps: dict[str, float]
    """log P of each label that is among the most likely tokens."""
    prompt_tokens: int
    completion_tokens: int
    text: str = ""
    """The rationale; empty for a reply with label probabilities."""


class ReplyFile:
    """Replies by the key of their question; threads may add at the same time."""

    def __init__(self, path: Path) -> None:
        """Read the replies of earlier sessions; an incomplete last line is removed.

        Raises:
            CheckpointError: A complete line cannot be read.
        """
        self._path = path
        self._lock = threading.Lock()
        self._replies: dict[str, EndpointReply] = {}
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                key = record.pop("key")
                self._replies[key] = EndpointReply(**record)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{path}:{number} is no reply of the judge; delete the file to ask the judge again"
                ) from error
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> EndpointReply | None:
        """Return the reply to a question; None if it was not asked."""
        return self._replies.get(key)

    def add(self, key: str, reply: EndpointReply) -> None:
        """Keep a reply; returns once it is on the disk."""
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as handle:
                handle.write(line)
                os.fsync(handle.fileno())
            self._replies[key] = reply
