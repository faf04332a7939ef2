"""Config groups `benchmark`, `stop` and `keep`: measures of a policy, and what they decide."""

from __future__ import annotations

from dataclasses import dataclass, field

from spin.config.ranges import bounded, check_ranges
from spin.errors import require


@dataclass
class LmEvalConfig:
    """Tasks of lm-evaluation-harness, run on every promoted policy; needs the extra `lm_eval`."""

    tasks: list[str] = field(default_factory=list)
    """Names of the tasks; none by default."""
    include_path: str | None = None
    """A folder with task YAML files of your own; null: only those of the harness."""
    limit: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Rows of each task, at least 1; null uses all."""
    num_fewshot: int | None = bounded(None, at_least=0, at_most=1000)
    """Examples in front of each question, at least 0; null uses the task's own number."""
    apply_chat_template: bool = False
    """Render the questions with the tokenizer's chat template."""

    def __post_init__(self) -> None:
        check_ranges(self, "benchmark.lm_eval.")


@dataclass
class BenchmarkConfig:
    """Held-out measures of every promoted policy."""

    enabled: bool = True
    """Benchmark the start and every promoted policy on the held-out rows."""
    every: int = bounded(1, at_least=1, at_most=100_000)
    """Iterations between two benchmarks, at least 1; start and last iteration are always measured.

    The win rate compares two policies that are measured one after the other."""
    samples: int = bounded(2, at_least=1, at_most=1024)
    """Answers sampled for each held-out prompt besides the greedy one, at least 1.

    They are sampled at `generation.temperature`. With two, the interval of their exact match is
    about as wide as that of the greedy answers; with four, a quarter less."""
    verifier: str | None = None
    """Function ``f(prompt, answer, truth)`` of texts that tells whether an answer is right, as
    module.name; a number above 0.5 is right. Null: exact match with the ground truth."""
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "benchmark.")


@dataclass
class KeepConfig:
    """The promoted policies that stay on the disk."""

    policies: int | None = bounded(None, at_least=1, at_most=100_000)
    """Newest policies to keep, at least 1; null keeps all.

    The starting policy and the best one so far are always kept."""

    def __post_init__(self) -> None:
        check_ranges(self, "keep.")


HIGHER_IS_BETTER = {
    "exact_match_greedy": True,
    "exact_match_sampled": True,
    "nll": False,
    "win_rate": True,
    "truncated": False,
    "length_greedy": False,
    "length_sampled": False,
    "repetition_greedy": False,
    "repetition_sampled": False,
    "kl_to_start": False,
}
"""Held-out metrics; True where a higher value is better."""


@dataclass
class StopConfig:
    """The choice of the best policy, and the rule that stops a run early."""

    metric: str | None = None
    """A held-out metric; null uses exact_match_greedy if `data.answer_pattern` or
    `benchmark.verifier` is set, else nll."""
    patience: int | None = bounded(None, at_least=1, at_most=100_000)
    """Stop after this many iterations in a row without a new best, at least 1; null never stops."""
    min_delta: float = bounded(0.0, at_least=0, at_most=1_000_000)
    """A metric counts as better only if it improves by more than this, at least 0."""

    def __post_init__(self) -> None:
        require(
            self.metric is None or self.metric in HIGHER_IS_BETTER,
            f"stop.metric={self.metric}: expected one of {', '.join(HIGHER_IS_BETTER)}",
        )
        check_ranges(self, "stop.")
