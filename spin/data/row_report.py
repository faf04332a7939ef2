"""Count the rows of a data set that are kept, and those that are dropped by their reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from spin.wording import count_of

HELD_OUT = "held out"


@dataclass
class RowReport:
    """Counts of the rows read from one set."""

    path: str
    format: str = ""
    read: int = 0
    kept: int = 0
    cut: int = 0
    """Completions longer than the limit: kept without an end token."""
    split: int = 0
    """Rows whose prompt ends inside a token of the exchange, see `Exchange.boundary_split`."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Dropped rows by reason."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """File and line of the first row dropped by each reason."""
    ignored: set[str] = field(default_factory=set)
    """Columns without a meaning for training, such as ids and scores."""
    left_out: int = 0
    """Answers of rankings that have more of them than are used."""

    def drop(self, reason: str, place: str) -> None:
        """Count one dropped row."""
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, place)

    def line(self) -> str:
        """Return one line for the user."""
        text = f"{self.kept} of {self.read} rows of {self.path} as {self.format}{self.describe_dropped()}"
        # Remarks on the rows that were kept.
        if self.cut:
            text += f"; {self.cut} completions cut at the token limit"
        if self.left_out:
            text += (
                f"; {count_of(self.left_out, 'answer')} left out of rankings with more than reward_model.max_responses"
            )
        if self.split:
            text += f"; {count_of(self.split, 'row')} whose prompt ends inside a token of the exchange"
        if self.ignored:
            text += f"; columns not used: {', '.join(sorted(self.ignored))}"
        return text

    def describe_dropped(self) -> str:
        """Return the dropped rows by reason, in alphabetical order; empty if none was dropped."""
        parts = []
        for reason, count in sorted(self.dropped.items()):
            part = f"{count} {reason}"
            if reason in self.first_dropped:
                part += f" (first: {self.first_dropped[reason]})"
            parts.append(part)
        if not parts:
            return ""
        return f"; dropped: {', '.join(parts)}"


def describe_empty(report: RowReport) -> str:
    """Return why a set gave no row."""
    if report.read:
        return f"no usable row: {report.line()}"
    return "no usable row: the set is empty"
