"""Statistics of a judge's judgements, which are added up over shards and shown to the user."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Mean:
    """Sums of a figure over judgements, from which its mean and interval are computed."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Add the figure of one judgement."""
        self.count += 1
        self.total += value
        self.squares += value * value

    @property
    def value(self) -> float:
        """The mean; NaN without any judgement."""
        if not self.count:
            return math.nan
        return self.total / self.count

    @property
    def half_interval(self) -> float:
        """Half of the mean's 95 % interval: 1.96 standard errors; 0 for one judgement."""
        if self.count < 2:
            return 0.0
        # Unbiased variance; rounding may leave it slightly below 0.
        variance = (self.squares - self.count * self.value**2) / (self.count - 1)
        return 1.96 * math.sqrt(max(0.0, variance) / self.count)

    def describe(self) -> str:
        """Return ``0.118±0.012`` or the like."""
        return f"{self.value:.3f}±{self.half_interval:.3f}"


@dataclass
class JudgeStatistics:
    """What is known of a judge from its judgements; failed ones count only as failures."""

    comparisons: int = 0
    """Comparisons of two answers, or scores of single ones."""
    questions: int = 0
    """Questions that the judge was asked: two for each judgement in both orders or scales."""
    ties: int = 0
    clamped: int = 0
    """Preferences outside of [`objective.clamp`, 1 − `objective.clamp`], which Ψ does not get."""
    requests: int = 0
    """Requests to an endpoint that were paid."""
    cached: int = 0
    """Questions whose reply was known."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    price: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    """Number of failed comparisons by reason."""
    bias: Mean = field(default_factory=Mean)
    """Preference for the first place, from −½ to ½; of scores, for high numbers, from −1 to 1."""
    same_place: Mean = field(default_factory=Mean)
    """1 if the judge prefers the same place in both orders, or the same end of both scales."""
    mass: Mean = field(default_factory=Mean)
    """Probability of all labels together."""
    truth: Mean = field(default_factory=Mean)
    """1 if the judge prefers the ground truth to a sample, ½ if it prefers neither."""
    score: Mean = field(default_factory=Mean)
    """Scores of the samples, from −1 to 1."""

    @property
    def num_failures(self) -> int:
        """Number of failed comparisons."""
        return sum(self.failures.values())

    def to_figures(self) -> dict[str, float]:
        """Return the means and shares by name, with half intervals."""
        figures = {"ties": self.ties / self.comparisons, "failures": self.num_failures / self.comparisons}
        for name in MEANS:
            mean: Mean = getattr(self, name)
            if mean.count:
                figures[name] = mean.value
                figures[f"{name}_half_interval"] = mean.half_interval
        for name in ("clamped", "requests", "cached", "prompt_tokens", "completion_tokens", "price"):
            if getattr(self, name):
                figures[name] = getattr(self, name)
        return figures

    def to_texts(self) -> dict[str, str]:
        """Return the known figures as texts by their title; means with half their 95 % interval."""
        texts = {}
        if self.score.count:
            texts["score"] = self.score.describe()
        if self.bias.count:
            consistency = 1 - self.same_place.value
            texts["bias"] = self.bias.describe()
            texts["same place"] = self.same_place.describe()
            texts["consistency"] = f"{consistency:.3f}±{self.same_place.half_interval:.3f}"
        if self.mass.count:
            texts["mass"] = self.mass.describe()
        if self.truth.count:
            texts["agreement with the truth"] = self.truth.describe()
        # Scores are compared later, where the rows are built.
        if not self.score.count:
            texts["ties"] = f"{self.ties / self.comparisons:.0%}"
        if self.clamped:
            texts["clamped"] = f"{self.clamped:,}"
        reasons = [f"{count} {reason}" for reason, count in sorted(self.failures.items())]
        texts["failures"] = ", ".join(reasons) or "none"
        # Of an endpoint.
        if self.requests or self.cached:
            texts["requests"] = f"{self.requests:,} ({self.cached:,} cached)"
            texts["tokens"] = f"{self.prompt_tokens + self.completion_tokens:,}"
        if self.price:
            texts["price"] = f"{self.price:.4g}"
        return texts

    def describe(self) -> str:
        """Return the figures as one line."""
        return f"judge {', '.join(f'{title} {text}' for title, text in self.to_texts().items())}"


MEANS = ("bias", "same_place", "mass", "truth", "score")
"""Fields of JudgeStatistics that are means."""

COUNTS = (
    "comparisons",
    "questions",
    "ties",
    "clamped",
    "requests",
    "cached",
    "prompt_tokens",
    "completion_tokens",
    "price",
)
"""Fields of JudgeStatistics that are added up as they are."""


def read_statistics(values: Mapping[str, Any]) -> JudgeStatistics:
    """Return the statistics of one shard from its ledger line."""
    statistics = JudgeStatistics(**values)
    for entry in dataclasses.fields(JudgeStatistics):
        value = getattr(statistics, entry.name)
        if entry.default_factory is Mean and isinstance(value, dict):
            setattr(statistics, entry.name, Mean(**value))
    return statistics


def sum_judge_statistics(shards: Iterable[Mapping[str, Any] | None]) -> JudgeStatistics | None:
    """Add up the statistics that the ledger records of shards; None if no shard has any."""
    total = JudgeStatistics()
    failures: Counter[str] = Counter()
    for values in shards:
        if values is None:
            continue
        shard = read_statistics(values)
        for name in COUNTS:
            setattr(total, name, getattr(total, name) + getattr(shard, name))
        failures.update(shard.failures)
        for name in MEANS:
            ours: Mean = getattr(total, name)
            theirs: Mean = getattr(shard, name)
            ours.count += theirs.count
            ours.total += theirs.total
            ours.squares += theirs.squares
    total.failures = dict(failures)
    if not total.comparisons:
        return None
    return total
